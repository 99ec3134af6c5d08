"""Studies as jobs of a real Ray cluster with token authentication, its dashboard on loopback, and PostgreSQL."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from mergesearch.errors import StudyFileError
from mergesearch.study_file import parse_study
from mergesearch.submitting import MOST_BYTES, pack
from tests.commands import PATIENCE_SECONDS, read_table
from tests.tiny_studies import TinyStudy, copy_study, make_study, mergesearch, write_lines

if TYPE_CHECKING:
    from tests.postgres import PostgresServer

pytest_plugins = ["tests.postgres"]
ROOT = Path(__file__).resolve().parents[2]
TOKEN = "0123456789abcdef0123456789abcdef"
needs_dashboard = pytest.mark.skipif(
    importlib.util.find_spec("aiohttp") is None,
    reason="Ray has no dashboard here: the extra `cluster` is not installed",
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyStudy:
    """A study whose models and collection are named by absolute paths, as on shared storage."""
    study = make_study(tmp_path_factory.mktemp("study")).change("storage", to=None)
    for name in ("retriever", "domain"):
        study.change("sources", name, to=str(study.folder / name))
    return study.change("evaluation", "collections", 0, "folder", to=str(study.folder / "collection"))


@dataclass
class Head:
    """A cluster of one node, and what it takes to talk to it."""

    address: str
    folder: Path
    environment: dict[str, str]
    process: subprocess.Popen[bytes]

    def call(self, *arguments: object, token: str = TOKEN) -> subprocess.CompletedProcess[str]:
        """`mergesearch` on another machine: it knows the cluster's token and no database."""
        return subprocess.run(
            [sys.executable, "-m", "mergesearch", *map(str, arguments), "--address", self.address],
            env={**self.environment, "RAY_AUTH_TOKEN": token},
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_SECONDS,
        )

    def submit(self, study: TinyStudy) -> str:
        done = self.call("submit", study.file)
        assert done.returncode == 0, done.stderr
        return re.findall(r"submitted: (\S+)", done.stdout)[0]


