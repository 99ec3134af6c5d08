"""When a raced trial is stopped: its forecast says that it cannot win any more.

After a look a trial has been scored on some queries over some documents. Complete trials, its rivals, were scored on
the same queries over the same documents, and their values are known. Merges of the same sources resemble each other, so
a trial's scores are nearly a combination of its rivals' scores, and its value the same combination of their values:

    y = X b + r          scores of the looked-at queries, each minus those of the best rival
    forecast = F b + r̄   value minus the value of the best rival

with b from a ridge regression and r̄ the mean residual. This is the regression estimator of sample surveys (Cochran,
Sampling Techniques, 1977, chapter 7), in which the rivals also tell what the documents of later looks will change. With
one rival alone it would be the mean paired difference.

The forecast's error is taken to be the larger of two: what the residuals say of queries not looked at (with the finite
population correction, since the value that decides is the one over these queries), and what forecasts of each rival
from the others at this look were off by, which tells the effect of missing documents too. A trial is stopped when

    forecast + t(1 - level) · error < 0

`alpha` is spent over the looks in equal parts (Bonferroni): whatever the dependence between looks, a trial that would
have won is stopped with a probability of about `alpha` at most. Plans that keep most of it for late looks (O'Brien and
Fleming) would save least where most is to be saved. Differences of retrieval scores are zero for many queries and large
for a few, so nothing is decided on fewer than `LEAST_QUERIES` queries or `LEAST_RIVALS` rivals, and t has only as many
degrees of freedom as there are rivals.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from mergesearch.evaluation.looks import LookSettings

LEAST_QUERIES = 20
"""Over all collections, before the first decision."""
LEAST_RIVALS = 4
"""Complete trials, before the first decision."""
RIDGE = 0.03
"""Penalty of the regression, in units of the mean variance of a rival's differences from the best."""


@dataclass(frozen=True)
class RacingSettings:
    """How trials are raced.

    Attributes:
        looks: what is looked at.
        alpha: probability of stopping a trial that would have won, at most and about.
        rivals: how many of the best trials a forecast is made from.
    """

    looks: LookSettings = field(default_factory=LookSettings)
    alpha: float = 0.01
    rivals: int = 20


@dataclass(frozen=True)
class Rival:
    """A complete trial that forecasts are made from.

    Attributes:
        number: of the trial.
        value: its value.
        looks: per collection its scores after every look but the last, fp32 [L - 1, Q]; NaN for queries not looked at.
    """

    number: int
    value: float
    looks: tuple[NDArray[np.float32], ...]


@dataclass(frozen=True)
class Verdict:
    """Why a trial is stopped.

    Attributes:
        rival: number of the trial that it cannot beat, the best.
        estimate: the forecast of the trial's value.
    """

    rival: int
    estimate: float

    @classmethod
    def fields(cls, verdict: Verdict | None) -> dict[str, Any]:
        """What a `TrialResult` holds of a verdict."""
        if verdict is None:
            return {"stopped": False}
        return {"stopped": True, "estimate": verdict.estimate, "stopped_by": verdict.rival}


@dataclass(frozen=True)
class Forecast:
    """How a trial's value will differ from the best rival's.

    Attributes:
        difference: the trial's value minus the rival's.
        error: standard error of it.
        degrees: of freedom of the error.
    """

    difference: float
    error: float
    degrees: int

    def bound(self, level: float) -> float:
        """What the difference exceeds with probability `level`, about."""
        return self.difference + float(stats.t.ppf(1 - level, self.degrees)) * self.error


def judge(
    scores: Sequence[NDArray[np.float32]],
    rivals: Sequence[Rival],
    look: int,
    *,
    shares: Sequence[float],
    settings: RacingSettings,
) -> Verdict | None:
    """Whether a trial is stopped after a look; None when it goes on.

    Args:
        scores: per collection of the trial, fp32 [Q]; NaN for queries not looked at.
        rivals: best first.
        look: number of the look, from 0; the last decides nothing.
        shares: share of each collection in the value; they need not add up to 1.
        settings: the error that is allowed.
    """
    level = settings.alpha / (len(settings.looks.shares) - 1)
    found = forecast(scores, [[table[look] for table in r.looks] for r in rivals], [r.value for r in rivals], shares)
    if found is None or found.bound(level) >= 0:
        return None
    return Verdict(rivals[0].number, rivals[0].value + found.difference)


