"""A trial's looks as they are taken: where it stands after each, and what is left of them in its result."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from mergesearch.evaluation.racing import RacingSettings, Rival, Verdict, judge
from mergesearch.evaluation.result import CollectionScores, Look

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mergesearch.evaluation.pipeline import WeightedCollection


def take_looks(
    look: Callable[[int], tuple[Look, Sequence[NDArray[np.float64]]]],
    rivals: Sequence[Rival],
    *,
    shares: Sequence[float],
    settings: RacingSettings,
) -> tuple[tuple[Look, ...], Verdict | None]:
    """A trial's looks, one after the other, until the last or until it is stopped.

    Args:
        look: takes the look of that number; gives where the trial stands and its scores per collection, float64 [Q],
            NaN for queries not looked at.
        rivals: best first; none for a trial that is not to be stopped.
        shares: share of each collection in the value.
        settings: the looks and the error that is allowed.
    """
    taken = []
    last = len(settings.looks.shares) - 1
    for number in range(last + 1):
        stand, scores = look(number)
        taken.append(stand)
        if number < last and rivals:
            known = [s.astype(np.float32) for s in scores]
            verdict = judge(known, rivals, number, shares=shares, settings=settings)
            if verdict is not None:
                return tuple(taken), verdict
    return tuple(taken), None


def standing(
    scores: Sequence[NDArray[np.float64]], shares: Sequence[float], tokens: int, *, approximate: bool = False
) -> Look:
    """Where a trial stands with these scores per collection, float64 [Q], NaN for queries not looked at."""
    known = [s[~np.isnan(s)] for s in scores]
    weighted = math.fsum(share * float(s.mean()) for share, s in zip(shares, known, strict=True))
    return Look(sum(map(len, known)), weighted / math.fsum(shares), tokens, approximate)


def looked_scores(
    source: WeightedCollection,
    metric: str,
    query_ids: Sequence[str],
    scores: Sequence[NDArray[np.float64]],
    run: Mapping[str, Sequence[tuple[str, float]]] | None,
    *,
    keep_looks: bool,
) -> CollectionScores:
    """Scores after the last look that was taken, of the queries that were looked at.

    Args:
        source: what was scored.
        metric: the metric's name.
        query_ids: the Q judged queries.
        scores: after every look, float64 [Q]; NaN for queries not looked at.
        run: documents of the queries that were looked at, in any order of the queries.
        keep_looks: whether the result holds what they were after all looks but the last.
    """
    known = np.flatnonzero(~np.isnan(scores[-1])).tolist()
    return CollectionScores(
        source.collection.name,
        metric,
        tuple(query_ids[i] for i in known),
        scores[-1][known],
        source.weight,
        run if run is None else {query_ids[i]: run[query_ids[i]] for i in known},
        looks=np.array(scores[:-1], dtype=np.float32) if keep_looks else None,
    )
