"""When a raced trial is stopped: it cannot win any more, with a bounded chance of being wrong.

A trial has been scored on n of the N queries of a collection, a random sample of them. A complete trial, its rival,
was scored on the same queries over the same documents. With d the mean of the paired differences and s their
standard deviation, the difference over all N queries lies below

    d + t(1 - level, n - 1) · s · √((1 - n/N) / n)

with probability 1 - level (Cochran, Sampling Techniques, 1977, sections 2.6-2.8: the finite population correction,
since the value that decides is the one over these N queries). A trial whose bound is below zero is stopped. Means of
several collections add up by their shares and variances by squared shares, with Welch's and Satterthwaite's degrees
of freedom.

A look that is approximate adds an error of its own: over fewer documents the difference of the same queries is another
one. How much another, complete trials tell, since theirs is known over both: `drift`. Its mean square between rival and
other complete trials is added to the variance, with as many degrees of freedom as there are others. The best trial is
the best in part because its drift is upwards, so that leaving the mean of the drift alone favours the trial.

The chance of being wrong is spent over looks and rivals in equal parts (Bonferroni): whatever the dependence between
looks, a trial that would have beaten its rivals is stopped with a probability of `alpha` at most. Plans that keep
most of it for late looks (O'Brien and Fleming) would save least where most is to be saved.

Differences of retrieval scores are zero for many queries and large for a few, and a sample that misses the large gains
of a trial makes it look surely worse: the plain bound is wrong two to seven times too often. So the sample is given one
more query, on which the trial gains as much as the largest difference seen in either direction. And nothing is decided
before `LEAST_QUERIES` queries, and `LEAST_DIFFERENT` on which the two differ. What is left are populations whose gains
are rare and many times larger than all else; tests/unit/test_racing.py says how often each kind is stopped wrongly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from mergesearch.evaluation.looks import LookSettings

LEAST_QUERIES = 20
"""Over all collections, before the first decision."""
LEAST_DIFFERENT = 10
"""Of them, on which the trial and its rival have different scores."""


@dataclass(frozen=True)
class RacingSettings:
    """How trials are raced.

    Attributes:
        looks: what is looked at.
        alpha: largest probability of stopping a trial that would have beaten every rival.
        rivals: how many of the best trials a trial is compared with.
    """

    looks: LookSettings = field(default_factory=LookSettings)
    alpha: float = 0.01
    rivals: int = 1


@dataclass(frozen=True)
class Rival:
    """A complete trial that others are compared with.

    Attributes:
        number: of the trial.
        value: its value.
        looks: per collection its scores after every look but the last, fp32 [L - 1, Q]; NaN for queries not looked at.
        drift: after every look but the last, the root mean square of what other complete trials' differences from it
            move by until the end, for the queries looked at; float64 [L - 1].
        others: how many complete trials say so; without any, nothing is decided.
    """

    number: int
    value: float
    looks: tuple[NDArray[np.float32], ...]
    drift: NDArray[np.float64]
    others: int


@dataclass(frozen=True)
class Difference:
    """How a trial differs from a rival, as a forecast for all queries.

    Attributes:
        mean: trial minus rival over the queries scored so far, weighted over collections.
        cautious: the mean with the query that is added to every sample; the same when all have been scored.
        error: standard error of `cautious`, 0 when all queries have been scored.
        degrees: of freedom of the error.
    """

    mean: float
    cautious: float
    error: float
    degrees: float

    def plus(self, error: float, degrees: float) -> Difference:
        """The same with an independent error added to it."""
        variances = np.array([self.error**2, error**2])
        curvature = float((variances**2 / np.array([self.degrees, degrees])).sum())
        total = float(variances.sum())
        return replace(self, error=math.sqrt(total), degrees=total**2 / curvature if curvature else math.inf)

    def bound(self, level: float) -> float:
        """What the difference over all queries exceeds with probability `level` at most."""
        if self.error == 0:
            return self.cautious
        return self.cautious + float(stats.t.ppf(1 - level, self.degrees)) * self.error


@dataclass(frozen=True)
class Verdict:
    """Why a trial is stopped.

    Attributes:
        rival: number of the trial that it cannot beat.
        estimate: the trial's value as it can be forecast: the rival's, and the mean paired difference.
    """

    rival: int
    estimate: float


def difference(
    differences: Sequence[NDArray[np.floating[Any]]], sizes: Sequence[int], shares: Sequence[float]
) -> Difference | None:
    """The forecast from paired differences, or None while too little is known.

    Args:
        differences: trial minus rival per collection, of the n queries scored so far.
        sizes: queries of each collection, N.
        shares: share of each collection in the value; they need not add up to 1.
    """
    if sum(map(len, differences)) < LEAST_QUERIES or sum(map(np.count_nonzero, differences)) < LEAST_DIFFERENT:
        return None
    total = math.fsum(shares)
    mean = cautious = variance = curvature = 0.0
    for d, size, share in zip(differences, sizes, shares, strict=True):
        n, weight = len(d), share / total
        if n < min(2, size):
            return None
        mean += weight * float(d.mean())
        if n == size:
            cautious += weight * float(d.mean())
            continue
        sample = np.append(d, np.abs(d).max())
        cautious += weight * float(sample.mean())
        part = weight**2 * float(sample.var(ddof=1)) * (1 - n / size) / len(sample)
        variance += part
        curvature += part**2 / n
    degrees = variance**2 / curvature if curvature else math.inf
    return Difference(mean, cautious, math.sqrt(variance), degrees)


def drift(
    looks: Sequence[NDArray[np.float32]], final: Sequence[NDArray[np.float64]], shares: Sequence[float]
) -> NDArray[np.float64]:
    """What a trial's running mean moves by until the end for the queries looked at, float64 [L - 1].

    Args:
        looks: per collection, see `Rival`.
        final: per collection the scores of all queries, float64 [Q].
        shares: share of each collection in the value.
    """
    # Equal scores are to be equal: looks are kept in fp32.
    moved = [
        np.nanmean(f.astype(np.float32) - table.astype(np.float64), axis=1)
        for table, f in zip(looks, final, strict=True)
    ]
    return np.average(moved, axis=0, weights=list(shares))


def as_rival(
    number: int,
    value: float,
    looks: tuple[NDArray[np.float32], ...],
    own: NDArray[np.float64],
    others: Sequence[NDArray[np.float64]],
) -> Rival:
    """A complete trial as a rival, with its own `drift` and that of the other complete trials."""
    apart = np.array([theirs - own for theirs in others]).reshape(-1, len(own))
    return Rival(number, value, looks, np.sqrt((apart**2).sum(axis=0) / max(1, len(apart))), len(apart))


def judge(
    scores: Sequence[NDArray[np.float32]],
    rivals: Sequence[Rival],
    look: int,
    *,
    shares: Sequence[float],
    settings: RacingSettings,
) -> Verdict | None:
    """Whether a trial is stopped after a look.

    Args:
        scores: per collection of the trial, fp32 [Q]; NaN for queries not looked at.
        rivals: best first.
        look: number of the look, from 0; the last decides nothing.
        shares: share of each collection in the value.
        settings: the error that is allowed.

    Returns:
        None when the trial goes on, else the first rival that it cannot beat. It has to beat all of them to win.
    """
    level = settings.alpha / ((len(settings.looks.shares) - 1) * max(1, settings.rivals))
    for rival in rivals:
        paired = [mine.astype(np.float64) - theirs[look] for mine, theirs in zip(scores, rival.looks, strict=True)]
        found = difference([d[~np.isnan(d)] for d in paired], [len(d) for d in paired], shares)
        if found is None or not rival.others:
            continue
        if found.plus(float(rival.drift[look]), rival.others).bound(level) < 0:
            return Verdict(rival.number, rival.value + found.mean)
    return None
