"""Re-rankers whose logits are known functions of coefficients, for tests of what is predicted from pairs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mergesearch.evaluation.judgements import Judgements
from mergesearch.evaluation.metrics import parse_metric
from mergesearch.surrogate.pairs import CollectionPairs

Array = NDArray[np.float64]


@dataclass
class ToyPairs:
    """Candidates of Q queries, up to K each, the first query without any; relevant ones gain by some coordinates.

    Attributes:
        bend: how curved logits are as functions of the coefficients; 0 is linear.
        scored: whether the first stage gives scores, whole numbers, so that many are equal.
        activate: what becomes of logits.
    """

    dimensions: int = 2
    n_queries: int = 12
    n_candidates: int = 10
    bend: float = 0.0
    scored: bool = True
    activate: Callable[[Tensor], Tensor] = torch.sigmoid
    seed: int = 0

    def __post_init__(self) -> None:
        random = np.random.default_rng(self.seed)
        n_documents = 4 * self.n_candidates
        # Ids are not in the order of the corpus.
        self.doc_ids = [f"d{number}" for number in random.permutation(n_documents)]
        self.rows = np.full((self.n_queries, self.n_candidates), -1)
        for query in range(1, self.n_queries):
            taken = random.choice(self.n_candidates, random.integers(1, self.n_candidates + 1), replace=False)
            self.rows[query, taken] = random.choice(n_documents, len(taken), replace=False)
        queries, columns = np.nonzero(self.rows >= 0)
        relevant = random.random(len(queries)) < 0.3
        qrels: dict[str, dict[str, int]] = {f"q{query}": {"missing": 1} for query in range(self.n_queries)}
        for query, column in zip(queries[relevant], columns[relevant], strict=True):
            qrels[f"q{query}"][self.doc_ids[self.rows[query, column]]] = int(random.integers(1, 3))
        self.qrels = qrels
        self.judgements = Judgements.prepare(list(qrels), self.doc_ids, qrels)
        self.first = random.integers(0, 5, self.rows.shape).astype(float) if self.scored else None
        pairs = len(queries)
        self._still = random.normal(size=pairs)
        gains = random.choice([-0.7, 1.0], self.dimensions) * relevant[:, None]
        self._moves = (random.normal(size=(pairs, self.dimensions)) + gains).T
        self._bends = self.bend * random.normal(size=(self.dimensions, pairs))

    def logits(self, point: Array) -> Tensor:
        """Of the merge at `point`, fp32 [P]."""
        c = np.asarray(point)
        values = self._still + c @ self._moves + (np.sin(2.5 * c) - c * c) @ self._bends
        return torch.from_numpy(values.astype(np.float32))

    def pairs(self, logits: Tensor, weight: float = 1.0) -> CollectionPairs:
        """What a worker would have of merges with these logits, [n, P]."""
        places = np.argsort(np.argsort(self.doc_ids))[self.rows]
        places = np.where(self.rows >= 0, places, -1)
        return CollectionPairs(logits, self.rows, places, self.first, self.judgements, self.activate, weight)

    def bank(self, points: Array, weight: float = 1.0) -> CollectionPairs:
        """What a worker would have of the merges at `points`."""
        return self.pairs(torch.stack([self.logits(point) for point in points]), weight)

    def run(self, logits: Tensor, share: float) -> dict[str, dict[str, float]]:
        """Fused scores of every candidate, by min-max and a weighted sum written out."""
        activated = self.activate(logits).double().tolist()
        run: dict[str, dict[str, float]] = {}
        position = 0
        for query, row in enumerate(self.rows):
            columns = np.flatnonzero(row >= 0)
            own = _min_max(activated[position : position + len(columns)])
            position += len(columns)
            fused = own
            if self.first is not None:
                first = _min_max(self.first[query, columns].tolist())
                fused = [(1 - share) * a + share * b for a, b in zip(first, own, strict=True)]
            run[f"q{query}"] = {self.doc_ids[row[c]]: score for c, score in zip(columns, fused, strict=True)}
        return run

    def measure(self, logits: Tensor, share: float, metric: str = "ndcg@10") -> Array:
        """Scores per query by sorting, equal scores by document id, descending, [Q]."""
        place = {doc_id: row for row, doc_id in enumerate(self.doc_ids)}
        ranked = np.full(self.rows.shape, -1)
        for query, scores in enumerate(self.run(logits, share).values()):
            order = sorted(scores, key=lambda doc_id: (scores[doc_id], doc_id), reverse=True)
            ranked[query, : len(order)] = [place[doc_id] for doc_id in order]
        return parse_metric(metric).score(self.judgements.gains(ranked), self.judgements)


def _min_max(scores: list[float]) -> list[float]:
    spread = max(scores, default=0.0) - min(scores, default=0.0)
    return [(score - min(scores)) / max(spread, 1e-9) for score in scores]
