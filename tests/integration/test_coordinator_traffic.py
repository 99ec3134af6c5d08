"""What a trial costs the database, counted; how long it takes is measured in tests/benchmarks/coordinator.py."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import optuna
import pytest
import sqlalchemy as sa

from mergesearch import controller
from mergesearch.controller import Controller
from mergesearch.listener import Listener
from mergesearch.session import open_store
from mergesearch.storage import store as storage_store
from mergesearch.storage.engine import Database
from tests.benchmarks.coordinator_study import AtOnce, fill, study_of, with_search
from tests.storage_helpers import open_store as open_recorded
from tests.storage_optuna import check_reading

if TYPE_CHECKING:
    from tests.benchmarks.traffic import Traffic

pytest_plugins = ["tests.postgres"]


def drive(tmp_path: Path, url: str, recorded: int, trials: int) -> Traffic:
    """What so many trials send after so many that are recorded, beginning and end of the study left out."""
    from tests.benchmarks.traffic import traced

    study = study_of(tmp_path / str(recorded), dimensions=4, strategy="tpe", trials=1, enqueue=[])
    fill(study, url, recorded)
    tracing = traced()

    def turn(answers: int) -> None:
        nonlocal traffic
        if answers == 5:
            traffic = tracing.__enter__()
        elif answers == 5 + trials:
            tracing.__exit__(None, None, None)

    traffic = None
    study = with_search(study, strategy="tpe", trials=recorded + trials + 10, enqueue=[])
    with open_store(study, url) as store:
        Controller(study, store, AtOnce(3, turn), Listener()).run()
    assert traffic is not None
    return traffic


@pytest.mark.parametrize("recorded", [0, 300])
def test_a_trial_is_two_writing_transactions(
    tmp_path: Path, postgres_url: str, recorded: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that begins it and one that ends it, and a third that reads what others did."""
    monkeypatch.setenv("MERGESEARCH_LEASE_SECONDS", "86400")  # no heartbeat meanwhile, however slow the machine is
    monkeypatch.setattr(controller, "POLL_SECONDS", 86400.0)
    trials = 12
    traffic = drive(tmp_path, postgres_url, recorded, trials)
    assert (traffic.writing, traffic.transactions) == (2 * trials, 3 * trials)
    assert traffic.round_trips <= 32 * trials


def test_trials_are_what_optuna_reads(postgres_url: str) -> None:
    storage = Database.parse(postgres_url).optuna_storage(create_tables=True)
    study_id = storage.create_new_study([optuna.study.StudyDirection.MAXIMIZE], "study")
    check_reading(storage, study_id)
    storage.remove_session()
    storage.engine.dispose()


def test_one_turn_at_a_time_but_nobody_waits_for_long(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    happened: list[str] = []

    def take_turn() -> None:
        with other.turn():
            happened.append("other's turn")

    with open_recorded(postgres_url) as store, open_recorded(postgres_url) as other:
        with store.turn():
            waiting = threading.Thread(target=take_turn)
            waiting.start()
            waits = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
            with store._storage.engine.connect() as connection:
                while not connection.execute(sa.text(waits)).scalar_one() and waiting.is_alive():
                    time.sleep(0.01)
            happened.append("end of the first")
        waiting.join()
        assert happened == ["end of the first", "other's turn"]
        monkeypatch.setattr(storage_store, "TURN_SECONDS", 1)
        with store.turn():
            take_turn()
