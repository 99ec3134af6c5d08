"""Gradients: a coefficient given at a few knots that are spread evenly over the model's depth.

Between knots it is interpolated linearly in the coefficient itself, whatever scale the knots are searched on.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

Key = TypeVar("Key")

_DIGITS = 9
"""Depths are rounded to these many decimals: a knot that a layer lies on decides that layer alone."""


def knot_shares(depth: float, knots: int) -> dict[int, float]:
    """Knot (from 0) to its share in the value at `depth`; shares are positive and sum to 1.

    Args:
        depth: from 0, where the first knot lies, to 1, where the last one does.
        knots: how many there are, 2 or more.
    """
    position = round(depth * (knots - 1), _DIGITS)
    below = min(math.floor(position), knots - 2)
    above = position - below
    return {k: share for k, share in ((below, 1 - above), (below + 1, above)) if share}


def mix(values: Mapping[Key, float], shares: Mapping[Key, float]) -> float:
    """Σ shareₖ · valueₖ; where all values are equal, exactly that value."""
    first, *others = (values[k] for k in shares)
    if all(value == first for value in others):
        return first
    return tidy(math.fsum(share * values[k] for k, share in shares.items()))


def knots_told_apart(depths: Collection[float], knots: int) -> int:
    """How many of `knots` values follow from the values at `depths`: fewer than all if some knot has no say there."""
    shares = [knot_shares(depth, knots) for depth in depths]
    matrix = np.array([[here.get(k, 0.0) for k in range(knots)] for here in shares])
    return int(np.linalg.matrix_rank(matrix)) if len(matrix) else 0


def tidy(value: float) -> float:
    """1 − 0.9 is 0.1 here: a recipe should not depend on how a number was reached."""
    return float(f"{value:.15g}")
