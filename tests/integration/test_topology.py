"""What docker/compose.yaml brings up, on this machine without containers, and one study in it.

PostgreSQL, a Ray head and a Ray worker with token authentication, optuna-dashboard with nginx before it, Prometheus.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mergesearch.workers.metrics import METRICS
from tests.commands import Row, read_table
from tests.integration.topology import (
    DOCKER,
    PATIENCE_SECONDS,
    Topology,
    start_dashboard,
    start_prometheus,
    start_proxy,
    start_ray,
)
from tests.tiny_studies import make_study

if TYPE_CHECKING:
    from tests.postgres import PostgresServer

pytest_plugins = ["tests.postgres"]

pytestmark = pytest.mark.slow

TRIALS = 6


def installed(program: str, package: str) -> str:
    found = shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin")
    if found is None:
        pytest.skip(f"{program} is not installed (Debian: {package})")
    return found


@pytest.fixture(scope="module")
def topology(postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Topology]:
    nginx = installed("nginx", "nginx-light")
    installed("openssl", "openssl")
    secrets = tmp_path_factory.mktemp("secrets")
    subprocess.run(["sh", DOCKER / "make-secrets.sh", secrets], check=True, capture_output=True, timeout=500)
    postgres_server.execute("CREATE DATABASE topology")
    (secrets / "storage_url").unlink()
    (secrets / "storage_url").write_text(postgres_server.url("topology"))
    with ExitStack() as ended:
        ended.callback(postgres_server.execute, "DROP DATABASE topology WITH (FORCE)")
        # Ray's sockets lie in it, and their paths may have 107 characters: pytest's folders are too deep.
        sockets = Path(tempfile.mkdtemp(prefix="ray-"))
        ended.callback(shutil.rmtree, sockets, ignore_errors=True)
        made = Topology(secrets, tmp_path_factory.mktemp("topology"), ended)
        start_dashboard(made)
        start_proxy(made, nginx)
        start_ray(made, sockets)
        yield made


@pytest.fixture(scope="module")
def table(topology: Topology) -> list[Row]:
    """The trials of the one study that is run here, as the database has them."""
    study = make_study(topology.folder / "study")
    study.change("storage", to=None).change("search", to={"strategy": "grid", "trials": TRIALS})
    done = topology.run(
        "mergesearch", "run", str(study.file), f"--address=127.0.0.1:{topology.ports['gcs']}", "--count=1"
    )
    assert done.returncode == 0, done.stderr
    return read_table(topology.secret("storage_url"))


@pytest.fixture(scope="module")
def password(topology: Topology) -> str:
    topology.wait_for("dashboard", "dashboard")
    return topology.secret("dashboard_password")


def api(topology: Topology, path: str, password: str) -> Any:
    status, body = topology.ask("GET", path, password=password)
    assert status == 200, body
    return json.loads(body)


def test_a_study_on_the_cluster_is_recorded(table: list[Row]) -> None:
    assert [state for _, state, *_ in table] == ["COMPLETE"] * TRIALS


def test_ray_refuses_a_wrong_token(topology: Topology) -> None:
    wrong = topology.folder / "wrong_token"
    wrong.write_text("0" * 64)
    address = f"--address=127.0.0.1:{topology.ports['gcs']}"
    assert topology.run("ray", "status", address).returncode == 0
    refused = topology.run("ray", "status", address, RAY_AUTH_TOKEN_PATH=str(wrong))
    assert refused.returncode != 0
    assert "InvalidAuthToken" in refused.stderr


@pytest.mark.parametrize("stranger", [None, "guess"])
@pytest.mark.parametrize("path", ["/dashboard/", "/static/bundle.js", "/api/studies"])
def test_the_proxy_refuses_whoever_does_not_know_the_password(
    topology: Topology, path: str, stranger: str | None
) -> None:
    for method in ("GET", "POST", "DELETE"):
        assert topology.ask(method, path, password=stranger)[0] == 401
    assert topology.ask("GET", "/-/healthy")[0] == 200


def test_the_proxy_serves_the_page_and_its_script(topology: Topology, password: str) -> None:
    """Without an Accept-Encoding header, which the dashboard alone answers with an error."""
    status, page = topology.ask("GET", "/dashboard/", password=password)
    assert status == 200
    (script,) = re.findall(r'src="(/static/[^"]+\.js)"', page.decode())
    status, text = topology.ask("GET", script, password=password)
    assert status == 200
    assert b"function" in text


def test_the_dashboard_shows_the_study(topology: Topology, password: str, table: list[Row]) -> None:
    (summary,) = api(topology, "/api/studies", password)["study_summaries"]
    assert summary["study_name"] == "tiny"
    trials = api(topology, f"/api/studies/{summary['study_id']}", password)["trials"]
    assert [(t["number"], t["values"][0]) for t in trials] == [(number, value) for number, _, _, value, _ in table]


def test_pages_of_other_sites_cannot_delete_a_study(topology: Topology, password: str, table: list[Row]) -> None:
    """Though the browser that shows them knows the password."""
    (summary,) = api(topology, "/api/studies", password)["study_summaries"]
    path = f"/api/studies/{summary['study_id']}"
    for site in ("cross-site", "same-site"):
        assert topology.ask("DELETE", path, password=password, Sec_Fetch_Site=site)[0] == 403
    assert len(api(topology, "/api/studies", password)["study_summaries"]) == 1
    # What stops it is where the request comes from: to a study that is not there the dashboard itself says no.
    assert topology.ask("DELETE", "/api/studies/999", password=password, Sec_Fetch_Site="same-origin")[0] == 404


def test_prometheus_finds_every_node_and_what_its_workers_emit(topology: Topology, table: list[Row]) -> None:
    prometheus = installed("prometheus", "prometheus")
    if importlib.util.find_spec("aiohttp_cors") is None:
        pytest.skip("Ray without its dashboard exports no metrics (pip: ray[default])")
    start_prometheus(topology, prometheus)
    deadline = time.monotonic() + PATIENCE_SECONDS
    wanted = {topology.ports["head-metrics"], topology.ports["worker-metrics"]}
    while True:
        found = {sample["metric"]["instance"].rpartition(":")[2] for sample in ask(topology, "up == 1")}
        trials = ask(topology, 'sum(ray_mergesearch_trials_total{study="tiny", outcome="complete"})')
        if wanted <= found and trials and float(trials[0]["value"][1]) == TRIALS:
            break
        assert time.monotonic() < deadline, (wanted, found, trials)
        time.sleep(0.2)
    emitted = {sample["metric"]["__name__"] for sample in ask(topology, '{__name__=~"ray_mergesearch_.+"}')}
    # No GPU, memory that sufficed, no prefix that was looked for: counters of nothing are not there.
    absent = ("gpu_memory", "out_of_memory", "prefix")
    assert {m.exported for m in METRICS if not any(word in m.name for word in absent)} <= emitted


def ask(topology: Topology, query: str) -> list[dict[str, Any]]:
    """What Prometheus answers to a PromQL query."""
    url = f"http://127.0.0.1:{topology.ports['prometheus']}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
    with urllib.request.urlopen(url, timeout=PATIENCE_SECONDS) as response:
        result: list[dict[str, Any]] = json.load(response)["data"]["result"]
        return result
