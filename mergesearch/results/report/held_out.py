"""What is known of the chosen merge on queries that chose nothing: the readings of test splits, compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np

from mergesearch.evaluation.labels import PSEUDO
from mergesearch.evaluation.resampling import bootstrap_weights, plain_weights
from mergesearch.evaluation.result import CollectionScores
from mergesearch.results.evaluate import CHOSEN, HIGHEST
from mergesearch.results.readings import COMMAND
from mergesearch.results.tested import PairedTest, paired_tests
from mergesearch.results.view import StudyView
from mergesearch.storage.reader import Reading

DRAWS = 9999
"""Resamples of test queries."""
LEVEL = 0.95


@dataclass(frozen=True)
class HeldOut:
    """The chosen merge and what it has to be compared with, on the test queries of one collection.

    Attributes:
        split: its name.
        scores: of the chosen merge, per query.
        others: of every other subject that was scored on the same queries, by label.
        tests: the chosen merge against each of them, Holm-corrected over this collection.
        same: labels of those that score the same on every query, as equal weights do: nothing to be tested.
        at: when the newest of these readings was taken, in UTC.
        readings: how often the chosen merge was scored on this collection; the newest is shown.
        pseudo: its queries are pseudo-queries, by what the study file says of the test split now.
    """

    split: str
    scores: CollectionScores
    others: Mapping[str, CollectionScores]
    tests: tuple[PairedTest, ...]
    same: tuple[str, ...]
    at: datetime
    readings: int
    pseudo: bool = False

    @property
    def where(self) -> str:
        """The collection, and what its queries are where no user asked them."""
        return f"{self.scores.collection} ({PSEUDO})" if self.pseudo else self.scores.collection


@dataclass(frozen=True)
class Mean:
    """A weighted mean over collections, with its 95% bootstrap interval over queries."""

    value: float
    interval: tuple[float, float]


def held_out(view: StudyView) -> tuple[HeldOut, ...]:
    """By split and collection, the newest reading of the chosen merge and of every other subject.

    Only whole evaluations count, which score every source with the chosen merge; single folders do not, and neither
    do merges that were highest on dev when the split was read and are so no longer: nobody asks of them now, and every
    further comparison makes the corrected p-values of the others larger.
    """
    if view.chosen is None or view.chosen.recipe is None:
        return ()
    fingerprint = view.chosen.recipe.fingerprint
    highest = view.highest.fingerprint if view.highest is not None else ""
    rows = [r for r in view.readings if r.command == COMMAND]
    mine: dict[tuple[str, str, str], list[Reading]] = {}
    for r in rows:
        if r.fingerprint == fingerprint and r.subject.startswith(CHOSEN):
            mine.setdefault((r.split, r.scores.collection, r.scores.metric), []).append(r)
    pseudo = {c.name for c in view.study.collection_specs(test=True) if c.pseudo_queries}
    found = []
    for (split, collection, metric), readings in mine.items():
        newest = readings[-1]
        others = {
            r.subject: r.scores
            for r in rows
            if (r.split, r.scores.collection, r.scores.metric) == (split, collection, metric)
            and r.scores.query_ids == newest.scores.query_ids
            and r.fingerprint != fingerprint
            and not r.subject.startswith(CHOSEN)
            and (r.fingerprint == highest or not r.subject.startswith(HIGHEST))
        }
        same = tuple(label for label, o in others.items() if np.array_equal(o.scores, newest.scores.scores))
        different = {label: o for label, o in others.items() if label not in same}
        tests = paired_tests(newest.scores, different)
        found.append(HeldOut(split, newest.scores, others, tests, same, newest.at, len(readings), collection in pseudo))
    return tuple(sorted(found, key=lambda t: t.split != "test"))  # stable: other splits after `test`


def mean_score(scores: Sequence[CollectionScores]) -> Mean:
    """The weighted mean over collections, their queries resampled (percentile bootstrap)."""
    sizes, shares = [len(s.scores) for s in scores], [s.weight for s in scores]
    values = np.concatenate([s.scores for s in scores])
    resampled = bootstrap_weights(sizes, shares, DRAWS, seed=0) @ values
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Mean(float(plain_weights(sizes, shares) @ values), (float(low), float(high)))
