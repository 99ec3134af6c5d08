"""`Judgements`: relevance judgements prepared once per collection, for fast look-ups in every trial."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray


@dataclass(frozen=True)
class Judgements:
    """What is relevant to each of Q queries, over a corpus of N documents.

    As in trec_eval, a judged document that the corpus lacks still counts as relevant (it can only be missed),
    and a judgement of zero or less is the same as none.

    Attributes:
        query_ids: the queries, in the order of every array's first axis.
        n_documents: N.
        ideal: gains of all relevant documents per query, descending, zeros behind; float64 [Q, R].
        n_relevant: relevant documents per query, int64 [Q].
        keys: sorted `query * N + document` of every relevant pair.
        key_gains: the gain of each key, float64.
    """

    query_ids: tuple[str, ...]
    n_documents: int
    ideal: NDArray[np.float64]
    n_relevant: NDArray[np.int64]
    keys: NDArray[np.int64]
    key_gains: NDArray[np.float64]

    @classmethod
    def prepare(
        cls, query_ids: Sequence[str], doc_ids: Sequence[str], qrels: Mapping[str, Mapping[str, int]]
    ) -> Judgements:
        """Judgements of the given queries over the given corpus; `qrels` may name others."""
        rows = {doc_id: row for row, doc_id in enumerate(doc_ids)}
        gains = [sorted((g for g in qrels.get(q, {}).values() if g > 0), reverse=True) for q in query_ids]
        n_relevant = np.array([len(g) for g in gains], dtype=np.int64)
        ideal = np.zeros((len(query_ids), max(1, n_relevant.max(initial=0))))
        for query, found in enumerate(gains):
            ideal[query, : len(found)] = found
        pairs = sorted(
            (query * len(doc_ids) + rows[doc_id], float(gain))
            for query, query_id in enumerate(query_ids)
            for doc_id, gain in qrels.get(query_id, {}).items()
            if gain > 0 and doc_id in rows
        )
        keys = np.array([key for key, _ in pairs], dtype=np.int64)
        key_gains = np.array([gain for _, gain in pairs], dtype=np.float64)
        return cls(tuple(query_ids), len(doc_ids), ideal, n_relevant, keys, key_gains)

    def gains(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Gains of ranked documents.

        Args:
            rows: positions of documents in the corpus, best first, int64 [Q, K]; -1 where the ranking ended.

        Returns:
            float64 [Q, K]; zero for documents that are not relevant and past the ranking's end.
        """
        if not len(self.keys):
            return np.zeros(rows.shape)
        wanted = np.arange(len(rows), dtype=np.int64)[:, None] * self.n_documents + rows
        places = np.searchsorted(self.keys, wanted).clip(max=len(self.keys) - 1)
        return np.where((self.keys[places] == wanted) & (rows >= 0), self.key_gains[places], 0.0)
