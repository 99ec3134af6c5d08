"""Racing seen from a study: who is raced against whom, what is recorded, and what learns from it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from optuna.trial import TrialState

from mergesearch.controller import Controller
from mergesearch.errors import ResumeError, StudyFileError
from mergesearch.evaluation.result import CollectionScores, Look, TrialResult
from mergesearch.resolving import resolve
from mergesearch.results.status import read_status
from mergesearch.search.strategy import Proposal, Strategy
from mergesearch.session import open_store
from mergesearch.study import Study
from mergesearch.study_file import parse_study
from mergesearch.study_schema import RacingEntry
from mergesearch.workers.pool import Outcome, Task
from tests.controller_toys import QUERIES, Bench, Diary, ScriptedPool, check_ended, dying, scored
from tests.tiny_studies import TinyStudy, make_study

TOKENS = 10
MANY = [(i + 1) / 100 for i in range(60)]
"""Looks that would not fit into a trial's attributes."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyStudy:
    made = make_study(tmp_path_factory.mktemp("study"))
    return made.change("merge", "coefficients", "alpha", to={"low": 0, "high": 1})


@pytest.fixture
def bench(tiny: TinyStudy, tmp_path: Path) -> Bench:
    parsed = resolve(parse_study(tiny.file))
    return Bench(parsed, f"sqlite:///{tmp_path}/study.db").with_search(strategy="random", trials=12, racing={})


def raced(task: Task, attempt: int) -> Outcome:
    """Scores that depend on the recipe alone; what is below the best rival is stopped after the first of two looks."""
    whole = scored(task, attempt).result
    assert whole is not None
    (scores,) = whole.collections
    looks = (Look(2, float(scores.scores[:2].mean()), 4, approximate=True), Look(3, scores.mean, TOKENS))
    best = task.rivals[0] if task.rivals else None
    if best is not None and best.value > scores.mean:
        part = CollectionScores("made", "ndcg@10", QUERIES[:2], scores.scores[:2])
        result = TrialResult(
            (part,),
            {"encode": 0.1},
            4,
            looks=looks[:1],
            stopped=True,
            estimate=scores.mean - 0.001,
            stopped_by=best.number,
        )
        return Outcome(task, "scripted", result)
    table = scores.scores[None].astype(np.float32)
    table[0, 2] = np.nan
    complete = replace(whole, collections=(replace(scores, looks=table),), looks=looks)
    return Outcome(task, "scripted", complete)


class Asked(ScriptedPool):
    """Remembers the rivals that each task came with."""

    def __init__(self, workers: int = 1) -> None:
        super().__init__(workers, raced)
        self.rivals: dict[int, tuple[int, ...]] = {}

    def submit(self, task: Task, worker: str | None = None) -> str:
        self.rivals[task.number] = tuple(rival.number for rival in task.rivals)
        return super().submit(task, worker)


@pytest.mark.parametrize("workers", [1, 3])
def test_anchors_are_never_raced_and_the_best_complete_trials_are_the_rivals(bench: Bench, workers: int) -> None:
    bench = bench.with_search(strategy="random", trials=12, racing={"rivals": 4})
    pool, diary = Asked(workers), Diary()
    summary = bench.drive(pool, diary)
    check_ended(bench, pool)
    with bench.store() as store:
        trials = store.trials()
        assert len(trials) == 12, "a trial that was stopped counts"
        assert [t.state for t in trials[:3]] == [TrialState.COMPLETE] * 3
        assert [pool.rivals[n] for n in range(3)] == [()] * 3
        complete = {t.number: t.value for t in trials if t.state == TrialState.COMPLETE}
        pruned = [t for t in trials if t.state == TrialState.PRUNED]
        assert pruned
        assert summary.pruned == len(pruned)
        assert f"{len(pruned)} stopped early" in summary.describe()
        assert {h[1] for h in diary.heard if h[0] == "pruned"} == {t.number for t in pruned}
        for trial in pruned:
            assert trial.intermediate_values == {1: trial.value}
            line = read_status(store).trials[trial.number]
            assert (line.value, line.estimate) == (None, trial.user_attrs["estimate"]), "a running mean is no score"
            assert trial.user_attrs["stopped_by"] in pool.rivals[trial.number]
        status = read_status(store)
        assert status.tokens_saved == (TOKENS - 4) * len(pruned)
        assert f"{len(pruned)} pruned" in status.summary()
    if workers == 1:
        for number in range(3, 12):
            before = {n: v for n, v in complete.items() if n < number}
            best = sorted(before, key=lambda n: -(before[n] or 0))[:4]
            assert pool.rivals[number] == tuple(best)


def test_rivals_come_with_what_they_scored_in_each_look(bench: Bench) -> None:
    seen: list[Task] = []

    def script(task: Task, attempt: int) -> Outcome:
        seen.append(task)
        return raced(task, attempt)

    bench.drive(ScriptedPool(script=script))
    rival, *others = seen[3].rivals
    assert len(others) == 2
    with bench.store() as store:
        result = store.result(rival.number)
    assert result is not None
    assert rival.value == result.value == max(bench.table()[n][3] for n in range(3))
    expected = result.collections[0].scores.astype(np.float32)
    np.testing.assert_array_equal(rival.looks[0], [[*expected[:2], np.nan]])


def test_a_study_that_is_not_raced_sends_no_rivals(bench: Bench) -> None:
    pool = Asked()
    bench.with_search(strategy="random", trials=6).drive(pool)
    assert set(pool.rivals.values()) == {()}


