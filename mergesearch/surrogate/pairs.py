"""The pair scores of evaluated re-rankers, and scores of merges predicted from them.

Where queries and documents are read together there are no embeddings to interpolate, but a logit for every pair of a
query and a candidate, which is as smooth a function of the coefficients. A predicted merge's logits are a weighted
sum of evaluated ones; from there on everything is done that is done to a real re-ranker's: they are activated, fused
with the first stage's scores, ranked with ties by document id, and scored with the metric itself.

Notation: n evaluated merges, C candidates (merges to be predicted), Q queries, K places for a query's documents,
P pairs, M documents of one query, L shares of the re-ranker.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mergesearch.errors import EvaluationError
from mergesearch.evaluation import fusion
from mergesearch.evaluation.judgements import Judgements
from mergesearch.evaluation.metrics import Metric, parse_metric
from mergesearch.evaluation.rerank_settings import Fusion
from mergesearch.surrogate.ranks import judgements_of, score_columns

Array = NDArray[np.float64]

_BLOCK_ELEMENTS = 1 << 19
"""Fused scores that are worked on at a time: 4 MB of fp64, which stay in a processor's cache."""


@dataclass(frozen=True)
class CollectionPairs:
    """The pairs of one collection as every evaluated merge scores them.

    Attributes:
        logits: fp32 [n, P], of the pairs whose place in `rows` holds a document, query by query.
        rows: corpus positions of the candidates, int64 [Q, K]; -1 where there is none.
        places: each candidate's place in the ascending order of document ids, int64 [Q, K].
        first: the first stage's scores, float64 [Q, K]; None where it has none.
        judgements: of the Q queries.
        activate: what becomes of logits before they are fused and ranked, element by element, fp32.
        weight: the collection's share; shares are normalised over collections.
    """

    logits: Tensor
    rows: NDArray[np.int64]
    places: NDArray[np.int64]
    first: Array | None
    judgements: Judgements
    activate: Callable[[Tensor], Tensor]
    weight: float = 1.0

    def __post_init__(self) -> None:
        n_pairs, n_queries = int((self.rows >= 0).sum()), len(self.judgements.n_relevant)
        if self.logits.ndim != 2 or self.logits.shape[1] != n_pairs or len(self.rows) != n_queries:
            raise EvaluationError(
                f"logits of merges must be [n, {n_pairs}] for candidates of {n_queries} judged queries; not "
                f"{list(self.logits.shape)} for those of {len(self.rows)}."
            )

    def queries(self) -> Iterator[_Query]:
        """The queries that have candidates."""
        ends = (self.rows >= 0).sum(axis=1).cumsum()
        for query, end in enumerate(ends):
            columns = np.flatnonzero(self.rows[query] >= 0)
            if not len(columns):
                continue
            # Of equal scores the higher document id comes first, and `score_columns` goes by the order.
            by_id = np.argsort(-self.places[query, columns], kind="stable")
            columns = columns[by_id]
            logits_nM = self.logits[:, torch.from_numpy(end - len(columns) + by_id)].numpy().astype(np.float64)
            first = None if self.first is None else self.first[query : query + 1, columns]
            yield _Query(query, logits_nM, self.rows[query, columns], first)


class _Query(NamedTuple):
    """A query's candidates by document id, descending: logits [n, M], corpus positions [M], first scores [1, M]."""

    number: int
    logits: Array
    rows: NDArray[np.int64]
    first: Array | None


def pair_bank_bytes(n: int, pairs: int) -> int:
    """Memory, not a GPU's, that a bank of `n` merges takes for so many pairs of a collection, about."""
    return 4 * n * pairs + 4 * 8 * _BLOCK_ELEMENTS


