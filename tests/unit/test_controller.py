"""The controller against a real database and workers that do what a script says.

Whatever happens to workers, every trial ends once, no merge is evaluated twice, and the budget is kept.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from mergesearch import controller, session
from mergesearch.controller import (
    ALLOWED_INTERRUPTIONS,
    LABEL_CHARACTERS,
    MAX_FAILURES_IN_A_ROW,
    Controller,
)
from mergesearch.errors import WorkerError
from mergesearch.evaluation.result import GPU_SECONDS_ATTR, TrialResult
from mergesearch.resolving import resolve
from mergesearch.results.status import read_status
from mergesearch.search.strategy import Proposal, Strategy
from mergesearch.session import Workers, open_store, run_study
from mergesearch.storage.coordinators import Wanted
from mergesearch.study import Study
from mergesearch.study_file import parse_study
from mergesearch.workers.evaluator import BatchProgress, EvaluatorSpec
from mergesearch.workers.pool import Outcome, Task
from tests.controller_toys import Bench, Diary, ScriptedPool, check_ended, dying, failing, scored
from tests.tiny_studies import TinyStudy, copy_study, make_study


class Broken(Diary):
    def finished(self, number: int, label: str, result: TrialResult, *, new_best: bool) -> None:
        raise BrokenPipeError("nobody reads this")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyStudy:
    return make_study(tmp_path_factory.mktemp("study"))


@pytest.fixture
def bench(tiny: TinyStudy, tmp_path: Path) -> Bench:
    return Bench(resolve(parse_study(tiny.file)), f"sqlite:///{tmp_path}/study.db")


@pytest.mark.parametrize("workers", [1, 3])
def test_evaluated_recipes_count_and_anchors_are_among_them(bench: Bench, workers: int) -> None:
    bench = bench.with_search(strategy="random", trials=6)
    pool, diary = ScriptedPool(workers), Diary()
    summary = bench.drive(pool, diary)
    check_ended(bench, pool)
    assert len(pool.evaluated) == summary.evaluated == 6
    assert summary.reason == "all 6 trials are done"
    with bench.store() as store:
        anchors = {t.user_attrs.get("anchor") for t in store.trials()[:3]}
    assert anchors == {"domain's layers", "retriever alone", "uniform average"}
    assert [h for h in diary.heard if h[0] == "recorded"] == [("recorded", 0)]
    again = bench.drive(ScriptedPool(script=failing))
    assert (again.evaluated, again.failed) == (0, 0)


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


def test_a_budget_smaller_than_what_is_enqueued_is_kept_and_the_rest_comes_first_later(bench: Bench) -> None:
    small = bench.with_search(strategy="random", trials=2)
    small.drive(ScriptedPool())
    assert len(small.table()) == 2
    larger = bench.with_search(strategy="random", trials=4)
    larger.drive(ScriptedPool())
    with larger.store() as store:
        anchors = [t.user_attrs.get("anchor") for t in store.trials()]
    assert None not in anchors[:3]
    assert anchors[3:] == [None]


@pytest.mark.parametrize("workers", [1, 3])
def test_no_trial_begins_beyond_the_gpu_hours_and_more_of_them_go_on(
    tiny: TinyStudy, tmp_path: Path, workers: int
) -> None:
    """Failed trials have held their workers, too; so do all attempts of a trial whose workers died."""
    endless = copy_study(tiny, tmp_path / "study").change("merge", "coefficients", to={"alpha": {"low": 0, "high": 1}})
    bench = Bench(resolve(parse_study(endless.file)), endless.storage)

    def script(task: Task, attempt: int) -> Outcome:
        time.sleep(0.01)
        if task.number % 3 == 1:
            return dying(task, attempt) if attempt == 1 else failing(task, attempt)
        return scored(task, attempt)

    def held() -> list[float]:
        with bench.store() as store:
            return [t.user_attrs.get(GPU_SECONDS_ATTR, 0.0) for t in store.trials()]

    spent: list[float] = []
    for _ in range(2):
        budget = sum(spent) + 0.2
        limited = bench.with_search(strategy="random", gpu_hours=budget / 3600)
        pool = ScriptedPool(workers, script)
        summary = limited.drive(pool)
        assert summary.reason == f"all {budget / 3600:g} GPU-hours are used"
        check_ended(bench, pool)
        assert len(held()) > len(spent)
        spent = held()
        assert sum(spent) >= 0.999 * budget
        if workers == 1:  # with others in flight, the last one to begin need not be the last to end
            assert sum(spent[:-1]) < budget
    assert limited.drive(ScriptedPool(workers, script)).evaluated == 0
    with bench.store() as store:
        assert f"{sum(spent) / 3600:.3g} GPU-hours of {budget / 3600:g}" in read_status(store, budget / 3600).summary()
        for trial in store.trials():
            if "duplicate_of" not in trial.user_attrs:
                assert trial.user_attrs[GPU_SECONDS_ATTR] >= 0.0099 * (2 if trial.state.name == "FAIL" else 1)


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


def anchor_trials(bench: Bench) -> list[tuple[str, str]]:
    with bench.store() as store:
        return [(t.user_attrs["anchor"], t.state.name) for t in store.trials() if "anchor" in t.user_attrs]


def test_anchors_that_failed_with_everything_else_are_evaluated_when_the_study_goes_on(bench: Bench) -> None:
    bench = bench.with_search(strategy="random", trials=5)
    with pytest.raises(WorkerError, match="the disk is gone"):
        bench.drive(ScriptedPool(script=failing))
    names = [name for name, _ in anchor_trials(bench)]
    assert len(names) == 3
    pool = ScriptedPool()
    assert bench.drive(pool).evaluated == 5
    check_ended(bench, pool)
    assert anchor_trials(bench) == [*((n, "FAIL") for n in names), *((n, "COMPLETE") for n in names)]
    assert bench.drive(ScriptedPool(script=failing)).failed == 0


def test_an_anchor_that_can_get_no_score_is_given_up(bench: Bench) -> None:
    def script(task: Task, attempt: int) -> Outcome:
        if all(g.copy_from or g.coefficients["weight"]["domain"] == 1 for g in task.recipe.groups):
            return Outcome(task, "scripted", failure="weights sum to zero", recipe_at_fault=True)
        return scored(task, attempt)

    for trials in (3, 4, 5, 6):
        bench.with_search(strategy="random", trials=trials).drive(ScriptedPool(script=script))
    assert Counter(anchor_trials(bench)) == {
        ("retriever alone", "COMPLETE"): 1,
        ("uniform average", "COMPLETE"): 1,
        ("domain's layers", "FAIL"): 2,
    }


def test_enqueued_points_are_told_apart_by_their_recipes_and_not_by_their_names(
    tiny: TinyStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = copy_study(tiny, tmp_path / "study").change("merge", "coefficients", "alpha", to={"low": 0, "high": 1})
    points = [{"alpha.segment_1": v, "alpha.segment_2": v} for v in (0.5, 0.5 + 1e-8)]
    own.change("search", to={"strategy": "random", "trials": 4, "enqueue": points})
    bench = Bench(resolve(parse_study(own.file)), own.storage)
    shown = [a.name for a in bench.study.anchors()]
    assert len(shown) == 2
    assert shown[0] == shown[1]
    monkeypatch.setattr("mergesearch.search.points.SearchSpace.label", lambda space, params: "x" * 999)
    bench.drive(ScriptedPool())
    assert anchor_trials(bench) == [("x" * LABEL_CHARACTERS, "COMPLETE")] * 2
    with bench.store() as store:
        trials = store.trials()
    assert all(len(t.user_attrs["label"]) <= LABEL_CHARACTERS for t in trials)
    assert trials[0].value != trials[1].value


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


def test_a_listener_that_raises_changes_nothing(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench = bench.with_search(strategy="random", trials=4)
    assert bench.drive(ScriptedPool(), Broken()).evaluated == 4
    assert "BrokenPipeError" in caplog.text


def test_no_trial_starts_after_the_minutes_but_adopted_ones_end(bench: Bench) -> None:
    def interrupted(task: Task, attempt: int) -> Outcome:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench.with_search(strategy="random", trials=5).drive(ScriptedPool(2, interrupted))
    bench = bench.with_search(strategy="random", minutes=1e-9)
    pool = ScriptedPool(2)
    summary = bench.drive(pool)
    check_ended(bench, pool)
    assert (summary.adopted, summary.evaluated) == (2, 2)
    assert "minutes" in summary.reason


class Deserted(ScriptedPool):
    """All nodes have left the cluster, and none will come. `wanted` is said when somebody waits for them."""

    def __init__(self, bench: Bench, wanted: Wanted | None = None) -> None:
        super().__init__()
        self.bench, self.wanted, self.patience = bench, wanted, 300

    @property
    def idle(self) -> tuple[str, ...]:
        return ()

    def wait(self, timeout: float | None = None) -> list[Outcome]:
        assert self.patience, "it would have waited for ever"
        self.patience -= 1
        if self.wanted is not None:
            with self.bench.store() as reader:
                reader.want(self.wanted)
        time.sleep(0.1)
        return []


@pytest.mark.parametrize("wanted", ["drain", "stop"])
def test_a_run_without_workers_ends_when_it_is_told_to(
    bench: Bench, wanted: Wanted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MERGESEARCH_LEASE_SECONDS", "0.6")
    summary = bench.with_search(strategy="random", trials=2).drive(Deserted(bench, wanted))
    assert "as was asked for" in summary.reason


@pytest.mark.parametrize(("search", "why"), [({"minutes": 0.001}, "0.001 minutes"), ({"trials": 2}, "all 2 trials")])
def test_a_run_without_workers_ends_with_its_budget(bench: Bench, search: dict[str, Any], why: str) -> None:
    bench.with_search(strategy="random", trials=2).drive(ScriptedPool())  # by another coordinator, say
    summary = bench.with_search(strategy="random", **search).drive(Deserted(bench))
    assert why in summary.reason


def test_workers_are_looked_after_during_a_pause(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MERGESEARCH_LEASE_SECONDS", "0.6")
    bench = bench.with_search(strategy="random", trials=2)
    open_store(bench.study, bench.url).close()
    with bench.store() as reader:
        reader.want("pause")

    class Rested(ScriptedPool):
        def rest(self, seconds: float) -> None:
            with bench.store() as reader:
                reader.want("run")

    assert bench.drive(Rested()).evaluated == 2


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
