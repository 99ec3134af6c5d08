"""Luck of the highest: its estimate against what is known of made-up merges."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mergesearch.evaluation.luck import Luck, highest


def estimated_and_true(true_T: NDArray[np.float64], n_queries: int, worlds: int, seed: int = 0) -> tuple[float, float]:
    """Means over made-up dev splits of the estimate and of value(highest) − true(highest)."""
    rng = np.random.default_rng(seed)
    estimated, measured = [], []
    for world in range(worlds):
        hard_Q = rng.normal(0, 0.3, n_queries)
        scores = true_T[:, None] + hard_Q + rng.normal(0, 0.1, (len(true_T), n_queries))
        luck = Luck(scores, [n_queries], [1.0], draws=300, seed=world)
        best = luck.values_T.argmax()
        estimated.append(luck.optimism())
        measured.append(luck.values_T[best] - true_T[best] - hard_Q.mean())
    return float(np.mean(estimated)), float(np.mean(measured))


@pytest.mark.parametrize("n_queries", [30, 120])
@pytest.mark.parametrize("n_merges", [4, 30])
def test_among_merges_that_differ_by_noise_alone_all_of_the_lead_is_luck(n_merges: int, n_queries: int) -> None:
    estimated, measured = estimated_and_true(np.zeros(n_merges), n_queries, worlds=150)
    expected = {4: 1.0294, 30: 2.0428}[n_merges] * 0.1 / n_queries**0.5  # of the largest of so many normal numbers
    assert measured == pytest.approx(expected, rel=0.2)
    assert estimated == pytest.approx(expected, rel=0.2)


def test_among_merges_that_do_differ_it_is_neither_half_nor_twice_the_truth() -> None:
    smooth = -0.02 * np.linspace(-1, 1, 25) ** 2
    spread = np.random.default_rng(1).normal(0, 0.01, 25)
    for true_T in (smooth, spread):
        estimated, measured = estimated_and_true(true_T, 80, worlds=150)
        assert 0.7 * measured < estimated < 1.5 * measured


def test_a_merge_that_is_better_by_far_owes_nothing_to_luck() -> None:
    estimated, _ = estimated_and_true(np.array([0.2, *np.zeros(20)]), 60, worlds=20)
    assert estimated < 1e-4


def test_identical_merges_have_none() -> None:
    row = np.random.default_rng(0).random(40)
    luck = Luck(np.stack([row] * 5), [40], [1.0])
    assert luck.optimism() == 0
    assert luck.interval(0, 3) == (0, 0)
    assert Luck(row[None], [40], [1.0]).optimism() == 0


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 6), st.integers(1, 20))
def test_it_is_not_negative_and_what_all_merges_share_is_no_luck(seed: int, n_merges: int, n_queries: int) -> None:
    rng = np.random.default_rng(seed)
    scores, shared = rng.random((n_merges, n_queries)), rng.normal(0, 5, n_queries)
    luck = Luck(scores, [n_queries], [1.0], draws=50)
    assert luck.optimism() >= 0
    assert Luck(scores + shared, [n_queries], [1.0], draws=50).optimism() == pytest.approx(luck.optimism(), abs=1e-9)
    assert Luck(3 * scores, [n_queries], [1.0], draws=50).optimism() == pytest.approx(3 * luck.optimism(), abs=1e-9)


def test_more_merges_of_the_same_kind_mean_more_luck_and_more_queries_less() -> None:
    few, _ = estimated_and_true(np.zeros(3), 50, worlds=40)
    many, _ = estimated_and_true(np.zeros(60), 50, worlds=40)
    long, _ = estimated_and_true(np.zeros(60), 800, worlds=40)
    assert few < many / 1.5
    assert long < many / 3  # √16, less chance


def test_a_rule_that_does_not_look_at_scores_has_none() -> None:
    scores = np.random.default_rng(0).random((5, 30))
    luck = Luck(scores, [30], [1.0])
    assert luck.optimism(lambda values: np.full(len(values), 2, dtype=np.intp)) == 0
    assert luck.optimism(highest) == luck.optimism() > 0


def test_collections_are_resampled_each_by_itself_with_their_shares() -> None:
    # All differences are in the second collection: with a share of one quarter a quarter of the luck is left.
    rng = np.random.default_rng(0)
    flat, noise = np.zeros((8, 20)), rng.normal(0, 0.1, (8, 50))
    alone = Luck(noise, [50], [1.0], draws=4000).optimism()
    both = Luck(np.hstack([flat, noise]), [20, 50], [3.0, 1.0], draws=4000)
    assert both.values_T == pytest.approx(noise.mean(axis=1) / 4)
    assert both.optimism() == pytest.approx(alone / 4, rel=0.1)


def test_the_interval_is_that_of_the_paired_difference() -> None:
    rng = np.random.default_rng(0)
    common = rng.normal(0, 1, 400)
    a, b = common + rng.normal(0.05, 0.1, 400), common
    low, high = Luck(np.stack([a, b]), [400], [1.0], draws=4000).interval(0, 1)
    error = (a - b).std(ddof=1) / 20
    assert (low, high) == pytest.approx(
        ((a - b).mean() - 1.96 * error, (a - b).mean() + 1.96 * error), abs=0.15 * error
    )
