"""Kriging weights: exact where they must be, sensible where a design is poor."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mergesearch.surrogate.kriging import KERNELS, LENGTHS, USUAL_LENGTH, Kriging, fit_lengths

Array = NDArray[np.float64]

kernels = st.sampled_from(sorted(KERNELS))
lengths = st.sampled_from([0.3, 1.0, 2.0])
seeds = st.integers(0, 10_000)


def design(seed: int, n: int, dimensions: int) -> Array:
    return np.random.default_rng(seed).random((n, dimensions))


@settings(deadline=None)
@given(seeds, st.integers(1, 20), st.integers(1, 5), lengths, kernels)
def test_weights_sum_to_one_and_single_out_evaluated_points(
    seed: int, n: int, dimensions: int, length: float, kernel: str
) -> None:
    points = design(seed, n, dimensions)
    kriging = Kriging(points, length, kernel)
    np.testing.assert_allclose(kriging.weights(design(seed + 1, 9, dimensions)).sum(axis=1), 1.0, atol=1e-6)
    np.testing.assert_array_equal(kriging.weights(points), np.eye(n))
    np.testing.assert_array_equal(kriging.variance(points), 0.0)


@settings(deadline=None)
@given(seeds, st.integers(1, 4), lengths, kernels)
def test_linear_functions_are_reproduced_exactly(seed: int, dimensions: int, length: float, kernel: str) -> None:
    corners = np.vstack([np.zeros(dimensions), np.eye(dimensions)])
    points = np.vstack([corners, design(seed, 4, dimensions)])
    slopes = np.random.default_rng(seed).normal(size=(dimensions, 3))
    candidates = design(seed + 1, 20, dimensions) * 2 - 0.5
    for evaluated in (points, corners):
        predicted = Kriging(evaluated, length, kernel).weights(candidates) @ (evaluated @ slopes + 1.0)
        np.testing.assert_allclose(predicted, candidates @ slopes + 1.0, atol=1e-5)


def test_a_smooth_function_is_predicted_better_from_more_points() -> None:
    def function(points: Array) -> Array:
        return np.asarray(np.sin(3 * points[:, 0]) * np.cos(2 * points[:, 1]))

    candidates = design(9, 200, 2)
    errors = [
        np.abs(Kriging(p, 1.0).weights(candidates) @ function(p) - function(candidates)).mean()
        for p in (design(1, n, 2) for n in (5, 15, 40))
    ]
    assert errors[0] > 4 * errors[1] > 8 * errors[2]
    assert errors[2] < 5e-3


@settings(deadline=None)
@given(seeds, st.integers(1, 3), lengths, kernels)
def test_leaving_out_in_closed_form_is_fitting_again(seed: int, dimensions: int, length: float, kernel: str) -> None:
    corners = np.vstack([np.zeros(dimensions), np.ones(dimensions), np.eye(dimensions)])
    points = np.vstack([corners, design(seed, 8, dimensions)])
    weights, variances = Kriging(points, length, kernel).left_out
    for i, point in enumerate(points):
        rest = Kriging(np.delete(points, i, axis=0), length, kernel)
        values = np.sin(points.sum(axis=1))
        if np.abs(points - np.delete(points, i, axis=0)[:, None]).max(axis=2).min() > 1e-3:
            expected = rest.weights(point[None])[0] @ np.delete(values, i)
            assert weights[i, i] == 0.0
            assert weights[i] @ values == pytest.approx(expected, abs=1e-4)
            assert variances[i] == pytest.approx(rest.variance(point[None])[0], rel=1e-2, abs=1e-6)


def test_a_point_that_alone_moves_a_coordinate_is_left_out_all_the_same() -> None:
    points = np.vstack([np.zeros(3), np.eye(3), [[0.5, 0.5, 0.0], [0.25, 0.75, 0.0]]])
    weights, variances = Kriging(points, 1.0).left_out
    assert np.abs(weights).max() < 10
    np.testing.assert_allclose(weights.sum(axis=1), 1.0, atol=1e-6)
    assert variances[3] > 10 * variances[4]


@pytest.mark.parametrize(
    "points",
    [
        [[0.5, 0.5]],
        [[0.5, 0.5]] * 4,
        [[0.1, 0.1], [0.5, 0.5], [0.9, 0.9], [0.3, 0.3], [0.7, 0.7]],
        [[0.0, 0.4], [0.5, 0.4], [1.0, 0.4], [0.5, 0.4]],
        [[0.2, 0.2], [0.2, 0.2 + 1e-7], [0.8, 0.1], [0.1, 0.9], [0.6, 0.6]],
    ],
    ids=["single", "one place", "collinear", "constant coordinate", "nearly equal"],
)
@pytest.mark.parametrize("kernel", KERNELS)
def test_poor_designs_predict_within_reason(points: list[list[float]], kernel: str) -> None:
    evaluated = np.array(points)
    kriging = Kriging(evaluated, 2.0, kernel)
    candidates = design(3, 50, 2)
    weights = kriging.weights(candidates)
    np.testing.assert_allclose(weights.sum(axis=1), 1.0, atol=1e-6)
    values = evaluated.sum(axis=1)
    predicted = weights @ values
    assert predicted.min() > values.min() - 2
    assert predicted.max() < values.max() + 2
    assert (kriging.variance(candidates) >= 0).all()
    assert np.isfinite(kriging.left_out[0]).all()
    np.testing.assert_allclose(kriging.weights(evaluated) @ values, values, atol=1e-6)
    fit = fit_lengths(evaluated, np.outer(values, values), kernel)
    assert np.isfinite(fit.errors).all()


def test_variance_grows_with_distance_and_shrinks_with_points() -> None:
    kriging = Kriging(np.array([[0.0, 0.0], [0.2, 0.0], [0.0, 0.2], [0.2, 0.2]]), 0.5)
    near, far = kriging.variance(np.array([[0.25, 0.25], [0.9, 0.9]]))
    assert 0 < near < far
    more = Kriging(np.vstack([kriging.points, [[0.8, 0.8]]]), 0.5)
    assert more.variance(np.array([[0.9, 0.9]]))[0] < far


def test_lengths_are_those_of_the_coordinates_that_bend() -> None:
    points = design(5, 40, 2)
    bent = np.sin(6 * points[:, 0]) + 0.1 * points[:, 1]
    fit = fit_lengths(points, np.outer(bent, bent))
    assert fit.lengths[0] < fit.lengths[1]
    assert set(fit.lengths) <= set(LENGTHS)
    common = min(fit_error(points, bent, length) for length in LENGTHS)
    assert fit.errors.sum() <= common


def fit_error(points: Array, values: Array, length: float) -> float:
    return float(((Kriging(points, length).left_out[0] @ values - values) ** 2).sum())


def test_errors_are_squared_distances_over_all_texts() -> None:
    points = design(7, 8, 2)
    embeddings = np.random.default_rng(1).normal(size=(8, 30))
    fit = fit_lengths(points, embeddings @ embeddings.T)
    predicted = Kriging(points, fit.lengths).left_out[0] @ embeddings
    np.testing.assert_allclose(fit.errors, ((predicted - embeddings) ** 2).sum(axis=1), rtol=1e-6)
    centred = embeddings - embeddings.mean(axis=0)
    np.testing.assert_allclose(fit_lengths(points, centred @ centred.T).errors, fit.errors, rtol=1e-6)


def test_few_points_say_nothing_about_lengths() -> None:
    points = np.vstack([np.zeros(4), np.eye(4)])
    assert set(fit_lengths(points, np.eye(5)).lengths) == {USUAL_LENGTH}
