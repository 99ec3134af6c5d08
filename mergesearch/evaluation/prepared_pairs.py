"""`PreparedPairs`: a collection's queries with their candidates, worked out once for all trials.

Notation: Q judged queries, K candidates of a query at most, P pairs of both.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from mergesearch.evaluation.fusion import fuse, order
from mergesearch.evaluation.judgements import Judgements
from mergesearch.evaluation.search import order_by_id
from mergesearch.evaluation.tokens import plan_batches

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mergesearch.evaluation.candidates import Candidates
    from mergesearch.evaluation.pairs import PairPlan
    from mergesearch.evaluation.pipeline import WeightedCollection


@dataclass(frozen=True)
class PairLook:
    """Some queries of a collection, and the pairs that they take.

    Attributes:
        positions: the queries among the judged ones, int64 [q], ascending.
        pairs: their pairs among those of the collection, int64 [p], ascending.
        plan: the collection's, with batches of these pairs only.
        judgements: of these queries.
    """

    positions: NDArray[np.int64]
    pairs: NDArray[np.int64]
    plan: PairPlan
    judgements: Judgements


@dataclass(frozen=True)
class PreparedPairs:
    """What is worked out once per collection and used by every trial.

    Attributes:
        source: the collection and its weight.
        judgements: gains by corpus position.
        candidates: of every judged query.
        places: each candidate's place in the ascending order of document ids, int64 [Q, K]; -1 where there is none.
        gains: each candidate's gain, float64 [Q, K].
        plan: of all P pairs: query by query, in the order of its candidates; with the batches of all looks.
        looks: one with everything, or those that a raced trial takes.
    """

    source: WeightedCollection
    judgements: Judgements
    candidates: Candidates
    places: NDArray[np.int64]
    gains: NDArray[np.float64]
    plan: PairPlan
    looks: tuple[PairLook, ...]

    @cached_property
    def digest(self) -> int:
        """Which pairs these are, in their order: 63 bits of a hash of all candidates' places."""
        digest = hashlib.sha256(np.ascontiguousarray(self.places).tobytes()).digest()
        return int.from_bytes(digest[:8], "big") >> 1

    @property
    def present(self) -> NDArray[np.bool_]:
        """Which of the K places of a query hold a candidate, bool [Q, K]."""
        return self.places >= 0

    def table(self, scores: NDArray[Any]) -> NDArray[np.float64]:
        """Scores of all pairs, [P], by query and candidate: float64 [Q, K], 0 where there is no candidate."""
        found = np.zeros(self.places.shape)
        found[self.present] = scores
        return found

    def fused(
        self, reranked: NDArray[np.float64], share: float, queries: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Fused scores of some queries and their candidates' columns from the best, both [q, K].

        Args:
            reranked: the re-ranker's scores, float64 [Q, K].
            share: of the re-ranker.
            queries: positions among the judged ones, int64 [q].
        """
        first, places = self.candidates.scores, self.places[queries]
        scores = fuse(None if first is None else first[queries], reranked[queries], places >= 0, np.array([share]))[0]
        return scores, order(scores, places)


def prepare_pairs(
    source: WeightedCollection,
    candidates: Candidates,
    plan: PairPlan,
    divided: Sequence[NDArray[np.int64]],
    batch_tokens: int,
) -> PreparedPairs:
    """Put together what trials need.

    Args:
        source: the collection and its weight.
        candidates: of its judged queries.
        plan: of all pairs, query by query, in the order of the candidates.
        divided: positions of the judged queries that each look takes, ascending; every query is in one.
        batch_tokens: most padded tokens per batch.
    """
    collection, rows = source.collection, candidates.rows
    query_ids, query_of_pair = collection.judged, np.nonzero(rows >= 0)[0]
    by_id = order_by_id(collection.doc_ids)
    place_of = np.empty(len(by_id) + 1, dtype=np.int64)
    place_of[by_id] = np.arange(len(by_id))
    place_of[-1] = -1  # of no document
    looks = []
    for positions in divided:
        pairs = np.flatnonzero(np.isin(query_of_pair, positions))
        batches = plan.batches
        if len(divided) > 1:
            batches = tuple(pairs[batch] for batch in plan_batches(plan.lengths[pairs], batch_tokens))
        judgements = Judgements.prepare([query_ids[p] for p in positions], collection.doc_ids, collection.qrels)
        looks.append(PairLook(positions, pairs, replace(plan, batches=batches), judgements))
    whole = Judgements.prepare(query_ids, collection.doc_ids, collection.qrels)
    in_turn = replace(plan, batches=tuple(batch for look in looks for batch in look.plan.batches))
    return PreparedPairs(source, whole, candidates, place_of[rows], whole.gains(rows), in_turn, tuple(looks))
