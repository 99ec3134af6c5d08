"""Where candidates come from: a lattice listed whole, low-discrepancy points, and steps around good ones."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import qmc

from mergesearch.surrogate.kriging import SAME_PLACE

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Space:
    """The unit cube [0, 1]^D, with some coordinates limited to listed positions.

    Attributes:
        allowed: per coordinate its positions, ascending; None for all of [0, 1].
    """

    allowed: tuple[tuple[float, ...] | None, ...]

    def lattice(self, most: int) -> Array | None:
        """All points, [C, D]; None where there are more than `most`."""
        listed = [positions for positions in self.allowed if positions is not None]
        if len(listed) < len(self.allowed) or math.prod(map(len, listed)) > most:
            return None
        return as_points(tuple(itertools.product(*listed)), len(listed))

    def spread(self, n: int, dimensions: int, random: np.random.Generator) -> Array:
        """`n` points of a scrambled Sobol sequence, [n, D]."""
        points: Array = qmc.Sobol(dimensions, seed=random).random_base2(max(0, n - 1).bit_length())
        return self.snap(points[:n])

    def around(self, points: Array, n: int, size: float, random: np.random.Generator) -> Array:
        """About `n` points near `points`, [n, D]: normal steps of s.d. `size` and less, in some of the coordinates.

        Steps are cut off at the faces of the cube, where optima often lie.
        """
        dimensions = points.shape[1]
        parents = points[np.arange(n) % len(points)]
        moved = random.random((n, dimensions)) < random.choice([1.0, 0.5, 1.5 / dimensions], size=(n, 1))
        steps = random.standard_normal((n, dimensions)) * size * 2.0 ** -random.integers(0, 4, size=(n, 1))
        clipped: Array = np.clip(parents + moved * steps, 0.0, 1.0)
        return self.snap(clipped)

    def snap(self, points: Array) -> Array:
        """Every coordinate moved to its nearest permitted position."""
        snapped = points.copy()
        for d, positions in enumerate(self.allowed):
            if positions is not None:
                listed = np.array(positions)
                nearest = np.searchsorted((listed[1:] + listed[:-1]) / 2, points[:, d])
                snapped[:, d] = listed[nearest]
        return snapped

    def positions(self, d: int, n: int) -> Array:
        """At most `n` positions of coordinate `d`, evenly spaced, or evenly by rank where they are listed."""
        listed = self.allowed[d]
        if listed is None:
            return np.linspace(0.0, 1.0, n)
        picked = np.unique(np.linspace(0, len(listed) - 1, min(n, len(listed))).round().astype(int))
        chosen: Array = np.array(listed)[picked]
        return chosen

    @staticmethod
    def fresh(points: Array, taken: Array) -> Array:
        """`points` without repetitions and without those in `taken`, in their order."""
        both = np.concatenate([taken, points])
        cells = np.round(both / (2 * SAME_PLACE)).astype(np.int64)
        _, first = np.unique(cells, axis=0, return_index=True)
        return both[np.sort(first[first >= len(taken)])]


def as_points(points: Sequence[Sequence[float]], dimensions: int) -> Array:
    """Points as an array [any, D], also when there are none."""
    return np.array(points, dtype=np.float64).reshape(len(points), dimensions)
