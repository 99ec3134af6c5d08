"""Starting from another study, in PostgreSQL: what SQLite does, and several coordinators at once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from mergesearch import controller
from mergesearch.controller import Controller
from mergesearch.evaluation.result import IMPORTED_ATTR
from mergesearch.session import open_store
from tests.controller_toys import Diary, ScriptedPool
from tests.starting_suite import StartSuite
from tests.starting_toys import COARSE, finer, make_layers, scored, start, violations
from tests.tiny_studies import TinyStudy

pytest_plugins = ["tests.postgres"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> TinyStudy:
    return make_layers(tmp_path_factory.mktemp("study"))


@pytest.fixture
def url(postgres_url: str) -> str:
    return postgres_url


class TestPostgres(StartSuite):
    pass


def test_several_coordinators_start_at_once(made: TinyStudy, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controller, "POLL_SECONDS", 0.05)
    scored(made, url)
    study = finer(made, "finer", trials=6)
    pools = [ScriptedPool(2, seed=i) for i in range(3)]
    together = threading.Barrier(len(pools))

    def drive(pool: ScriptedPool) -> int:
        with open_store(study, url) as store:
            together.wait()
            start(study, store)
            return Controller(study, store, pool, Diary()).run().evaluated

    with ThreadPoolExecutor(len(pools)) as executor:
        evaluated = sum(executor.map(drive, pools))
    with open_store(study, url) as store, store.beside("tiny") as coarse:
        trials = store.trials()
        assert [t.number for t in trials] == list(range(len(trials)))
        # Before any trial of its own each saw all that came over; another may still have been looking.
        assert sum(IMPORTED_ATTR in t.user_attrs for t in trials) == COARSE
        assert len({t.user_attrs["recipe"] for t in trials}) == len(trials) == COARSE + evaluated
        assert evaluated == 6
        assert [event for _, event, _ in store.history()] == ["started from another study"]
        imported = [v for v in violations(study, store, coarse) if "where from" not in v]
        assert imported == []
