"""What is enqueued is evaluated once, and given up when it fails for good."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from mergesearch.controller import (
    LABEL_CHARACTERS,
)
from mergesearch.errors import WorkerError
from mergesearch.resolving import load_study
from mergesearch.workers.pool import Outcome, Task
from tests.controller_toys import Bench, ScriptedPool, check_ended, failing, scored
from tests.tiny_studies import TinyStudy, copy_study

pytest_plugins = ["tests.controller_fixtures"]


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
    bench = Bench(load_study(own.file), own.storage)
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