class PairBank:
    """Predicts per-query scores of merged re-rankers from weights of evaluated ones.

    Args:
        keys: what the n evaluated merges are called, in the order of every array's first axis.
        collections: at least one, all with n merges.
        share: of the re-ranker in the fused score. `tuned` takes for every predicted merge the one of
            `fusion.SHARES` that is best for its value over all collections, the smallest of equals, as a trial does.

    Raises:
        EvaluationError: there is no collection, a collection holds another number of merges, or logits are NaN or
            infinite.
    """

    def __init__(self, keys: Sequence[str], collections: Sequence[CollectionPairs], share: Fusion) -> None:
        self.keys = tuple(keys)
        self.collections = tuple(collections)
        held = sorted({len(c.logits) for c in self.collections})
        if held != [len(self.keys)]:
            raise EvaluationError(f"{len(self.keys)} merges are named; the collections hold logits of {held}.")
        if not all(bool(c.logits.isfinite().all()) for c in self.collections):
            raise EvaluationError("logits of evaluated merges hold NaN or infinite values.")
        self._tried = np.array(fusion.SHARES if share == "tuned" else (share,), dtype=np.float64)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Queries per collection."""
        return tuple(len(c.rows) for c in self.collections)

    @property
    def shares(self) -> tuple[float, ...]:
        """Share of each collection in the value, as given."""
        return tuple(c.weight for c in self.collections)

    def gram(self) -> Array:
        """Inner products of the merges' differences from their mean, float64 [n, n].

        What moves all candidates of a query alike moves none of them past another, so logits are taken less their
        query's mean. Per collection it is the mean over pairs of a query, and over queries, in units of the variance
        of a query's logits (in the mean of the merges); collections by their shares. So an error of 1 is one as large
        as what the ranking goes by, however steep a head is, and collections with larger logits do not drown others.
        """
        n, total = len(self.keys), float(sum(self.shares))
        gram = np.zeros((n, n))
        for pairs in self.collections:
            own, variance = np.zeros((n, n)), 0.0
            for query in pairs.queries():
                centred_nM = query.logits - query.logits.mean(axis=1, keepdims=True)
                mean_M = centred_nM.mean(axis=0)
                differences_nM = centred_nM - mean_M
                own += differences_nM @ differences_nM.T / len(mean_M)
                variance += float(mean_M @ mean_M) / len(mean_M)
            gram += pairs.weight / total * own / (variance or 1.0)
        return gram

    def per_query_scores(self, weights: Array, metric: str) -> Array:
        """Scores of predicted merges, float64 [C, Q] with the queries of all collections side by side.

        Args:
            weights: of the evaluated merges in each prediction, [C, n].
            metric: for example `ndcg@10`.
        """
        measured = parse_metric(metric)
        widest = max(pairs.rows.shape[1] for pairs in self.collections)
        block = max(1, _BLOCK_ELEMENTS // max(1, len(self._tried) * widest))
        scores_CQ = np.empty((len(weights), sum(self.sizes)))
        for start in range(0, len(weights), block):
            part = weights[start : start + block]
            tried = [self._scores(pairs, part, measured) for pairs in self.collections]
            best_C, rows_C = fusion.best_share(tried, self.shares), np.arange(len(part))
            scores_CQ[start : start + block] = np.concatenate([found[best_C, rows_C] for found in tried], axis=1)
        return scores_CQ

    def _scores(self, pairs: CollectionPairs, weights_Cn: Array, metric: Metric) -> Array:
        """Scores of one collection's queries at every share that is tried, [L, C, Q]."""
        scores_LCQ = np.zeros((len(self._tried), len(weights_Cn), len(pairs.rows)))
        relevant = set(np.flatnonzero(pairs.judgements.gains(pairs.rows).sum(axis=1)))
        for query in pairs.queries():
            if query.number not in relevant:
                continue  # nothing to find: 0 by every measure
            n_documents = len(query.rows)
            # Rounded as logits are; those of evaluated merges come out as they went in.
            logits_CM = torch.from_numpy((weights_Cn @ query.logits).astype(np.float32))
            own_C1M = pairs.activate(logits_CM).double().numpy()[:, None]
            # Without first scores the share says nothing.
            shares = self._tried if query.first is not None else np.ones(1)
            fused = fusion.fuse(query.first, own_C1M, np.ones((1, n_documents), dtype=bool), shares)
            columns = np.ascontiguousarray(fused.reshape(-1, n_documents).T)
            judgements = judgements_of(pairs.judgements, query.number)
            scores = score_columns(metric, judgements, query.rows, columns)
            scores_LCQ[:, :, query.number] = scores.reshape(len(shares), -1)
        return scores_LCQ