@pytest.fixture(scope="module")
def url_file(postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    postgres_server.execute("CREATE DATABASE jobs")
    file = tmp_path_factory.mktemp("secret") / "url"
    file.write_text(postgres_server.url("jobs") + "\n")
    file.chmod(0o600)
    return file


@pytest.fixture(scope="module")
def head(url_file: Path) -> Iterator[Head]:
    from tests.postgres import free_port

    known = {k: v for k, v in os.environ.items() if not k.startswith(("MERGESEARCH_STORAGE", "OPTUNA_STORAGE", "RAY_"))}
    environment = {
        **known,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "RAY_AUTH_MODE": "token",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    ports = {
        name: free_port() for name in ("port", "dashboard-port", "dashboard-agent-listen-port", "metrics-export-port")
    }
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # sockets lie in it, whose names may not be long
    options = {**ports, "dashboard-host": "127.0.0.1", "node-ip-address": "127.0.0.1", "temp-dir": folder}
    options |= {"num-cpus": 2, "object-store-memory": 128 << 20, "ray-client-server-port": free_port()}
    options |= {"min-worker-port": 0, "max-worker-port": 0}  # any that is free
    with (folder / "start.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
            + [f"--{name}={value}" for name, value in options.items()],
            env={**environment, "RAY_AUTH_TOKEN": TOKEN, "MERGESEARCH_STORAGE_FILE": str(url_file)},
            stdout=log,
            stderr=log,
        )
    started = psutil.Process(process.pid)
    address = f"http://127.0.0.1:{ports['dashboard-port']}"
    try:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not answers(address):
            assert process.poll() is None, (folder / "start.log").read_text()
            assert time.monotonic() < deadline, (folder / "start.log").read_text()
            time.sleep(0.2)
        yield Head(address, folder, environment, process)
    finally:
        family = started.children(recursive=True) if started.is_running() else []
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE_SECONDS)
        for left in psutil.wait_procs(family, timeout=60)[1]:
            left.kill()
        shutil.rmtree(folder, ignore_errors=True)


def answers(address: str) -> bool:
    try:
        urllib.request.urlopen(f"{address}/api/version", timeout=5)
    except urllib.error.HTTPError as error:
        return error.code == 401  # it is there, and asks for the token
    except OSError:
        return False
    raise AssertionError("a cluster with token authentication answered without one")


@pytest.mark.slow
@needs_dashboard
@pytest.mark.timeout(1200)
def test_a_study_runs_on_the_cluster_and_its_password_stays_at_home(
    head: Head, tiny: TinyStudy, url_file: Path, tmp_path: Path, postgres_server: PostgresServer
) -> None:
    study = copy_study(tiny, tmp_path / "study").change("storage", to=None)
    denied = head.call("submit", study.file, token="fedcba9876543210fedcba9876543210")
    assert denied.returncode == 5
    assert "RAY_AUTH_TOKEN" in denied.stderr

    job = head.submit(study)
    followed = head.call("jobs", "logs", "--follow", job)
    assert followed.returncode == 0, followed.stdout + followed.stderr
    assert "all 5 trials are done: 5 evaluated" in followed.stdout
    assert head.call("jobs", "logs", job).stdout.endswith(followed.stdout[-200:])
    (listed,) = json.loads(head.call("jobs", "list", "-f", "json").stdout)
    assert (listed["name"], listed["study"], listed["state"]) == (job, "tiny", "SUCCEEDED")

    url = url_file.read_text().strip()
    assert mergesearch("run", study.file, "--storage", f"sqlite:///{tmp_path}/here.db").code == 0
    assert read_table(url) == read_table(f"sqlite:///{tmp_path}/here.db")

    endless = study.change("study", to="endless").change("search", to={"strategy": "random", "minutes": 600})
    endless.change("merge", "coefficients", to={"alpha": {"low": 0, "high": 1}})
    job = head.submit(endless)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while "trial   3" not in (printed := head.call("jobs", "logs", job).stdout):
        assert time.monotonic() < deadline, printed
    family = psutil.Process(head.process.pid).children(recursive=True)
    secrets = [s.encode() for s in (postgres_server.password, postgres_server.encoded_password)]
    for process in family:
        for name in ("cmdline", "environ"):
            try:
                text = Path(f"/proc/{process.pid}/{name}").read_bytes()
            except OSError:  # it has ended
                continue
            assert not any(secret in text for secret in secrets), (name, process)
    assert head.call("jobs", "stop", job).stdout == "asked to stop\n"
    while head.call("jobs", "logs", "--follow", job).returncode and time.monotonic() < deadline:
        time.sleep(0.1)
    states = {j["study"]: j["state"] for j in json.loads(head.call("jobs", "list", "-f", "json").stdout)}
    assert states == {"tiny": "SUCCEEDED", "endless": "STOPPED"}
    assert len(read_table(url, "endless")) >= 4
    for file in head.folder.rglob("*"):
        if file.is_file() and not file.is_symlink():
            content = file.read_bytes()
            assert not any(secret in content for secret in secrets), file


def test_what_would_not_be_there_is_refused_all_at_once(tiny: TinyStudy, tmp_path: Path) -> None:
    study = copy_study(tiny, tmp_path / "study").change("storage", to="postgresql://me:s3cret@db/studies")
    study.change("sources", "domain", to="./domain").change("sources", "third", to="retriever")
    study.change("artifacts", to="kept")
    study.change("evaluation", "collections", 0, "folder", to="collection")
    study.change("evaluation", "collections", 0, "test", to={"folder": "~/other"})
    study.change("merge", "examples", to={"file": "../examples.jsonl"})
    with pytest.raises(StudyFileError) as refused:
        pack(parse_study(study.file), tmp_path)
    told = str(refused.value)
    for text in ("'./domain'", "'retriever'", "'kept'", "'collection'", "'~/other'", "'../examples.jsonl'", "password"):
        assert text in told
    assert "7 problems" in told
    assert "s3cret" not in told
    answer = mergesearch("submit", make_study(tmp_path / "local").file, "--address", "http://127.0.0.1:1")
    assert answer.code == 2
    assert "3 problems" in answer.err  # two models and a collection


def test_a_password_in_a_comment_does_not_travel(tiny: TinyStudy, tmp_path: Path) -> None:
    study = copy_study(tiny, tmp_path / "study")
    lines = study.file.read_text().splitlines()
    study.file.write_text("\n".join([*lines, "# storage: postgresql://me:s3cret@db/studies", ""]))
    with pytest.raises(StudyFileError, match=rf"password may not travel \(line {len(lines) + 1}\)") as refused:
        pack(parse_study(study.file), tmp_path)
    assert "s3cret" not in str(refused.value)
    assert not (tmp_path / "study.yaml").exists()


def test_a_file_of_examples_travels_and_a_large_one_does_not(tiny: TinyStudy, tmp_path: Path) -> None:
    study = copy_study(tiny, tmp_path / "study").change("storage", to=None)
    study.change("merge", "examples", to={"file": "few/examples.jsonl"})
    (study.folder / "few").mkdir()
    write_lines(study.folder / "few" / "examples.jsonl", [{"query": "q", "pos": ["d"], "neg": ["e"]}])
    (tmp_path / "packed").mkdir()
    pack(parse_study(study.file), tmp_path / "packed")
    packed = {str(f.relative_to(tmp_path / "packed")): f for f in (tmp_path / "packed").rglob("*") if f.is_file()}
    assert packed.keys() == {"study.yaml", "few/examples.jsonl"}
    assert packed["study.yaml"].read_bytes() == study.file.read_bytes()
    (study.folder / "few" / "examples.jsonl").write_bytes(b" " * (MOST_BYTES + 1))
    with pytest.raises(StudyFileError, match="10 MiB"):
        pack(parse_study(study.file), tmp_path / "packed")


def test_a_password_or_an_unknown_option_of_run_does_not_travel(tiny: TinyStudy) -> None:
    url = "postgresql://me:s3cret@db/studies"
    answer = mergesearch("submit", tiny.file, "--", "--storage", url)
    assert answer.code == 4
    assert "MERGESEARCH_STORAGE_FILE" in answer.err
    assert "s3cret" not in answer.err + answer.out
    assert mergesearch("submit", tiny.file, "--", "--trails", "4").code == 2


def test_a_job_refuses_a_database_that_goes_with_its_machine(tiny: TinyStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("MERGESEARCH_STORAGE", "MERGESEARCH_STORAGE_FILE", "OPTUNA_STORAGE"):
        monkeypatch.delenv(variable, raising=False)
    answer = mergesearch("run", tiny.file, "--shared")
    assert answer.code == 4
    assert "sqlite:///tiny.db" in answer.err
    assert "MERGESEARCH_STORAGE" in answer.err


@pytest.mark.skipif(importlib.util.find_spec("aiohttp") is not None, reason="the extra `cluster` is installed")
def test_without_the_dashboard_the_extra_is_named() -> None:
    answer = mergesearch("jobs", "list")
    assert answer.code == 5
    assert "mergesearch[cluster]" in answer.err


@needs_dashboard
def test_where_nobody_answers_the_address_is_named() -> None:
    answer = mergesearch("jobs", "list", "--address", "http://127.0.0.1:1")
    assert answer.code == 5
    assert "http://127.0.0.1:1: no Ray dashboard answers" in answer.err
