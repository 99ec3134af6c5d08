"""Greedy soup: the paper's recipe, whatever fails on the way, and the spaces that it refuses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from optuna.trial import TrialState

from mergesearch.errors import StudyFileError
from mergesearch.search.points import Params, SearchSpace
from tests.search_toys import SOUPS, SPACES, drive, make_strategy, make_trial, soup_space

CONTINUOUS = soup_space("abcd", {"low": 0, "high": 1}, ["segment_1", "segment_2"])


def soup_of(space: SearchSpace, params: Mapping[str, Any]) -> str:
    """The sources that weigh something, and equally much in all groups."""
    found = set()
    for coefficients in space.coefficients(params).values():
        weights: Any = coefficients["weight"]
        used = {source: w for source, w in weights.items() if w}
        assert len(set(used.values())) == 1
        found.add("".join(sorted(used)))
    (soup,) = found
    return soup


def visited(space: SearchSpace, scores: Mapping[str, float]) -> list[str]:
    def objective(params: Params) -> float:
        return scores[soup_of(space, params)]

    return [soup_of(space, t.params) for t in drive(make_strategy("greedy_soup", space), 100, objective)]


ALONE = {"a": 0.2, "b": 0.4, "c": 0.3, "d": 0.1}


@pytest.mark.parametrize("weight", [{"low": 0, "high": 1}, {"low": -1, "high": 2}])
def test_sources_enter_best_first_and_stay_where_the_score_does_not_fall(weight: object) -> None:
    space = soup_space("abcd", weight, ["segment_1", "segment_2"])
    # c helps, a hurts, d changes nothing.
    scores = {**ALONE, "bc": 0.5, "abc": 0.45, "bcd": 0.5}
    assert visited(space, scores) == ["a", "b", "c", "d", "bc", "abc", "bcd"]
    # c hurts, a and d help.
    scores = {**ALONE, "bc": 0.39, "ab": 0.41, "abd": 0.42}
    assert visited(space, scores) == ["a", "b", "c", "d", "bc", "ab", "abd"]


def test_weights_are_1_over_n() -> None:
    trials = drive(make_strategy("greedy_soup", CONTINUOUS), 7, lambda params: sum(map(bool, params.values())))
    assert set(trials[-1].params.values()) == {0.25}
    assert len(trials) == make_strategy("greedy_soup", CONTINUOUS).planned() == 7


def test_sources_and_soups_that_fail_are_passed_over() -> None:
    strategy = make_strategy("greedy_soup", CONTINUOUS, retries=1)
    trials = []
    while (proposal := strategy.propose(trials, len(trials))) is not None:
        soup = soup_of(CONTINUOUS, proposal.params)
        failed = soup in ("b", "ac")
        state = TrialState.FAIL if failed else TrialState.COMPLETE
        value = None if failed else {**ALONE, "cd": 0.6}[soup]
        trials.append(make_trial(len(trials), CONTINUOUS, proposal.params, state, value, proposal.attrs))
    soups = [soup_of(CONTINUOUS, t.params) for t in trials]
    assert soups == ["a", "b", "b", "c", "d", "ac", "ac", "cd"]
    assert strategy.exhausted(trials)


def test_scores_of_others_count() -> None:
    """The sources alone are usually enqueued before the strategy is asked."""
    space = SOUPS["log"]
    anchors = [dict.fromkeys(space.by_name, 0.0) | {name: 1.0} for name in space.by_name]
    trials = [make_trial(i, space, params, value=float(i)) for i, params in enumerate(anchors)]
    strategy = make_strategy("greedy_soup", space)
    assert all(strategy.plans(params) for params in anchors)
    assert not strategy.plans(dict.fromkeys(space.by_name, 0.5))
    proposal = strategy.propose(trials, 3)
    assert proposal is not None
    assert soup_of(space, proposal.params) == "bc"


@pytest.mark.parametrize(
    ("space", "lacking"),
    [
        (SPACES["three"], "lacks weights of sources"),
        (soup_space("abc", {"low": 0.1, "high": 1}), "lacks weight 1 for a and 0 for all others"),
        (soup_space("abc", {"values": [0, 1]}), "lacks weight 0.5 for a, b and 0 for all others"),
        (soup_space("abc", {"low": 0, "high": 1, "tie": "sources"}), "lacks weight 1 for a and 0 for all others"),
        (soup_space("abc", {"a": 0, "b": {"low": 0, "high": 1}, "c": {"low": 0, "high": 1}}), "weight 1 for a and"),
    ],
)
def test_spaces_without_soups_are_refused(space: SearchSpace, lacking: str) -> None:
    with pytest.raises(StudyFileError, match=lacking) as caught:
        make_strategy("greedy_soup", space)
    assert "weight: {low: 0, high: 1}" in str(caught.value)
