"""Optuna's own tools read a study as it is."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults

import optuna
import optuna_dashboard
import pytest

from tests.storage_helpers import begin, open_store, result


@pytest.fixture
def url(tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path}/study.db"
    with open_store(url) as store:
        for seed, alpha in enumerate((0.1, 0.4, 0.9)):
            store.finish(begin(store, alpha, f"t{seed}", anchor="uniform"), result(seed))
        store.fail(begin(store, 0.5, "failed"), "out of memory")
        begin(store, 0.6, "running")
    return url


def best() -> int:
    return max(range(3), key=lambda seed: result(seed).value)


def test_best_trial_of_the_command_line(url: str) -> None:
    command = ["best-trial", "--storage", url, "--study-name", "study", "-f", "json"]
    done = subprocess.run(
        [Path(sys.executable).with_name("optuna"), *command], capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr
    trial = json.loads(done.stdout)
    assert trial["number"] == best()
    assert trial["value"] == result(best()).value
    assert trial["params"] == {"alpha.segment_1": (0.1, 0.4, 0.9)[best()]}


def test_the_library_reads_it(url: str) -> None:
    study = optuna.load_study(study_name="study", storage=url)
    assert study.best_value == result(best()).value
    assert study.direction == optuna.study.StudyDirection.MAXIMIZE
    assert study.user_attrs["study_file"] == "study: study\n"
    study._storage.remove_session()
    study._storage._backend.engine.dispose()  # type: ignore[attr-defined]


def test_the_dashboard_shows_trials_values_and_attributes(url: str) -> None:
    storage = optuna.storages.RDBStorage(url)
    application = optuna_dashboard.wsgi(storage)
    (study,) = get(application, "/api/studies")["study_summaries"]
    assert study["study_name"] == "study"
    trials = get(application, f"/api/studies/{study['study_id']}")["trials"]
    assert [t["state"] for t in trials] == ["Complete", "Complete", "Complete", "Fail", "Running"]
    assert [t["values"][0] for t in trials[:3]] == [result(seed).value for seed in range(3)]
    assert {p["name"] for p in trials[0]["params"]} == {"alpha.segment_1"}
    attributes = {a["key"]: a["value"] for a in trials[0]["user_attrs"]}
    assert {"recipe", "tokens", "worker", "seconds_encode", "scores", "anchor"} <= set(attributes)
    storage.remove_session()
    storage.engine.dispose()


def get(application: Any, path: str) -> Any:
    """One GET request to a WSGI application, without a server."""
    environ: dict[str, Any] = {"PATH_INFO": path, "wsgi.input": io.BytesIO()}
    setup_testing_defaults(environ)
    status: list[str] = []
    body = b"".join(application(environ, lambda code, headers, error=None: status.append(code)))
    assert status == ["200 OK"], body
    return json.loads(body)
