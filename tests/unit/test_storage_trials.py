from __future__ import annotations

from pathlib import Path

import optuna
import pytest

from mergesearch.storage import trials
from mergesearch.storage.trials import Trials
from tests.storage_optuna import check_reading


@pytest.fixture
def storage(tmp_path: Path) -> optuna.storages.RDBStorage:
    return optuna.storages.RDBStorage(f"sqlite:///{tmp_path}/study.db")


def test_trials_are_what_optuna_reads(storage: optuna.storages.RDBStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "TRIALS_AT_ONCE", 3)
    other = storage.create_new_study([optuna.study.StudyDirection.MAXIMIZE], "other")
    study_id = storage.create_new_study([optuna.study.StudyDirection.MAXIMIZE], "study")
    storage.create_new_trial(other)
    check_reading(storage, study_id)
    storage.engine.dispose()


def test_a_study_that_was_deleted_is_missed(storage: optuna.storages.RDBStorage) -> None:
    study_id = storage.create_new_study([optuna.study.StudyDirection.MAXIMIZE], "study")
    followed = Trials(storage.engine, study_id)
    assert followed.read() == []
    storage.create_new_trial(study_id)
    assert len(followed.read()) == 1
    storage.delete_study(study_id)
    with pytest.raises(KeyError):
        followed.read()
    storage.engine.dispose()
