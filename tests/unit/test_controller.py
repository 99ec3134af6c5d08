"""The controller against a real database and workers that do what a script says: what it owes others.

Its budget, its anchors, what fails and what is predicted have files of their own beside this one.
"""

from __future__ import annotations

from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from mergesearch import controller
from mergesearch.controller import (
    Controller,
)
from mergesearch.evaluation.result import TrialResult
from mergesearch.search.strategy import Proposal, Strategy
from mergesearch.session import open_store
from mergesearch.study import Study
from mergesearch.workers.pool import Outcome, Task
from tests.controller_toys import Bench, Diary, ScriptedPool, check_ended, scored

pytest_plugins = ["tests.controller_fixtures"]


class Broken(Diary):
    def finished(self, number: int, label: str, result: TrialResult, *, new_best: bool) -> None:
        raise BrokenPipeError("nobody reads this")


def test_numbers_that_another_program_took_are_stepped_over(bench: Bench) -> None:
    """What is queued has a number and is no part of the history, so numbers are not places in it."""
    bench.with_search(strategy="random", trials=4).drive(ScriptedPool())
    other = optuna.load_study(study_name=bench.study.name, storage=bench.url)
    for _ in range(3):
        other.enqueue_trial({})
    other._storage.remove_session()
    pool = ScriptedPool(2)
    assert bench.with_search(strategy="random", trials=9).drive(pool).evaluated == len(pool.evaluated) == 5
    assert [row[0] for row in bench.table()] == [0, 1, 2, 3, 7, 8, 9, 10, 11]


def test_a_listener_that_raises_changes_nothing(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench = bench.with_search(strategy="random", trials=4)
    assert bench.drive(ScriptedPool(), Broken()).evaluated == 4
    assert "BrokenPipeError" in caplog.text


def test_workers_are_looked_after_during_a_pause(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MERGESEARCH_LEASE_SECONDS", "0.6")
    bench = bench.with_search(strategy="random", trials=2)
    open_store(bench.study, bench.url).close()
    bench.want("pause")

    class Rested(ScriptedPool):
        def rest(self, seconds: float) -> None:
            bench.want("run")

    assert bench.drive(Rested()).evaluated == 2


class Stubborn(Strategy):
    """Proposes one point for ever, in flight or not."""

    name = "stubborn"
    title = "always the same"

    def propose(self, history: Any, number: int) -> Proposal:
        return Proposal(next(self.space.grid()))


class StubbornStudy(Study):
    def strategy(self) -> Strategy:
        return Stubborn(self.space, None, 0)  # type: ignore[arg-type]


def test_a_recipe_in_flight_is_waited_for_and_known_ones_cost_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controller, "MAX_FRUITLESS_IN_A_ROW", 5)
    study = bench.with_search(strategy="random", trials=5, enqueue=[]).study
    bench = Bench(StubbornStudy(**vars(study)), bench.url)
    pool = ScriptedPool(3)
    summary = bench.drive(pool)
    check_ended(bench, pool)
    assert len(pool.evaluated) == 1
    assert summary.reused == 5
    assert "known before" in summary.reason
    assert len({value for _, _, _, value in bench.table()}) == 1
    with bench.store() as store:
        assert {t.user_attrs["duplicate_of"] for t in store.trials()[1:]} == {0}
        assert all(t.state == TrialState.COMPLETE for t in store.trials())


def test_what_another_program_ended_stays_as_it_is(bench: Bench) -> None:
    bench = bench.with_search(strategy="random", trials=3)
    with open_store(bench.study, bench.url) as store:

        def script(task: Task, attempt: int) -> Outcome:
            if task.number == 1:
                store.study._storage.set_trial_state_values(store.study.trials[1]._trial_id, TrialState.FAIL)
            return scored(task, attempt)

        diary = Diary()
        summary = Controller(bench.study, store, ScriptedPool(script=script), diary).run()
        assert summary.evaluated == 3
        assert store.trials()[1].state == TrialState.FAIL
        assert store.late_results(1)
    assert (
        "failed",
        1,
        "another coordinator took it over or ended it; what came too late is kept aside",
        False,
    ) in diary.heard
