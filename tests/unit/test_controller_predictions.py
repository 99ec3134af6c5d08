"""The controller and a strategy that predicts, with several workers: what happens while a prediction is worked out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mergesearch.controller import Controller
from mergesearch.resolving import load_study
from mergesearch.session import open_store
from mergesearch.workers.pool import Outcome, Task
from tests.controller_toys import Bench, Diary, PredictingPool, check_ended, scored
from tests.tiny_studies import TinyStudy, make_study

SEARCH = {
    "strategy": {"name": "embedding_surrogate", "initial": "one_hot", "candidates": 64, "patience": 50, "batch": 2},
    "trials": 8,
}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    tiny = make_study(tmp_path / "study").change("search", to=SEARCH)
    tiny.change("merge", "coefficients", to={"alpha": {"low": 0, "high": 1, "step": 0.1}})
    return Bench(load_study(tiny.file), f"sqlite:///{tmp_path}/study.db")


@pytest.mark.parametrize("interrupted", [5, 6, 7])
def test_a_trial_that_ends_during_a_prediction_does_not_end_the_study(bench: Bench, interrupted: int) -> None:
    def script(task: Task, attempt: int) -> Outcome:
        if task.number == interrupted:
            raise KeyboardInterrupt
        return scored(task, attempt)

    with pytest.raises(KeyboardInterrupt):
        bench.drive(PredictingPool(1, script))
    # One worker takes the trial over, the other is idle: the prediction that the trial came from is asked again.
    pool = PredictingPool(2)
    assert bench.drive(pool).reason == "all 8 trials are done"
    assert len(bench.table()) == 8
    check_ended(bench, pool)


def test_sources_outside_of_the_space_are_what_gains_are_measured_against(bench: Bench, tmp_path: Path) -> None:
    tiny = TinyStudy(tmp_path / "study")
    tiny.change("merge", "coefficients", to={"alpha": {"low": 0.2, "high": 0.8, "step": 0.1}})
    bench, pool = Bench(load_study(tiny.file), bench.url), PredictingPool()
    bench.drive(pool)
    with bench.store() as store:
        alone = [str(t.number) for t in store.trials() if "source_alone" in t.user_attrs]
        for task in pool.asked:
            assert list(task.screening.references) == list(task.outside) == alone
            for key in alone:
                result = store.result(int(key))
                assert result is not None
                np.testing.assert_array_equal(task.outside[key], result.collections[0].scores)


@pytest.mark.parametrize("workers", [2, 3])
def test_a_worker_that_died_of_a_prediction_is_given_no_trial(bench: Bench, workers: int) -> None:
    pool = PredictingPool(workers, deadly=True)
    with open_store(bench.study, bench.url) as store:
        Controller(bench.study, store, pool, Diary()).run()
    assert len(pool.asked) >= 4
    assert len(bench.table()) == 8
    check_ended(bench, pool)
