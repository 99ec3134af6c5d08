"""Universal kriging: weights that predict anything smooth at new coefficients from its values at evaluated ones.

A linear trend in the coefficients and a stationary residual around it, solved as one bordered system (Matheron,
1969; Cressie, Statistics for Spatial Data, 1993, section 3.4). Embeddings are nearly linear in the coefficients
and the trend makes the prediction exact where they are. Everything that is predicted shares the weights, which
depend on coefficients alone.

Notation: n evaluated points, C candidates, D coordinates, P trend functions. Coordinates are positions in the unit
cube, but nothing here fails outside of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

Array = NDArray[np.float64]

NUGGET = 1e-6
"""Added to the kernel's diagonal, so that rounding of embeddings is not magnified; linear trends stay exact."""
LEAST_SPREAD = 0.02
"""A direction in which points spread less than this (root mean square) gets no trend: its slope would be noise."""
LEAST_REDUNDANCY = 1e-4
"""Points that the others say less about are left out by fitting again: the trend loses a direction without them."""
SAME_PLACE = 1e-9
"""Points closer than this, in every coordinate, are one."""
LENGTHS = tuple(2.0 ** (k / 2) for k in range(-4, 7))
"""Length scales that are tried, .25 to 8, in edges of the unit cube."""
USUAL_LENGTH = 2.0
"""Where there are too few points to choose a length by what they say about each other."""
LEAST_IMPROVEMENT = 0.02
"""Share of the error that a length of one coordinate's own must save."""


def _gaussian(distances: Array) -> Array:
    values: Array = np.exp(-0.5 * distances**2)
    return values


def _matern52(distances: Array) -> Array:
    scaled = math.sqrt(5) * distances
    values: Array = (1 + scaled + scaled**2 / 3) * np.exp(-scaled)
    return values


KERNELS: dict[str, Callable[[Array], Array]] = {"gaussian": _gaussian, "matern52": _matern52}
"""Correlations of the residual as functions of the distance in length scales."""


class Kriging:
    """A predictor fixed by evaluated points and length scales.

    Directions in which the points do not spread (too few of them, collinear, a coordinate that never changed)
    have no trend; with no more points than trend functions the prediction is plain linear interpolation.

    Args:
        points: evaluated points, [n, D] with n at least 1; repeated ones share their weight.
        lengths: length scale per coordinate, [D] or one number.
        kernel: a name in `KERNELS`.
    """

    def __init__(self, points: Array, lengths: Array | float, kernel: str = "gaussian") -> None:
        self.points = np.asarray(points, dtype=np.float64)
        n, dimensions = self.points.shape
        self.lengths: Array = np.broadcast_to(np.asarray(lengths, dtype=np.float64), (dimensions,))
        self.kernel = kernel
        self._centre = self.points.mean(axis=0)
        _, spreads, directions = np.linalg.svd(self.points - self._centre, full_matrices=False)
        kept = spreads / math.sqrt(n) > LEAST_SPREAD
        kept[n - 1 :] = False  # n points lie in n - 1 directions; the rest is rounding
        self._slopes_DP = (directions[kept] / (spreads[kept, None] / math.sqrt(n))).T
        self._n = n
        system = np.zeros((n + 1 + kept.sum(),) * 2)
        system[:n, :n] = self._correlations(self.points) + NUGGET * np.eye(n)
        system[:n, n:] = self._trend(self.points)
        system[n:, :n] = system[:n, n:].T
        self._inverse: Array = np.linalg.inv(system)

    def weights(self, candidates: Array) -> Array:
        """Weights [C, n] of the evaluated points in the predictions at `candidates`, [C, D].

        They sum to 1. At an evaluated point they single it out.
        """
        weights: Array = self._sides(candidates) @ self._inverse[:, : self._n]
        same = self._same(candidates)
        found = same.any(axis=1)
        weights[found] = same[found] / same[found].sum(axis=1, keepdims=True)
        return weights

    def variance(self, candidates: Array) -> Array:
        """Variance of the prediction at `candidates`, [C], in units of the residual's; 0 at evaluated points."""
        sides = self._sides(candidates)
        variance = 1.0 - np.einsum("ci,ci->c", sides @ self._inverse, sides)
        return np.where(self._same(candidates).any(axis=1), 0.0, np.maximum(variance, 0.0))

    @cached_property
    def left_out(self) -> tuple[Array, Array]:
        """Every point predicted from the others: weights [n, n], zero on the diagonal, and variances [n].

        Both are read off the inverse (Dubrule, Cross validation of kriging in a unique neighbourhood, 1983), but
        for points that alone carry a direction of the trend. A single point has no prediction: weight 0.
        """
        n = self._n
        if n == 1:
            return np.zeros((1, 1)), np.ones(1)
        inner = self._inverse[:n, :n]
        redundancy = inner.diagonal().copy()
        lone = np.flatnonzero(redundancy < LEAST_REDUNDANCY)
        redundancy[lone] = 1.0
        weights, variances = -inner / redundancy[:, None], 1 / redundancy
        np.fill_diagonal(weights, 0.0)
        for i in lone:
            others = np.delete(np.arange(n), i)
            rest = Kriging(self.points[others], self.lengths, self.kernel)
            weights[i, others] = rest.weights(self.points[i : i + 1])[0]
            variances[i] = rest.variance(self.points[i : i + 1])[0]
        return weights, variances

    def _correlations(self, candidates: Array) -> Array:
        return KERNELS[self.kernel](cdist(candidates / self.lengths, self.points / self.lengths))

    def _trend(self, candidates: Array) -> Array:
        return np.hstack([np.ones((len(candidates), 1)), (candidates - self._centre) @ self._slopes_DP])

    def _sides(self, candidates: Array) -> Array:
        return np.hstack([self._correlations(candidates), self._trend(candidates)])

    def _same(self, candidates: Array) -> NDArray[np.bool_]:
        same: NDArray[np.bool_] = cdist(candidates, self.points, "chebyshev") <= SAME_PLACE
        return same


