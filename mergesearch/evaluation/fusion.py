"""Scores of a first stage and of a re-ranker made one: per query min-max, then a weighted sum.

Both lists of a query hold the same documents, so nothing is absent from one of them. The share λ of the re-ranker costs
no forward pass: all of `SHARES` are tried on scores that are there, inside a trial. It is no search dimension.

Notation: Q queries, K candidates of a query, L shares.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

SHARES = tuple(round(0.1 * i, 1) for i in range(11))
"""λ in {0, .1, …, 1}: 0 is the first stage alone, 1 the re-ranker alone (SIGIR'25, section 4, tunes in steps of .1)."""
_LEAST_RANGE = 1e-9
"""Scores that differ by less are equal: they become 0, as in ranx."""

_DIGITS = 12
"""Values that agree in so many digits are equal."""


def normalise(scores: NDArray[np.float64], present: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Scores of every query scaled to 0 … 1 over the candidates that are there; 0 elsewhere.

    Args:
        scores: float [..., Q, K].
        present: bool [Q, K], which of the K places hold a candidate.

    Returns:
        float64 [..., Q, K]. A list of one document, or of equal scores, is 0, as ranx's `min-max` has it.
    """
    scores = np.asarray(scores, dtype=np.float64)
    low = np.where(present, scores, np.inf).min(axis=-1, keepdims=True, initial=np.inf)
    high = np.where(present, scores, -np.inf).max(axis=-1, keepdims=True, initial=-np.inf)
    with np.errstate(invalid="ignore"):  # a query without candidates: infinities, all of them left out below
        scaled = (scores - low) / np.maximum(high - low, _LEAST_RANGE)
    return np.where(present, scaled, 0.0)


def fuse(
    first: NDArray[np.float64] | None,
    reranked: NDArray[np.float64],
    present: NDArray[np.bool_],
    shares: NDArray[np.float64],
) -> NDArray[np.float64]:
    """(1 - λ) · first + λ · re-ranked of normalised scores, for every share λ.

    It is ranx's `fuse(norm="min-max", method="wsum")`.

    Args:
        first: the first stage's scores [Q, K]; None where it has none (candidate lists), so that the re-ranker decides.
        reranked: the re-ranker's scores [..., Q, K].
        present: see `normalise`.
        shares: float64 [L].

    Returns:
        float64 [L, ..., Q, K]; 0 where no candidate is.
    """
    own = normalise(reranked, present)
    shares = np.asarray(shares, dtype=np.float64).reshape(-1, *(1,) * own.ndim)
    if first is None:
        return np.broadcast_to(own, (len(shares), *own.shape))
    fused: NDArray[np.float64] = (1 - shares) * normalise(first, present) + shares * own
    return fused


def order(fused: NDArray[np.float64], places: NDArray[np.int64]) -> NDArray[np.int64]:
    """Candidates of every query from the best, equal scores by document id, descending, as trec_eval has it.

    Args:
        fused: float64 [..., Q, K].
        places: int64 [Q, K], each candidate's place in the ascending order of document ids; -1 where there is none.

    Returns:
        Columns, int64 [..., Q, K]; those without a candidate come last.
    """
    scores = np.where(places >= 0, fused, -np.inf)
    # Stable: first by id, descending, then by score.
    by_id = np.broadcast_to(np.argsort(-places, axis=-1, kind="stable"), scores.shape)
    by_score = np.argsort(-np.take_along_axis(scores, by_id, axis=-1), axis=-1, kind="stable")
    columns: NDArray[np.int64] = np.take_along_axis(by_id, by_score, axis=-1)
    return columns


def best_share(scores: Sequence[NDArray[np.float64]], weights: Sequence[float]) -> NDArray[np.intp]:
    """Which share gives the highest value, the weighted mean of the collections' means: the first of equals.

    Args:
        scores: of every collection per query, with every share, [L, ..., Q].
        weights: of the collections.

    Returns:
        Positions among the L shares, [...].
    """
    total = math.fsum(weights)
    values = sum(weight / total * found.mean(axis=-1) for weight, found in zip(weights, scores, strict=True))
    # What differs by the rounding of sums is equal, in whatever order and company queries are scored.
    best: NDArray[np.intp] = np.round(values, _DIGITS).argmax(axis=0)
    return best
