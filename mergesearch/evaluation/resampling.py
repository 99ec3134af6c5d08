"""Query weights: plain and resampled means over collections as one matrix product.

Scores of T merges on Q queries of all collections, side by side, are a matrix [T, Q]. Every mean that a study
takes of them is a product with Q weights: a query's share is its collection's share divided by the number of
its queries. Resampled means (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 6) differ in
the weights only; collections are resampled each by itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def plain_weights(sizes: Sequence[int], shares: Sequence[float]) -> NDArray[np.float64]:
    """Weights of the plain weighted mean, float64 [Q], with the sum 1.

    Args:
        sizes: queries per collection, all positive.
        shares: share of each collection in the value; they need not add up to 1.
    """
    total = float(sum(shares))
    return np.concatenate([np.full(n, share / total / n) for n, share in zip(sizes, shares, strict=True)])


def bootstrap_weights(sizes: Sequence[int], shares: Sequence[float], draws: int, seed: int) -> NDArray[np.float64]:
    """Weights of resampled means, float64 [draws, Q]: queries drawn with replacement within their collection.

    Args:
        sizes: queries per collection, all positive.
        shares: share of each collection in the value; they need not add up to 1.
        draws: how many resamples.
        seed: decides the draws, and nothing else does.
    """
    random = np.random.default_rng(seed)
    total = float(sum(shares))
    columns = []
    for n, share in zip(sizes, shares, strict=True):
        counts = random.multinomial(n, np.full(n, 1 / n), size=draws)
        columns.append(counts * (share / total / n))
    return np.concatenate(columns, axis=1)
