"""Which dev queries the merge wins and loses against the template alone, and which are hard for every merge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mergesearch.evaluation.result import CollectionScores
from mergesearch.results.view import StudyView

HARD, EASY = 0.1, 0.9
"""Below or above which a query's mean score over all merges makes it hard or easy."""


@dataclass(frozen=True)
class Query:
    """A dev query before and after.

    Attributes:
        collection, id: which.
        before, after: scores of the template alone and of the chosen merge; `before` is None where it was not scored.
        mean: over all merges that were scored.
        best: of any of them.
    """

    collection: str
    id: str
    before: float | None
    after: float
    mean: float
    best: float

    @property
    def change(self) -> float:
        """After less before; 0 where there is no before."""
        return 0.0 if self.before is None else self.after - self.before


@dataclass(frozen=True)
class Queries:
    """All dev queries, in the order of the collections.

    Attributes:
        rows: them.
        won, lost, same: how many score more, less and the same after.
    """

    rows: tuple[Query, ...]
    won: int
    lost: int
    same: int

    @property
    def hard(self) -> int:
        """How many no merge does well on."""
        return sum(q.mean < HARD for q in self.rows)

    @property
    def hopeless(self) -> int:
        """How many no merge scores anything on."""
        return sum(q.best == 0 for q in self.rows)

    @property
    def easy(self) -> int:
        """How many all merges do well on."""
        return sum(q.mean > EASY for q in self.rows)

    def most_won(self, n: int) -> list[Query]:
        """Those that gained most."""
        return [q for q in sorted(self.rows, key=lambda q: (-q.change, q.collection, q.id)) if q.change > 0][:n]

    def most_lost(self, n: int) -> list[Query]:
        """Those that lost most."""
        return [q for q in sorted(self.rows, key=lambda q: (q.change, q.collection, q.id)) if q.change < 0][:n]

    def hardest(self, n: int) -> list[Query]:
        """Those that the chosen merge, and then any merge, scores lowest on."""
        return sorted(self.rows, key=lambda q: (q.after, q.mean, q.collection, q.id))[:n]


def queries(view: StudyView, before: Sequence[CollectionScores] | None = None) -> Queries | None:
    """Every dev query, from recorded scores.

    Args:
        view: the study.
        before: scores of the template alone, where they were encoded; else those of its trial, where it has one.
    """
    if view.chosen is None or view.chosen.result is None:
        return None
    if before is None:
        template = view.sources.get(view.study.parsed.content.merge.template)
        before = None if template is None or template.result is None else template.result.collections
    everything = [t.result.collections for t in view.scored if t.result is not None]
    rows: list[Query] = []
    for i, after in enumerate(view.chosen.result.collections):
        scores_TQ = np.stack([collections[i].scores for collections in everything])
        means, best = scores_TQ.mean(axis=0), scores_TQ.max(axis=0)
        known = None if before is None else dict(zip(before[i].query_ids, before[i].scores, strict=True))
        for j, query_id in enumerate(after.query_ids):
            earlier = None if known is None else float(known[query_id])
            score = float(after.scores[j])
            rows.append(Query(after.collection, query_id, earlier, score, float(means[j]), float(best[j])))
    changes = [q.change for q in rows]
    won, lost = sum(c > 0 for c in changes), sum(c < 0 for c in changes)
    return Queries(tuple(rows), won, lost, len(rows) - won - lost)
