"""What the strategy on predicted embeddings asks a worker, and when it gives up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from optuna.trial import FrozenTrial, TrialState

from mergesearch.search.dimension import Dimension
from mergesearch.search.strategies.embedding_surrogate import EmbeddingSurrogate, EmbeddingSurrogateOptions
from mergesearch.surrogate.report import ScreeningReport
from mergesearch.surrogate.screening import Screening
from tests.search_toys import make_space, make_trial, toy_screener

SPACE = make_space(Dimension("x", 0.0, 1.0), Dimension("y", 0.0, 1.0))
CORNERS = [{"x": x, "y": y} for x in (0.0, 1.0) for y in (0.0, 1.0)] + [{"x": 0.5, "y": 0.5}]


class Asked:
    """A screener that keeps the questions and changes its answers as it is told."""

    def __init__(self, **changes: Any) -> None:
        self.questions: list[Screening] = []
        self.changes = changes

    def __call__(self, screening: Screening) -> ScreeningReport:
        self.questions.append(screening)
        return replace(toy_screener(screening), **self.changes)


def open_strategy(screener: Asked, **options: Any) -> EmbeddingSurrogate:
    strategy = EmbeddingSurrogate(SPACE, EmbeddingSurrogateOptions(candidates=64, **options), seed=1)
    strategy.screener = screener
    return strategy


def corners() -> list[FrozenTrial]:
    return [make_trial(i, SPACE, params, value=0.1 * i) for i, params in enumerate(CORNERS)]


def with_picks(afters: Sequence[str]) -> list[FrozenTrial]:
    """Trials of predictions that promised nothing."""
    trials = corners()
    for after in afters:
        attrs: Mapping[str, Any] = {"strategy": "embedding_surrogate", "after": after, "promising": False}
        n = len(trials)
        trials.append(make_trial(n, SPACE, {"x": n / 100, "y": 0.3}, value=0.1, attrs=attrs))
    return trials


@pytest.mark.parametrize(("afters", "ends"), [("aaaa", False), ("ab", True), ("aabb", True), ("a", False), ("", False)])
def test_patience_counts_predictions_and_not_their_trials(afters: str, ends: bool) -> None:
    strategy = open_strategy(Asked(improvement=-1.0), patience=3, batch=4)
    assert strategy.exhausted(with_picks(afters)) is ends


def test_a_prediction_that_leaves_nothing_to_pick_is_the_last() -> None:
    strategy = open_strategy(Asked(picks=(), improvement=float("-inf")), patience=9)
    trials = corners()
    assert strategy.exhausted(trials)
    assert strategy.propose(trials, len(trials)) is None


def test_trials_that_another_program_added_are_known_and_not_learned_from() -> None:
    asked, trials = Asked(), corners()
    foreign = make_trial(5, SPACE, {"x": 0.2, "y": 0.7}, value=0.9)
    foreign.user_attrs = {}
    open_strategy(asked).propose([*trials, foreign], 6)
    (question,) = asked.questions
    assert question.keys == ("0", "1", "2", "3", "4")
    assert question.taken == ((0.2, 0.7),)


def test_sources_outside_of_the_space_are_references() -> None:
    asked = Asked()
    alone = [make_trial(i, SPACE, {}, value=0.4) for i in range(2)]
    for trial in alone:
        trial.user_attrs = {**trial.user_attrs, "source_alone": f"s{trial.number}"}
    failed = make_trial(2, SPACE, {}, TrialState.FAIL)
    failed.user_attrs = {"source_alone": "s2"}
    rest = corners()
    for trial in rest:
        trial.number += 3
    open_strategy(asked).propose([*alone, failed, *rest], 8)
    (question,) = asked.questions
    assert question.references == ("0", "1")
    assert question.keys == ("3", "4", "5", "6", "7")


def test_another_history_of_the_same_numbers_is_another_question() -> None:
    asked, trials = Asked(), corners()
    strategy = open_strategy(asked)
    trials.append(make_trial(5, SPACE, {"x": 0.25, "y": 0.75}, value=0.2))
    strategy.propose(trials, 6)
    strategy.propose(trials, 6)
    assert len(asked.questions) == 1
    other = [*trials[:5], make_trial(5, SPACE, {"x": 0.25, "y": 0.75}, TrialState.PRUNED, value=0.2)]
    found = strategy.propose(other, 6)
    assert len(asked.questions) == 2
    assert found == open_strategy(Asked()).propose(other, 6)
