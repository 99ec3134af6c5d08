"""Figures of studies: small, of every kind of study, and what they show is what the study has."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mergesearch import load_study
from mergesearch.results.figures import FIGURES
from mergesearch.results.figures.drawing import MOST_BYTES, thinned
from mergesearch.results.view import StudyView, read_view
from mergesearch.storage.store import StudyStore
from tests.tiny_studies import TinyStudy


@pytest.fixture(scope="module")
def view(grid_study: TinyStudy) -> Iterator[StudyView]:
    with StudyStore.open(grid_study.storage, "tiny", None, exclusive=False) as store:
        yield read_view(load_study(grid_study.file), store)


@pytest.mark.parametrize("name", FIGURES)
def test_figures_are_small(name: str, view: StudyView) -> None:
    figure = FIGURES[name].draw(view)
    assert figure is None or len(figure.to_json()) < MOST_BYTES


@pytest.mark.parametrize("name", ["best-so-far", "best-so-far-by-time"])
def test_best_so_far_ends_at_the_highest_score(name: str, view: StudyView) -> None:
    figure = FIGURES[name].draw(view)
    assert figure is not None
    points, best, *lines = figure.data
    assert len(points.y) == len([t for t in view.trials if t.value is not None])
    assert list(best.y) == sorted(best.y)
    assert view.choice is not None
    assert best.y[-1] == pytest.approx(view.choice.best_value, abs=1e-5)
    assert best.x[-1] == max(points.x)
    assert {line.name.rpartition(" ")[0] for line in lines} == {"retriever alone", "domain alone", "uniform average"}
    for line in lines:
        assert min(points.y) - 1e-9 <= line.y[0] <= max(points.y) + 1e-9


def test_thinning_keeps_the_ends() -> None:
    assert thinned(range(5), 5) == [0, 1, 2, 3, 4]
    few = thinned(range(1000), 7)
    assert (few[0], few[-1], len(few)) == (0, 999, 7)