def forecast(
    scores: Sequence[NDArray[np.float32]],
    rivals: Sequence[Sequence[NDArray[np.float32]]],
    values: Sequence[float],
    shares: Sequence[float],
) -> Forecast | None:
    """The forecast after a look, or None while too little is known.

    Args:
        scores: per collection of the trial, fp32 [Q]; NaN for queries not looked at.
        rivals: the same of R rivals, best first.
        values: values of the rivals.
        shares: share of each collection in the value.
    """
    sample = _Sample(scores, shares)
    if len(values) < LEAST_RIVALS or sample.n < LEAST_QUERIES or not sample.has_spread:
        return None
    rows_RQ = np.stack([sample.take(rival) for rival in rivals])
    values_R = np.array(values)
    difference, residuals, freedom = _regress(sample.take(scores), rows_RQ, values_R, sample.weights)
    misses = []
    for left_out in range(len(values)):
        others = np.arange(len(values)) != left_out
        guess, _, _ = _regress(rows_RQ[left_out], rows_RQ[others], values_R[others], sample.weights)
        misses.append(guess - (values_R[left_out] - values_R[others][0]))
    seen = math.sqrt(float(np.mean(np.square(misses))))
    return Forecast(difference, max(seen, sample.error(residuals, freedom)), len(values))


class _Sample:
    """The queries looked at, of all collections side by side; `weights` are their parts in the running mean."""

    def __init__(self, scores: Sequence[NDArray[np.float32]], shares: Sequence[float]) -> None:
        self._looked = [np.flatnonzero(~np.isnan(s)) for s in scores]
        self._sizes = [len(s) for s in scores]
        self._shares = [share / math.fsum(shares) for share in shares]
        self.n = sum(map(len, self._looked))
        # One query shows no spread, unless it is all there is.
        self.has_spread = all(len(q) >= min(2, size) for q, size in zip(self._looked, self._sizes, strict=True))
        self.weights = np.concatenate(
            [np.full(len(q), share / max(1, len(q))) for q, share in zip(self._looked, self._shares, strict=True)]
        )

    def take(self, scores: Sequence[NDArray[np.float32]]) -> NDArray[np.float64]:
        """Scores of the queries looked at, float64 [n]."""
        return np.concatenate([s[q] for s, q in zip(scores, self._looked, strict=True)]).astype(np.float64)

    def error(self, residuals: NDArray[np.float64], freedom: float) -> float:
        """Standard error of the mean residual over all queries, by the residuals of those looked at."""
        parts = np.split(residuals, np.cumsum([len(q) for q in self._looked])[:-1])
        variance = 0.0
        for part, size, share in zip(parts, self._sizes, self._shares, strict=True):
            if len(part) < size:
                variance += share**2 * float(part.var(ddof=1)) * (1 - len(part) / size) / len(part)
        return math.sqrt(variance * (self.n - 1) / max(1.0, self.n - 1 - freedom))


def _regress(
    y_Q: NDArray[np.float64],
    rows_RQ: NDArray[np.float64],
    values_R: NDArray[np.float64],
    weights_Q: NDArray[np.float64],
) -> tuple[float, NDArray[np.float64], float]:
    """Forecast minus the best (first) rival's value, residuals [Q], and the degrees of freedom that the fit took."""
    y_Q = y_Q - rows_RQ[0]
    x_QR = (rows_RQ[1:] - rows_RQ[0]).T
    centred = x_QR - weights_Q @ x_QR
    gram = centred.T @ (weights_Q[:, None] * centred)
    penalty = RIDGE * float(np.trace(gram)) / max(1, len(gram))
    if penalty == 0:  # there is one rival, or they all score the same
        return float(weights_Q @ y_Q), y_Q, 0.0
    inverse = np.linalg.inv(gram + penalty * np.eye(len(gram)))
    b_R = inverse @ (centred.T @ (weights_Q * (y_Q - weights_Q @ y_Q)))
    residuals = y_Q - x_QR @ b_R
    difference = float((values_R[1:] - values_R[0]) @ b_R + weights_Q @ residuals)
    return difference, residuals, float(np.trace(inverse @ gram))
