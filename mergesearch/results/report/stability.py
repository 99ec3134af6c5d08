"""Would other dev queries have chosen another merge? From stored scores per query; nothing is encoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mergesearch.evaluation.resampling import bootstrap_weights
from mergesearch.results.distance import Distances
from mergesearch.results.view import StudyView, TrialView

DRAWS = 2000
"""Resamples of the dev queries: shares are good to two hundredths."""
MOST_CANDIDATES = 300
"""Trials that are looked at, the highest; one below those is never chosen."""


@dataclass(frozen=True)
class Candidate:
    """How a trial does when the dev queries are drawn anew.

    Attributes:
        trial: it.
        interval: 95% percentile interval of its dev score.
        highest: share of the resamples in which it scores highest.
        chosen: share of the resamples in which it is the choice.
    """

    trial: TrialView
    interval: tuple[float, float]
    highest: float
    chosen: float


def stability(view: StudyView, *, draws: int = DRAWS, seed: int = 0) -> tuple[Candidate, ...]:
    """Candidates that are ever chosen or highest, and the choice itself, the most often chosen first.

    In every resample the rule of `choose` is applied: the highest merge, where it gains more over the best source than
    the luck that is in that gain, else that source. The luck is the one estimated on all queries. Of equal scores the
    one that the study prefers is taken.
    """
    choice, chosen = view.choice, view.chosen
    if choice is None or chosen is None:
        return ()
    preferred = {choice.number: 0, choice.best_number: 1}
    ranked = sorted(view.ranked, key=lambda t: (-(t.value or 0.0), preferred.get(t.number, 2), t.number))
    distances = Distances(view.study)
    # As for the choice whatever is a source: behind any prompt, and with any coefficients that give it.
    alone = {t.number for t in ranked if t.recipe is not None and distances.nearest(t.recipe)[0] == 0}
    shown = alone | {choice.number, choice.best_number}
    ranked = [t for i, t in enumerate(ranked) if i < MOST_CANDIDATES or t.number in shown]
    values_BT = _resampled(ranked, draws, seed)
    highest = values_BT.argmax(axis=1)
    picked = highest.copy()
    sources = [i for i, t in enumerate(ranked) if t.number in alone]
    if sources and choice.gain_optimism is not None:
        best = np.array(sources)[values_BT[:, sources].argmax(axis=1)]
        rows = np.arange(draws)
        worth = values_BT[rows, highest] - values_BT[rows, best] > choice.gain_optimism
        picked = np.where(worth, highest, best)
    n = len(ranked)
    shares_highest, shares_picked = np.bincount(highest, minlength=n) / draws, np.bincount(picked, minlength=n) / draws
    low, high = np.quantile(values_BT, [0.025, 0.975], axis=0)
    found = [
        Candidate(t, (float(low[i]), float(high[i])), float(shares_highest[i]), float(shares_picked[i]))
        for i, t in enumerate(ranked)
        if shares_highest[i] or shares_picked[i] or t.number == choice.number
    ]
    return tuple(sorted(found, key=lambda c: (-c.chosen, -c.highest, c.trial.number)))


def _resampled(trials: Sequence[TrialView], draws: int, seed: int) -> NDArray[np.float64]:
    """Values of T trials on resampled queries, float64 [draws, T]."""
    results = [t.result for t in trials if t.result is not None]
    assert len(results) == len(trials)
    first = results[0].collections
    scores_TQ = np.stack([np.concatenate([c.scores for c in r.collections]) for r in results])
    weights_BQ = bootstrap_weights([len(c.scores) for c in first], [c.weight for c in first], draws, seed)
    values_BT: NDArray[np.float64] = weights_BQ @ scores_TQ.T
    return values_BT
