"""The controller when trials fail, workers die, and the process is interrupted: every trial ends once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mergesearch import session
from mergesearch.controller import (
    ALLOWED_INTERRUPTIONS,
    MAX_FAILURES_IN_A_ROW,
)
from mergesearch.errors import WorkerError
from mergesearch.session import Workers, open_store, run_study
from mergesearch.workers.evaluator_spec import BatchProgress, EvaluatorSpec
from mergesearch.workers.pool import Outcome, Task
from tests.controller_toys import Bench, Diary, ScriptedPool, check_ended, dying, failing, scored

pytest_plugins = ["tests.controller_fixtures"]


@pytest.mark.parametrize(
    "strategy",
    [
        {"name": "grid"},
        {"name": "random"},
        {"name": "tpe", "n_startup_trials": 3},
        {"name": "cmaes", "population_size": 4},
        {"name": "evolution", "population_size": 4},
    ],
    ids=lambda s: s["name"],
)
def test_every_trial_ends_once_whatever_fails(bench: Bench, strategy: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)

    def script(task: Task, attempt: int) -> Outcome:
        fate = rng.random()
        return dying(task, attempt) if fate < 0.2 else failing(task, attempt) if fate < 0.3 else scored(task, attempt)

    bench = bench.with_search(strategy=strategy, trials=9, retries=1)
    pool = ScriptedPool(3, script)
    summary = bench.drive(pool)
    check_ended(bench, pool)
    states = Counter(state for _, state, _, _ in bench.table())
    assert states["COMPLETE"] == summary.evaluated + summary.reused
    assert states["FAIL"] == summary.failed
    assert all(n <= 2 for n in pool.attempts.values())
    assert summary.evaluated == 9 or "exhausted" in summary.reason


def test_a_grid_ends_with_every_point_although_many_build_no_merge(bench: Bench) -> None:
    def script(task: Task, attempt: int) -> Outcome:
        first = task.recipe.groups[1].coefficients["weight"]
        if first["domain"] == 0 and first["retriever"] == 1:  # a third of the grid, one after the other
            return Outcome(task, "scripted", failure="weights sum to zero", recipe_at_fault=True)
        return scored(task, attempt)

    bench = bench.with_search(strategy={"name": "grid"}, enqueue=[])
    pool = ScriptedPool(script=script)
    summary = bench.drive(pool)
    check_ended(bench, pool)
    complete = {tuple(p.values()) for _, state, p, _ in bench.table() if state == "COMPLETE"}
    assert len(complete) == 6
    assert summary.failed == 3 * 2 > MAX_FAILURES_IN_A_ROW


def test_a_grid_ends_with_every_point_although_none_can_be_scored(bench: Bench) -> None:
    """Once as workers report it, once as the database finds it in the scores."""

    def script(task: Task, attempt: int) -> Outcome:
        good = scored(task, attempt)
        if attempt % 2 or good.result is None:
            return Outcome(task, "scripted", failure="embeddings hold NaN", recipe_at_fault=True)
        broken = replace(good.result.collections[0], scores=np.full(3, np.nan))
        return replace(good, result=replace(good.result, collections=(broken,)))

    bench = bench.with_search(strategy={"name": "grid"}, enqueue=[])
    pool = ScriptedPool(script=script)
    pool.attempts.update(range(0, 100, 2))
    summary = bench.drive(pool)
    check_ended(bench, pool)
    assert len({tuple(p.values()) for _, _, p, _ in bench.table()}) == 9
    assert (summary.failed, summary.evaluated) == (9 * 2, 0)


def test_a_dead_workers_trial_goes_to_another_worker_and_ends_once(bench: Bench) -> None:
    bench = bench.with_search(strategy="grid", retries=2)
    pool, diary = ScriptedPool(2, lambda t, n: dying(t, n) if t.number == 1 and n < 3 else scored(t, n)), Diary()
    bench.drive(pool, diary)
    check_ended(bench, pool)
    assert pool.attempts[1] == 3
    assert [h[3] for h in diary.heard if h[0] == "failed"] == [True, True]
    assert all(state == "COMPLETE" for _, state, _, _ in bench.table())


def test_a_trial_that_kills_its_workers_fails_with_what_was_seen(bench: Bench) -> None:
    bench = bench.with_search(strategy="random", trials=4, retries=1)
    pool = ScriptedPool(1, lambda t, n: dying(t, n) if t.number == 0 else scored(t, n))
    bench.drive(pool)
    check_ended(bench, pool)
    with bench.store() as store:
        reason = store.trials()[0].user_attrs["failure"]
    assert [state for _, state, _, _ in bench.table()] == ["FAIL", *["COMPLETE"] * 4]
    assert "2 workers died" in reason
    assert "signal 9, time 1" in reason
    assert "signal 9, time 2" in reason


def test_a_study_whose_trials_all_fail_stops_and_can_be_gone_on_with(bench: Bench) -> None:
    bench = bench.with_search(strategy="random", trials=4)
    with pytest.raises(WorkerError, match="the disk is gone"):
        bench.drive(ScriptedPool(2, failing))
    pool = ScriptedPool(2)
    summary = bench.drive(pool)
    check_ended(bench, pool)
    states = Counter(state for _, state, _, _ in bench.table())
    assert (states["FAIL"], states["COMPLETE"]) == (MAX_FAILURES_IN_A_ROW, 4)
    assert summary.adopted == 1  # the other worker's


def test_workers_that_failed_a_study_are_not_kept_for_another(bench: Bench) -> None:
    class Kept(ScriptedPool):
        def adapt(self, spec: EvaluatorSpec, progress: BatchProgress | None = None) -> None:
            """It serves any study."""

    workers = Workers()
    workers._pool, workers._fit = Kept(script=failing), session._fit(bench.study)
    with open_store(bench.study, bench.url) as store, pytest.raises(WorkerError, match="trials failed"):
        run_study(bench.study, store, workers=workers)
    assert not workers.make_room(bench.study)


def test_scores_that_are_no_numbers_fail_the_trial(bench: Bench) -> None:
    def script(task: Task, attempt: int) -> Outcome:
        good = scored(task, attempt)
        if task.number != 1 or good.result is None:
            return good
        broken = replace(good.result.collections[0], scores=np.array([0.1, np.nan, 0.2]))
        return replace(good, result=replace(good.result, collections=(broken,)))

    bench = bench.with_search(strategy="random", trials=3)
    bench.drive(ScriptedPool(script=script))
    states = [state for _, state, _, _ in bench.table()]
    assert states == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]


@pytest.mark.parametrize("strategy", ["grid", "cmaes"])
def test_interrupted_anywhere_the_study_becomes_what_it_would_have_been(
    bench: Bench, tmp_path: Path, strategy: str
) -> None:
    bench = bench.with_search(strategy=strategy, trials=8)
    bench.drive(ScriptedPool())
    elsewhere = Bench(bench.study, f"sqlite:///{tmp_path}/interrupted.db")
    rng = np.random.default_rng(5)
    for _ in range(3):
        left = iter(range(int(rng.integers(1, 4))))

        def script(task: Task, attempt: int, left: Iterator[int] = left) -> Outcome:
            if next(left, None) is None:
                raise KeyboardInterrupt
            return scored(task, attempt)

        with pytest.raises(KeyboardInterrupt):
            elsewhere.drive(ScriptedPool(script=script))
    elsewhere.drive(ScriptedPool())
    assert elsewhere.table() == bench.table()


def test_a_trial_that_takes_its_process_along_is_given_up_after_some_resumes(bench: Bench) -> None:
    bench = bench.with_search(strategy="random", trials=4, retries=1)

    def script(task: Task, attempt: int) -> Outcome:
        if task.number == 1:
            raise KeyboardInterrupt
        return scored(task, attempt)

    for _ in range(1 + ALLOWED_INTERRUPTIONS + 1):
        with pytest.raises(KeyboardInterrupt):
            bench.drive(ScriptedPool(script=script))
    pool, diary = ScriptedPool(script=script), Diary()
    summary = bench.drive(pool, diary)
    check_ended(bench, pool)
    assert [state for _, state, _, _ in bench.table()] == ["COMPLETE", "FAIL", *["COMPLETE"] * 3]
    assert (summary.adopted, summary.failed) == (1, 1)
    (reason,) = [h[2] for h in diary.heard if h[0] == "failed"]
    assert "begun 5 times" in reason
