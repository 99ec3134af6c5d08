"""Objectives and optimism, against simulations where the truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mergesearch.errors import EvaluationError
from mergesearch.evaluation.resampling import plain_weights
from mergesearch.surrogate.objective import OBJECTIVES, Objective, halvings, paired_error

SIZES, SHARES = (30, 10), (1.0, 2.0)
NONE = np.empty((0, 40))


def noise(seed: int, n: int, queries: int = 40, sd: float = 0.2) -> np.ndarray:
    return 0.5 + sd * np.random.default_rng(seed).normal(size=(n, queries))


def test_mean_is_the_weighted_mean_of_collections() -> None:
    scores = noise(0, 3)
    expected = (scores[:, :30].mean(axis=1) + 2 * scores[:, 30:].mean(axis=1)) / 3
    np.testing.assert_allclose(Objective("mean").values(scores, NONE, SIZES, SHARES), expected)


def test_lower_bound_is_the_source_and_about_two_thirds_of_a_standard_error_less_than_the_mean() -> None:
    scores, sources = noise(1, 20), noise(2, 2)
    plain = plain_weights(SIZES, SHARES)
    best = sources[np.argmax(sources @ plain)]
    bound = Objective(draws=4000).values(np.vstack([scores, best]), sources, SIZES, SHARES)
    assert bound[-1] == pytest.approx(best @ plain)
    errors = np.array([paired_error(s, best, SIZES, SHARES) for s in scores])
    np.testing.assert_allclose(bound[:-1], scores @ plain - 0.674 * errors, atol=0.15 * errors.mean())


def test_lower_bound_prefers_an_even_gain_to_an_equal_gain_on_few_queries() -> None:
    source = noise(3, 1)
    even, lumpy = source + 0.02, source.copy()
    lumpy[0, :4] += 0.02 * 40 / 4
    both = np.vstack([even, lumpy])
    bounds = Objective().values(both, source, (40,), (1.0,))
    assert both[0].mean() == pytest.approx(both[1].mean())
    assert bounds[0] > bounds[1] + 0.002


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000))
def test_cross_fit_is_at_most_the_mean_and_the_mean_for_who_is_always_proposed(seed: int) -> None:
    scores = noise(seed, 30)
    scores[7] += 1.0
    values = Objective("cross_fit").values(scores, NONE, (40,), (1.0,))
    assert (values <= scores.mean(axis=1) + 1e-12).all()
    assert values[7] == pytest.approx(scores[7].mean())
    assert values.argmax() == 7


def test_cross_fit_damps_luck() -> None:
    """A candidate that is truly better is chosen more often than by the mean when others are erratic."""
    chosen = {"mean": 0, "cross_fit": 0}
    for seed in range(60):
        scores = noise(seed, 60, sd=0.05) - 0.05
        scores[:, ::10] += 2.0 * (np.random.default_rng(seed + 500).random((60, 4)) - 0.5)
        scores[0] = 0.5 + 0.05 * np.random.default_rng(seed + 900).normal(size=40)
        for name in chosen:
            chosen[name] += int(Objective(name).values(scores, NONE, (40,), (1.0,)).argmax() == 0)
    assert chosen["cross_fit"] > chosen["mean"]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives_are_functions_of_their_arguments(name: str) -> None:
    scores = noise(5, 9)
    values = [Objective(name, seed=s).values(scores, scores[:2], SIZES, SHARES) for s in (1, 1, 2)]
    np.testing.assert_array_equal(values[0], values[1])
    assert name == "mean" or (values[0] != values[2]).any()
    assert np.isfinite(Objective(name).values(scores, NONE, SIZES, SHARES)).all()


def test_halves_share_no_query_and_leave_none_out() -> None:
    first, second = halvings((5, 1, 4), (1.0, 1.0, 2.0), 10, 0)
    for half in (first, second):
        np.testing.assert_allclose(half.sum(axis=1), 1.0)
        np.testing.assert_allclose(half[:, 6:].sum(axis=1), 0.5)
    apart = [0, 1, 2, 3, 4, 6, 7, 8, 9]
    assert ((first[:, apart] > 0) != (second[:, apart] > 0)).all()
    assert (first[:, 5] == 0.25).all()


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(EvaluationError, match="Did you mean 'mean'"):
        Objective("meen")
    with pytest.raises(EvaluationError, match="quantile"):
        Objective(quantile=0.0)
