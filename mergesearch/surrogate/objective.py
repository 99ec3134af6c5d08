"""What is maximised, given scores per query.

The highest of many dev scores is partly luck: the queries favour that candidate by chance. A robust objective asks
for a gain that most resamples of the queries would show too; `mergesearch.evaluation.luck` says how much luck is left.

Notation: C candidates, Q queries of all collections side by side, B resamples, S splits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mergesearch.errors import EvaluationError, unknown
from mergesearch.evaluation.resampling import bootstrap_weights, plain_weights

Array = NDArray[np.float64]

OBJECTIVES = ("lower_bound", "mean", "cross_fit")


@dataclass(frozen=True)
class Objective:
    """An objective and its options.

    Attributes:
        name: `mean`: the dev score; `lower_bound`: the best source's score plus a lower bootstrap quantile of the
            gain over it; `cross_fit`: proposed by one half of the queries, judged by the other.
        quantile: of the gain, for `lower_bound`. The default is about the mean less .67 standard errors: three in
            four resamples gain more. With the usual 5 % (1.64 standard errors), hardly anything would beat the
            best source itself on a hundred queries.
        draws: bootstrap resamples, for `lower_bound`.
        splits: random halvings, for `cross_fit`; each is used both ways.
        proposed: share of all candidates that a half proposes, for `cross_fit`.
        seed: decides resamples and halvings.

    Raises:
        EvaluationError: there is no objective of that name, or an option is out of its range.
    """

    name: str = "lower_bound"
    quantile: float = 0.25
    draws: int = 256
    splits: int = 16
    proposed: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.name not in OBJECTIVES:
            raise EvaluationError(unknown("objective", self.name, OBJECTIVES))
        if not (0 < self.quantile < 1 and self.draws >= 1 and self.splits >= 1 and 0 < self.proposed <= 1):
            raise EvaluationError(
                f"{self}: quantile must lie between 0 and 1, proposed above 0 and up to 1, draws and splits from 1."
            )

    def values(self, scores: Array, references: Array, sizes: Sequence[int], shares: Sequence[float]) -> Array:
        """The objective of every candidate, float64 [C], on the scale of the metric.

        Args:
            scores: of the candidates per query, [C, Q]. `cross_fit` compares the candidates with each other.
            references: of unmerged sources per query, [any, Q]; `lower_bound` of none is that of the score.
            sizes: queries per collection.
            shares: share of each collection in the value.
        """
        plain = plain_weights(sizes, shares)
        if self.name == "mean":
            return scores @ plain
        if self.name == "lower_bound":
            return self._lower_bound(scores, references, plain, bootstrap_weights(sizes, shares, self.draws, self.seed))
        return self._cross_fit(scores, *halvings(sizes, shares, self.splits, self.seed))

    def _lower_bound(self, scores: Array, references: Array, plain: Array, resampled_BQ: Array) -> Array:
        best = references[np.argmax(references @ plain)] if len(references) else np.zeros(len(plain))
        gains_CB = (scores - best) @ resampled_BQ.T
        bound: Array = float(best @ plain) + np.quantile(gains_CB, self.quantile, axis=1)
        return bound

    def _cross_fit(self, scores: Array, first_SQ: Array, second_SQ: Array) -> Array:
        """Judged on one half, but good luck there counts only for what the other half would have proposed.

        A candidate that was not proposed is worth no more than the proposed ones are on average. So one that owes
        its score to a few queries never profits from them: either they do not judge, or they did not propose.
        The value is at most the mean over the halvings.
        """
        n_proposed = max(1, round(self.proposed * len(scores)))
        total = np.zeros(len(scores))
        for proposing, judging in ((first_SQ, second_SQ), (second_SQ, first_SQ)):
            standing_CS, judged_CS = scores @ proposing.T, scores @ judging.T
            threshold_S = np.partition(standing_CS, -n_proposed, axis=0)[-n_proposed]
            is_proposed = standing_CS >= threshold_S
            level_S = np.average(judged_CS, axis=0, weights=is_proposed)
            total += np.where(is_proposed, judged_CS, np.minimum(judged_CS, level_S)).sum(axis=1)
        return total / (2 * len(first_SQ))


def halvings(sizes: Sequence[int], shares: Sequence[float], splits: int, seed: int) -> tuple[Array, Array]:
    """Query weights of random halves and of their other halves, float64 [S, Q] each, with sums of 1.

    Collections are halved each by itself; a single query is in both halves.
    """
    random = np.random.default_rng(seed)
    total = float(sum(shares))
    columns: tuple[list[Array], list[Array]] = ([], [])
    for n, share in zip(sizes, shares, strict=True):
        places = random.permuted(np.broadcast_to(np.arange(n), (splits, n)), axis=1)
        for part, column in zip((places < n // 2, places >= n // 2), columns, strict=True):
            kept = np.ones_like(part) if n == 1 else part
            column.append(kept * (share / total / kept.sum(axis=1, keepdims=True)))
    return np.concatenate(columns[0], axis=1), np.concatenate(columns[1], axis=1)


def paired_error(a: Array, b: Array, sizes: Sequence[int], shares: Sequence[float]) -> float:
    """Standard error of the difference between the values of two merges, scored on the same queries, [Q] each.

    Collections are independent samples; one with a single query has no spread to tell and adds nothing.
    """
    total = float(sum(shares))
    parts = np.split(a - b, np.cumsum(sizes)[:-1])
    return math.sqrt(
        sum((s / total) ** 2 * float(p.var(ddof=1)) / len(p) for p, s in zip(parts, shares, strict=True) if len(p) > 1)
    )
