"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from tests.tiny_studies import TinyStudy

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Models here weigh kilobytes: threads that wait for each other cost more than they bring.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Ray on a machine that others fill up: its workers get their share of it, and none ends that nobody killed; and who
# died of what is waited for, until Ray would otherwise say no more than "unavailable".
os.environ.setdefault("RAY_worker_niceness", "0")
os.environ.setdefault("RAY_memory_monitor_refresh_ms", "0")
os.environ.setdefault("RAY_worker_register_timeout_seconds", "300")
os.environ.setdefault("RAY_timeout_ms_task_wait_for_death_info", "100000")

# The same examples everywhere, and as much time for each as a loaded machine takes.
settings.register_profile(
    "tests", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True, database=None
)
settings.load_profile("tests")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of judged collections, where the checkout has one beside it."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no folder ../shared/data with judged collections beside this checkout")
    return folder


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests neither read nor fill the user's cache."""
    os.environ["MERGESEARCH_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def grid_study(tmp_path_factory: pytest.TempPathFactory, _own_cache: None) -> TinyStudy:
    """A tiny grid over two segments that was run to its end. Only to be read: whoever changes it takes a copy."""
    from mergesearch import load_study, open_store, run_study
    from tests.tiny_studies import make_study

    made = make_study(tmp_path_factory.mktemp("grid"))
    made.change("search", "strategy", to={"name": "grid"}).change("search", "trials", to=None)
    study = load_study(made.file)
    with open_store(study) as store:
        run_study(study, store)
    return made
