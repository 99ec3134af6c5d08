"""The services of docker/compose.yaml as processes of this machine.

Commands, environments, nginx's and Prometheus's configuration are the very ones of docker/ and dashboards/, with other
ports and paths.
"""

from __future__ import annotations

import base64
import http.client
import os
import re
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import psutil
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "docker"
PATIENCE_SECONDS = 300
"""Nothing that is waited for takes this long."""
PROGRAMS = {"ray": [sys.executable, "-m", "ray.scripts.scripts"], "mergesearch": [sys.executable, "-m", "mergesearch"]}
PORTS = ("gcs", "ray", "head-metrics", "worker-metrics", "dashboard", "proxy", "prometheus")
USER = "mergesearch"


class Topology:
    """Starts services; they end with `ended`, the last one first.

    `secrets` is what docker/make-secrets.sh has made, `folder` where the processes live.
    """

    def __init__(self, secrets: Path, folder: Path, ended: ExitStack) -> None:
        from tests.postgres import free_port  # pytest wants to load that module first

        self.secrets, self.folder, self._ended = secrets, folder, ended
        self._services: dict[str, Any] = YAML(typ="safe").load(DOCKER / "compose.yaml")["services"]
        self.ports = {name: str(free_port()) for name in PORTS}
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def secret(self, name: str) -> str:
        return (self.secrets / name).read_text(encoding="utf-8")

    def environment(self, service: str) -> dict[str, str]:
        """What compose.yaml gives the service, with the secrets where they are here."""
        mine = re.compile(r"RAY_[A-Z]|MERGESEARCH_STORAGE|OPTUNA_STORAGE")
        kept = {name: value for name, value in os.environ.items() if not mine.match(name)}
        given = self._services[service]["environment"]
        moved = {name: value.replace("/run/secrets", str(self.secrets)) for name, value in given.items()}
        return {**kept, **moved, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}

    def start_program(self, service: str, replaced: dict[str, str], *more: str) -> None:
        """Start the service's command of compose.yaml with other ports and addresses; each of them must be in it."""
        words: list[str] = self._services[service]["command"]
        words = with_changes("\n".join(words), replaced).split("\n")
        self.start(service, [*PROGRAMS[words[0]], *words[1:], *more], self.environment(service))

    def start(self, service: str, command: list[str], environment: dict[str, str] | None = None) -> None:
        """Start it in the background; it ends, with all that it has started, when the topology does."""
        with (self.folder / f"{service}.log").open("wb") as file:
            process = self._running[service] = subprocess.Popen(
                command, cwd=self.folder, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file
            )
        self._ended.callback(end, process)

    def run(self, program: str, *arguments: str, **changed: str) -> subprocess.CompletedProcess[str]:
        """A program where coordinators live: on Ray's head, with its environment."""
        return subprocess.run(
            [*PROGRAMS[program], *arguments],
            cwd=self.folder,
            env=self.environment("ray-head") | changed,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
        )

    def moved(self, file: Path, replaced: dict[str, str]) -> Path:
        """A copy of a configuration file with other ports and paths; each of them must be in it."""
        copy = self.folder / file.name
        copy.write_text(with_changes(file.read_text(encoding="utf-8"), replaced), encoding="utf-8")
        return copy

    def wait_for(self, service: str, port: str) -> None:
        """Until somebody listens at the port; fails with the service's log."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", int(self.ports[port])), timeout=10):
                return
            ended = self._running[service].poll() is not None or time.monotonic() > deadline
            assert not ended, (self.folder / f"{service}.log").read_text()
            time.sleep(0.05)

    def ask(self, method: str, path: str, *, password: str | None = None, **headers: str) -> tuple[int, bytes]:
        """One request to the proxy with these headers and no others (`Sec_Fetch_Site` is Sec-Fetch-Site)."""
        connection = http.client.HTTPConnection("127.0.0.1", int(self.ports["proxy"]), timeout=PATIENCE_SECONDS)
        try:
            connection.putrequest(method, path, skip_accept_encoding=True)
            if password is not None:
                both = base64.b64encode(f"{USER}:{password}".encode()).decode()
                connection.putheader("Authorization", f"Basic {both}")
            for name, value in headers.items():
                connection.putheader(name.replace("_", "-"), value)
            connection.endheaders()
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()


def with_changes(text: str, replaced: dict[str, str]) -> str:
    """All at once: a new port may hold the digits of another old one."""
    missing = [old for old in replaced if old not in text]
    assert not missing, f"{missing} is not in:\n{text}"
    return re.sub("|".join(map(re.escape, replaced)), lambda found: replaced[found[0]], text)


def end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM to the process; what it has started and left behind is killed."""
    with suppress(psutil.NoSuchProcess):
        family = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=30)
        for left in family:
            with suppress(psutil.NoSuchProcess):
                left.kill()
    process.kill()
    process.wait()


def start_ray(made: Topology, folder: Path) -> None:
    """Head and worker; both on this machine, so neither may insist on the ports that Ray is used to."""
    ports = made.ports
    apart = ["--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0"]
    head = {"6379": ports["gcs"], "0.0.0.0": "127.0.0.1", "8265": ports["ray"], "8090": ports["head-metrics"]}
    made.start_program("ray-head", head, f"--temp-dir={folder}", *apart)
    made.wait_for("ray-head", "gcs")
    worker = {
        "ray-head:6379": f"127.0.0.1:{ports['gcs']}",
        "${RAY_WORKER_CPUS:-2}": "2",
        "8090": ports["worker-metrics"],
    }
    made.start_program("ray-worker", worker, *apart)


def start_dashboard(made: Topology) -> None:
    made.start_program("dashboard", {"0.0.0.0": "127.0.0.1", "8080": made.ports["dashboard"]})


def start_proxy(made: Topology, nginx: str) -> None:
    replaced = {
        "/tmp/": f"{made.folder}/",
        "listen 8000": f"listen 127.0.0.1:{made.ports['proxy']}",
        "dashboard:8080": f"127.0.0.1:{made.ports['dashboard']}",
        "/run/secrets": str(made.secrets),
    }
    configuration = made.moved(DOCKER / "nginx.conf", replaced)
    # In the container it never is root; here it might be, and would then give its workers to an account without rights.
    same_account = "user root; " if os.geteuid() == 0 else ""
    made.start("proxy", [nginx, "-c", str(configuration), "-e", "stderr", "-g", f"{same_account}daemon off;"])
    made.wait_for("proxy", "proxy")


def start_prometheus(made: Topology, prometheus: str) -> None:
    replaced = {
        "ray-head:8265": f"127.0.0.1:{made.ports['ray']}",
        "/run/secrets": str(made.secrets),
        "15s": "1s",
    }
    configuration = made.moved(ROOT / "dashboards" / "prometheus.yml", replaced)
    options = [f"--config.file={configuration}", f"--storage.tsdb.path={made.folder / 'prometheus'}"]
    made.start("prometheus", [prometheus, *options, f"--web.listen-address=127.0.0.1:{made.ports['prometheus']}"])
    made.wait_for("prometheus", "prometheus")
