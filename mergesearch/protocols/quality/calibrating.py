"""Does the stated interval of a gain hold what it says? Dev queries are split in halves, again and again.

On one half the rule of `results/choose.py` chooses among all merges that were scored and states what it expects: the
gain of the highest over the best source alone, less the luck in it, with an interval. On the other half the gain is
measured.

The interval that `choose` states is of the gain over all queries of the kind. The gain on n others is itself a mean
over a sample: with σ² / m the variance of the gain of the m queries that chose, it differs from what is expected by
σ² (1 / m + 1 / n). So the interval that is to contain it is √(1 + m / n) times as wide.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mergesearch.evaluation.result import CollectionScores
from mergesearch.results.choose import Candidate as Chosen
from mergesearch.results.choose import Choice, luck_of, pick


def predicted_gain(
    scores: Sequence[Sequence[CollectionScores]], highest: int, source: int, choice: Choice, others: int, level: float
) -> tuple[float, tuple[float, float], tuple[float, float]]:
    """What is expected of the highest merge over the best source alone.

    Args:
        scores: of every merge that the choice was among.
        highest: place of the highest.
        source: place of the best source alone.
        choice: what `pick` said of them.
        others: queries that the gain will be measured on.
        level: of the intervals.

    Returns:
        The expected gain, the interval of the gain over all queries, and the interval of the gain on `others` queries.
    """
    assert choice.gain is not None
    assert choice.gain_optimism is not None
    queries = sum(len(c.scores) for c in scores[0])
    expected = choice.gain - choice.gain_optimism
    low, high = luck_of(scores).interval(highest, source, level)
    down, up, wider = low - choice.gain, high - choice.gain, math.sqrt(1 + queries / others)
    return expected, (expected + down, expected + up), (expected + wider * down, expected + wider * up)


def calibrate(merges: Sequence[Chosen], *, splits: int, level: float, seed: int) -> dict[str, Any]:
    """Coverage of the intervals over random halves, in plain JSON types.

    Args:
        merges: all that were scored on the dev sample of one collection; with distance 0 for sources alone.
        splits: how many.
        level: of the intervals.
        seed: of the halves.

    Returns:
        `covered`: share of halves whose gain lay in the interval for as many queries; `covered_narrow`: in the
        interval as it is stated, of the gain over all queries; `merge_advised`; `expected`, `measured`: mean gains of
        the highest merge; `raw`: its mean gain on the queries that chose; `followed`: mean gain of what the advice
        chose; `kept_rightly`: of the halves where the source was advised, how many had no gain of the highest merge.
    """
    scores_TQ = np.stack([m.scores[0].scores for m in merges])
    draw = np.random.default_rng(seed)
    queries = scores_TQ.shape[1]
    half = queries // 2
    said: dict[str, list[float]] = {k: [] for k in ("covered", "covered_narrow", "merge_advised", "raw", "expected")}
    measured, followed, kept_rightly = [], [], []
    for _ in range(splits):
        order = draw.permutation(queries)
        mine = [_on(m, i, scores_TQ[i, order[:half]]) for i, m in enumerate(merges)]
        choice = pick(mine)
        highest, source = choice.best_number, choice.source_number
        assert source is not None  # both were scored alone
        scores = [m.scores for m in mine]
        expected, narrow, wide = predicted_gain(scores, highest, source, choice, queries - half, level)
        means_T = scores_TQ[:, order[half:]].mean(axis=1)
        gain = float(means_T[highest] - means_T[source])
        said["covered"].append(wide[0] <= gain <= wide[1])
        said["covered_narrow"].append(narrow[0] <= gain <= narrow[1])
        said["merge_advised"].append(choice.verdict == "merge")
        said["raw"].append(choice.gain or 0.0)
        said["expected"].append(expected)
        measured.append(gain)
        followed.append(float(means_T[choice.number] - means_T[source]))
        if choice.verdict != "merge":
            kept_rightly.append(gain <= 0)
    return {
        "splits": splits,
        "level": level,
        "merges": len(merges),
        "queries": [half, queries - half],
        **{name: float(np.mean(values)) for name, values in said.items()},
        "measured": float(np.mean(measured)),
        "followed": float(np.mean(followed)),
        "kept_rightly": float(np.mean(kept_rightly)) if kept_rightly else None,
    }


def _on(merge: Chosen, place: int, scores_Q: NDArray[np.float64]) -> Chosen:
    """The merge as it is known from some of the queries."""
    whole = merge.scores[0]
    ids = tuple(str(i) for i in range(len(scores_Q)))
    scores = CollectionScores(whole.collection, whole.metric, ids, scores_Q)
    mean = float(scores_Q.mean())
    return Chosen(place, merge.label, mean, (scores,), merge.distance, merge.nearest, merge.fingerprint)
