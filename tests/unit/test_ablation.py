"""Which source was not needed: what counts as a merge without it, and what is said of both sides."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mergesearch import load_study
from mergesearch.results.report.ablation import Ablation, ablations, taking_part
from mergesearch.results.view import StudyView, TrialView, read_view
from mergesearch.storage.store import StudyStore
from mergesearch.study import Study
from tests.tiny_models import make_variant
from tests.tiny_studies import TinyStudy, copy_study, make_study


@pytest.fixture(scope="module")
def view(grid_study: TinyStudy) -> Iterator[StudyView]:
    with StudyStore.open(grid_study.storage, "tiny", None, exclusive=False) as store:
        yield read_view(load_study(grid_study.file), store)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> TinyStudy:
    made = make_study(tmp_path_factory.mktemp("three"))
    make_variant(made.folder / "retriever", made.folder / "expert", seed=2)
    made.change("sources", "expert", to="expert")
    made.change("merge", "coefficients", to={"weight": {"low": 0, "high": 1, "tie": "groups"}})
    return made.change("search", "enqueue", to=["sources", "uniform", "without"])


def scored(view: StudyView, with_it: float, without: float, source: str = "domain") -> StudyView:
    """The study as if merges that a source has a part in had scored otherwise than those without, on every query."""

    def other(trial: TrialView) -> TrialView:
        if trial.recipe is None or trial.result is None:
            return trial
        value = with_it if taking_part(view.study, trial.recipe)[source] else without
        (scores,) = trial.result.collections
        found = replace(scores, scores=np.linspace(0, 0.1, len(scores.scores)) + value)
        return replace(trial, value=float(found.scores.mean()), result=replace(trial.result, collections=(found,)))

    return replace(view, trials=tuple(map(other, view.trials)))


def of(view: StudyView, source: str) -> Ablation:
    (found,) = [a for a in ablations(view) if a.source == source]
    return found


def test_every_merge_is_on_one_side(view: StudyView) -> None:
    assert [a.source for a in ablations(view)] == ["retriever", "domain"]
    for a in ablations(view):
        assert (a.n_beside + a.n_without, a.n_without) == (len(view.scored), 1)
        assert a.beside is not None
        assert a.without is not None
        assert a.gain == pytest.approx((a.beside.value or 0) - (a.without.value or 0))
        assert a.without == view.sources["domain" if a.source == "retriever" else "retriever"]


@pytest.mark.parametrize(
    ("with_it", "without", "verdict"), [(0.8, 0.5, "needed"), (0.5, 0.5, "not needed"), (0.5, 0.8, "not needed")]
)
def test_equal_differences_on_all_queries_are_no_luck(
    view: StudyView, with_it: float, without: float, verdict: str
) -> None:
    found = of(scored(view, with_it, without), "domain")
    assert found.verdict == verdict
    assert found.gain == pytest.approx(with_it - without)
    assert found.luck == pytest.approx(0, abs=1e-9)
    assert found.interval == pytest.approx((with_it - without,) * 2)


def test_what_was_not_tried_is_not_judged(view: StudyView) -> None:
    def has_part(trial: TrialView) -> bool:
        return trial.recipe is not None and taking_part(view.study, trial.recipe)["domain"]

    untried = of(replace(view, trials=tuple(filter(has_part, view.trials))), "domain")
    assert (untried.verdict, untried.without, untried.gain) == ("not tried without it", None, None)
    never = of(replace(view, trials=tuple(t for t in view.trials if not has_part(t))), "domain")
    assert (never.verdict, never.beside) == ("never merged", None)
    assert ablations(replace(view, trials=())) == ()


def names(study: Study) -> dict[str, dict[str, bool]]:
    return {a.name: taking_part(study, study.recipe_of(a.coefficients)) for a in study.anchors()}


def test_the_average_without_each_source_is_evaluated_first_on_request(three: TinyStudy) -> None:
    study = load_study(three.file)
    everybody = {"retriever": True, "domain": True, "expert": True}
    found = names(study)
    assert found["uniform average"] == everybody
    for source in everybody:
        assert found[f"uniform average without {source}"] == {**everybody, source: False}
    for anchor in study.anchors():
        assert anchor.params is not None
        assert study.recipe(anchor.params) == study.recipe_of(anchor.coefficients)


def test_methods_that_are_no_linear_map_go_by_their_weights(three: TinyStudy, tmp_path: Path) -> None:
    made = copy_study(three, tmp_path).change("merge", "method", to="ties").change("merge", "base", to="retriever")
    found = names(load_study(made.file))
    assert found["uniform average"] == {"domain": True, "expert": True}
    # Of two, the average without one is the other alone, which was there before.
    assert "uniform average without expert" not in found
    assert found["domain's layers"] == {"domain": True, "expert": False}
    made.change("sources", "expert", to=None).change("merge", "base", to=None).change("merge", "method", to="slerp")
    study = load_study(made.change("merge", "coefficients", to={"t": {"low": 0, "high": 1}}).file)
    assert all(not parts for parts in names(study).values())
