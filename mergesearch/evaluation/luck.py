"""How much of the highest dev score is luck, estimated from the scores of all merges on every query.

A dev score v is the true score plus noise, since the queries are a sample. Of the merge that scores highest the noise
is positive on average: its *optimism* E[v(chosen) − true(chosen)]. The bootstrap repeats the choice on resampled
queries, where the true scores of that world are known: they are the v's (Efron, Estimating the error rate of a
prediction rule, JASA 1983; Harrell, Regression Modeling Strategies, 2015, section 5.3).

A resample adds its noise to that of the v's. With √λ times a resample's deviations the choice is made under 1 + λ times
the variance, so as if there were 1 / (1 + λ) as many queries, and λ / (1 + λ) of the noise that was chosen is the
resample's own, which is seen (Oliveira, Lei and Tibshirani, Unbiased risk estimation in the normal means problem via
coupled bootstrap techniques, 2021). So (1 + λ) / λ times the mean deviation of what the resamples choose is the
optimism at 1 / (1 + λ) of the queries, O(1 + λ) for short. O(1) is wanted, and extrapolated from O(2) and O(4), along
O(x) ∝ x^(p/2) (simulation-extrapolation: Cook and Stefanski, JASA 1994). Where merges differ by luck alone p is 1, and
never less, for a maximum is convex in the noise; where more queries bring the choice closer to a smooth optimum p is 2.
The plain bootstrap is O(2) / 2: right with p = 2, three tenths too small with p = 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from mergesearch.evaluation.resampling import bootstrap_weights, plain_weights

DRAWS = 1000
"""Resamples: the estimate is then steady to a few hundredths of the noise."""

Rule = Callable[[NDArray[np.float64]], NDArray[np.intp]]
"""Values of all merges in B worlds, float64 [B, T], to the merge that is chosen in each, [B]."""


def highest(values_BT: NDArray[np.float64]) -> NDArray[np.intp]:
    """Plain maximisation; the first of equal ones."""
    chosen_B: NDArray[np.intp] = values_BT.argmax(axis=1)
    return chosen_B


class Luck:
    """Resampled values of T merges on the same Q queries.

    Args:
        scores_TQ: per merge and query, collections side by side, float64.
        sizes: queries per collection; every collection is resampled by itself.
        shares: share of each collection in the value; they need not add up to 1.
        draws: resamples.
        seed: decides the resamples, and nothing else does.
    """

    def __init__(
        self,
        scores_TQ: NDArray[np.float64],
        sizes: Sequence[int],
        shares: Sequence[float],
        *,
        draws: int = DRAWS,
        seed: int = 0,
    ) -> None:
        plain = plain_weights(sizes, shares)
        self.values_T = scores_TQ @ plain
        self._deviations_BT = (bootstrap_weights(sizes, shares, draws, seed) - plain) @ scores_TQ.T

    def optimism(self, rule: Rule = highest) -> float:
        """By how much the value of what `rule` chooses is above its true value, on average; 0 or more."""
        half, quarter = self._at(rule, 1.0), self._at(rule, 3.0)
        if half <= 0 or quarter <= 0:
            return 0.0
        return half * min(max(half / quarter, 1 / 2), 1 / math.sqrt(2))  # 2^(-p/2) is O(2) / O(4), for p from 1 to 2

    def _at(self, rule: Rule, noise: float) -> float:
        """Optimism of `rule` on 1 / (1 + noise) as many queries.

        Deviations are taken as differences from those of the merge that is chosen on all queries: the mean stays the
        same and what all merges have in common, hard and easy queries, no longer blurs it.
        """
        deviations_BT = math.sqrt(noise) * self._deviations_BT
        (chosen,) = rule(self.values_T[None])
        chosen_B = rule(self.values_T + deviations_BT)
        own = deviations_BT[np.arange(len(chosen_B)), chosen_B]
        return (1 + noise) / noise * float((own - deviations_BT[:, chosen]).mean())

    def interval(self, a: int, b: int, level: float = 0.95) -> tuple[float, float]:
        """Paired percentile interval of value(a) − value(b), as if both had been named beforehand."""
        differences = self.values_T[a] - self.values_T[b] + self._deviations_BT[:, a] - self._deviations_BT[:, b]
        low, high = np.quantile(differences, [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)