@dataclass(frozen=True)
class LengthFit:
    """Length scales and how well they predict.

    Attributes:
        lengths: per coordinate, [D].
        errors: mean squared distance of each evaluated merge's embeddings from their prediction by the others, [n].
    """

    lengths: Array
    errors: Array


def fit_lengths(points: Array, gram: Array, kernel: str = "gaussian") -> LengthFit:
    """Length scales that predict the embeddings of evaluated merges best from the other merges.

    With w the weights of the others, the squared distance summed over all texts is (w - e)ᵀ G (w - e), so the
    inner products G of whole merges, computed once, are all that is needed. The predictions are not renormalised.

    First one length for all coordinates, of `LENGTHS`; then, with three points per coordinate or more, lengths are
    halved and doubled one by one while that helps. Up to D + 1 points say nothing about lengths: `USUAL_LENGTH`.

    Args:
        points: evaluated points, [n, D].
        gram: inner products of the merges' embeddings over all texts, [n, n]; centred or not is the same.
        kernel: a name in `KERNELS`.
    """
    n, dimensions = points.shape

    def errors(lengths: Array) -> Array:
        differences = Kriging(points, lengths, kernel).left_out[0] - np.eye(n)
        squares: Array = ((differences @ gram) * differences).sum(axis=1)
        return np.maximum(squares, 0.0)

    if n < dimensions + 2:
        usual = np.full(dimensions, USUAL_LENGTH)
        return LengthFit(usual, errors(usual))
    fits = [LengthFit(lengths, errors(lengths)) for lengths in (np.full(dimensions, length) for length in LENGTHS)]
    best = min(fits, key=lambda fit: float(fit.errors.sum()))
    improved = n >= 3 * dimensions and dimensions > 1
    while improved:
        improved = False
        for d in range(dimensions):
            for factor in (0.5, 2.0):
                lengths = best.lengths.copy()
                lengths[d] *= factor
                if not LENGTHS[0] <= lengths[d] <= LENGTHS[-1]:
                    continue
                tried = LengthFit(lengths, errors(lengths))
                if tried.errors.sum() < (1 - LEAST_IMPROVEMENT) * best.errors.sum():
                    best, improved = tried, True
    return best
