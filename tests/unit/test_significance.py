"""Paired comparisons against their closed forms and exact counts."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from mergesearch.errors import EvaluationError
from mergesearch.evaluation.significance import compare, holm


def test_the_t_test_is_the_textbook_formula() -> None:
    a, b = np.random.default_rng(0).random((2, 40))
    d = a - b
    t = d.mean() / (d.std(ddof=1) / np.sqrt(40))
    comparison = compare(a, b)
    assert comparison.mean_difference == pytest.approx(d.mean())
    assert comparison.p_ttest == pytest.approx(2 * stats.t.sf(abs(t), 39))
    assert comparison.n == 40


def test_few_queries_get_the_exact_permutation_p_value() -> None:
    d = np.array([0.3, 0.1, 0.25, -0.05, 0.4, 0.2])
    flips = [abs(np.dot(signs, d)) for signs in itertools.product((1, -1), repeat=6)]
    exact = np.mean([flip >= abs(d.sum()) - 1e-12 for flip in flips])
    assert compare(d, np.zeros(6)).p_permutation == pytest.approx(exact)


def test_the_interval_covers_the_true_difference_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(40):
        low, high = compare(rng.normal(0.02, 0.1, 80), np.zeros(80)).interval
        covered += low <= 0.02 <= high
    assert covered >= 34  # 38 expected; fewer than 34 in 1% of seeds


def test_swapping_the_models_mirrors_the_result() -> None:
    a, b = np.random.default_rng(2).random((2, 30))
    one, other = compare(a, b), compare(b, a)
    assert one.mean_difference == -other.mean_difference
    assert one.p_ttest == pytest.approx(other.p_ttest)
    assert one.interval[0] == pytest.approx(-other.interval[1], abs=5e-3)


def test_equal_calls_give_equal_results() -> None:
    a, b = np.random.default_rng(3).random((2, 25))
    assert compare(a, b) == compare(a, b)
    assert compare(a, b).interval != compare(a, b, seed=1).interval


def test_differences_without_spread() -> None:
    same = compare(np.full(5, 0.4), np.full(5, 0.4))
    assert (same.mean_difference, same.interval) == (0.0, (0.0, 0.0))
    assert (same.p_ttest, same.p_permutation) == (1.0, 1.0)
    shifted = compare(np.full(12, 0.5), np.zeros(12))
    assert (shifted.interval, shifted.p_ttest) == ((0.5, 0.5), 0.0)
    assert shifted.p_permutation == pytest.approx(2 / 2**12)


def test_scores_that_are_not_paired_are_refused() -> None:
    with pytest.raises(EvaluationError, match="equally long"):
        compare(np.zeros(3), np.zeros(4))
    with pytest.raises(EvaluationError, match="at least 2"):
        compare(np.zeros(1), np.zeros(1))


def test_holm_multiplies_by_the_comparisons_left_and_never_falls() -> None:
    # Sorted .01, .02, .04: .01 × 3, .02 × 2, then max(.04 × 1, .04).
    assert holm([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_a_higher_level_of_confidence_makes_the_interval_wider_and_nothing_else() -> None:
    a, b = np.random.default_rng(3).random((2, 60))
    usual, higher = compare(a, b), compare(a, b, level=0.99)
    assert (usual.level, higher.level) == (0.95, 0.99)
    assert higher.interval[0] < usual.interval[0] < usual.interval[1] < higher.interval[1]
    assert (usual.p_ttest, usual.p_permutation) == (higher.p_ttest, higher.p_permutation)
