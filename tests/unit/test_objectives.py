"""Objectives, guards and the Pareto front as arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergesearch.evaluation.objectives import Objectives, undominated
from mergesearch.evaluation.result import CollectionScores
from mergesearch.results.front import FrontPoint, pareto_front

OBJECTIVES = Objectives(
    {"a": "target", "b": "others", "c": "others"}, {"a": 1.0, "b": 3.0, "c": 1.0}, {"b": 0.1, "c": 0.0}, "retriever"
)
SMALL = st.integers(0, 3).map(lambda n: n / 4)


def scores_of(**means: float) -> list[CollectionScores]:
    return [CollectionScores(name, "ndcg@10", ("q",), np.array([mean]), weight=1.0) for name, mean in means.items()]


def test_an_objective_is_the_weighted_mean_over_its_collections() -> None:
    assert OBJECTIVES.values(scores_of(a=0.5, b=0.2, c=0.6)) == {"target": 0.5, "others": pytest.approx(0.3)}


def test_guards_measure_against_the_template_and_leave_the_others_alone() -> None:
    template = scores_of(a=0.9, b=0.5, c=0.5)
    assert OBJECTIVES.excess(template, template) == {"b": -0.1, "c": 0.0}
    kept = OBJECTIVES.judge(scores_of(a=0.0, b=0.45, c=0.5), template)
    assert kept.kept
    lost = OBJECTIVES.judge(scores_of(a=1.0, b=0.3, c=0.5), template)
    assert lost.excess == {"b": pytest.approx(0.1), "c": 0.0}
    assert not lost.kept


@given(st.lists(st.floats(0, 1), min_size=2, max_size=2).filter(sum))
def test_shares_of_objectives_are_shared_out_by_weight(shares: list[float]) -> None:
    collections = scores_of(a=0.5, b=0.25, c=0.75)
    by_objective = OBJECTIVES.values(collections)
    wanted = shares[0] * by_objective["target"] + shares[1] * by_objective["others"]
    found = sum(s * c.mean for s, c in zip(OBJECTIVES.shares(shares), collections, strict=True))
    assert found == pytest.approx(wanted)


@given(st.lists(st.tuples(SMALL, SMALL, SMALL), min_size=1, max_size=12))
def test_the_front_is_what_nothing_beats(points: list[tuple[float, float, float]]) -> None:
    values = np.array(points)
    for point, on_front in zip(values, undominated(values), strict=True):
        beaten = any((other >= point).all() and (other > point).any() for other in values)
        assert on_front == (not beaten)
    front = pareto_front([FrontPoint(i, "", {"x": x, "y": y, "z": z}) for i, (x, y, z) in enumerate(points)])
    found = [tuple(p.objectives.values()) for p in front]
    assert len(set(found)) == len(found)
    assert set(found) == {p for p, on_front in zip(points, undominated(values), strict=True) if on_front}