class Again(Strategy):
    """Proposes every point twice, in turn with the one before."""

    def propose(self, history, number):  # type: ignore[no-untyped-def]
        values = [0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.8, 0.9]
        name = self.space.dimensions[0].name
        rest = {d.name: 0.25 for d in self.space.dimensions[1:]}
        index = (number - 3) // 2
        return Proposal({name: values[index], **rest}, {}, "") if index < len(values) else None

    def exhausted(self, history):  # type: ignore[no-untyped-def]
        return len(history) >= 19


def test_a_recipe_that_was_stopped_is_stopped_again_at_no_cost(bench: Bench) -> None:
    pool, diary = ScriptedPool(script=raced), Diary()
    with open_store(bench.study, bench.url) as store:
        controller = Controller(bench.study, store, pool, diary)
        controller._strategy = Again(bench.study.space, object(), 0)  # type: ignore[arg-type]
        summary = controller.run()
        trials = store.trials()
    assert len(set(pool.evaluated)) == len(pool.evaluated) == 11
    pairs = list(zip(trials[3::2], trials[4::2], strict=True))
    assert any(first.state == TrialState.PRUNED for first, _ in pairs)
    for first, second in pairs:
        assert second.user_attrs["duplicate_of"] == first.number
        assert (second.state, second.value) == (first.state, first.value)
        assert second.user_attrs.get("estimate") == first.user_attrs.get("estimate")
        assert second.user_attrs["tokens"] == 0
    assert summary.reused == 8


def test_what_was_stopped_does_not_settle_what_is_enqueued(bench: Bench) -> None:
    pool = ScriptedPool(script=raced)
    bench.drive(pool)
    with bench.store() as store:
        stopped = next(t for t in store.trials() if t.state == TrialState.PRUNED)
    search = {"strategy": "random", "trials": 13, "racing": {}}
    asked = bench.with_search(**search, enqueue=["sources", "uniform", dict(stopped.params)])
    asked.drive(ScriptedPool(script=raced))
    with bench.store() as store:
        last = store.trials()[-1]
    assert last.user_attrs["recipe"] == stopped.user_attrs["recipe"]
    assert last.state == TrialState.COMPLETE
    assert "duplicate_of" not in last.user_attrs


def test_a_resumed_study_races_with_what_is_recorded_and_adopted_trials_too(bench: Bench) -> None:
    small = bench.with_search(strategy="random", trials=5, racing={}, retries=0)
    small.drive(ScriptedPool(script=raced))
    # A process that ends with a trial in flight, and one with an anchor in flight.
    with open_store(small.study, small.url) as store:
        recipe = small.study.recipe(small.study.strategy().propose(store.trials(), 5).params)  # type: ignore[union-attr]
        store.begin({}, {}, recipe=recipe, attrs={"label": "left"}, logical_id="left")
        anchored = replace(recipe, seed=99)
        store.begin({}, {}, recipe=anchored, attrs={"label": "a", "anchor_of": "x"}, logical_id="left anchor")
    pool = Asked()
    bench.with_search(strategy="random", trials=9, racing={}).drive(pool)
    check_ended(bench, pool)
    assert pool.rivals[5]
    assert pool.rivals[6] == ()


def test_workers_that_die_change_nothing(bench: Bench) -> None:
    def script(task: Task, attempt: int) -> Outcome:
        return dying(task, attempt) if attempt == 1 and task.number % 2 else raced(task, attempt)

    pool = ScriptedPool(2, script)
    bench.drive(pool)
    check_ended(bench, pool)
    assert {row[1] for row in bench.table()} == {"COMPLETE", "PRUNED"}


def test_looks_are_relevant_to_scores_and_the_error_that_is_allowed_is_not(bench: Bench) -> None:
    bench.drive(ScriptedPool(script=raced))
    bench.with_search(strategy="random", trials=12, racing={"alpha": 0.05, "rivals": 5}).drive(ScriptedPool())
    for racing in (None, {"looks": 3}, {"looks": [0.2, 0.6]}):
        with pytest.raises(ResumeError, match="looks"):
            bench.with_search(strategy="random", trials=12, racing=racing).drive(ScriptedPool())


def test_what_racing_says_in_a_study_file(tiny: TinyStudy, tmp_path: Path) -> None:
    def study(racing: object) -> Study:
        content = {**tiny.content(), "search": {"strategy": "random", "trials": 3, "racing": racing}}
        copied = TinyStudy(tiny.folder)
        file = copied.file.read_text()
        try:
            copied.write(content)
            return resolve(parse_study(copied.file))
        finally:
            copied.file.write_text(file)

    assert study(False).racing is None
    on = study(True).racing
    assert on is not None
    assert (on.looks.shares, on.alpha, on.rivals, on.looks.seed) == ((0.25, 0.5, 0.75, 1.0), 0.01, 20, 3)
    other = study({"looks": [0.1, 0.5], "alpha": 0.05, "rivals": 7, "hits": 3}).racing
    assert other is not None
    assert (other.looks.shares, other.alpha, other.rivals, other.looks.hits) == ((0.1, 0.5, 1.0), 0.05, 7, 3)
    assert RacingEntry(looks=2).shares == (0.5, 1.0)
    for wrong in (
        {"looks": 1},
        {"looks": [0.5, 0.5]},
        {"looks": [0.5, 1.0]},
        {"looks": MANY},
        {"alpha": 0},
        {"look": 3},
        4,
    ):
        with pytest.raises(StudyFileError):
            study(wrong)
