"""A family of merges whose embeddings are a smooth function of coefficients, for tests of the surrogate."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mergesearch.evaluation.judgements import Judgements
from mergesearch.evaluation.metrics import parse_metric
from mergesearch.surrogate.bank import CollectionBank

Array = NDArray[np.float64]


@dataclass
class ToyMerges:
    """Texts about Q topics; every coordinate moves their embeddings, and `bend` makes the movement curved.

    A document about a query's topic is relevant to it. Moving by a coordinate's `gain` brings texts nearer to their
    topic (or away from it), as a good (or bad) expert would.
    """

    dimensions: int = 2
    n_queries: int = 12
    n_documents: int = 60
    size: int = 16
    bend: float = 0.3
    normalize: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, self.size, generator=generator, dtype=torch.float64)

        topics = normal(self.n_queries)
        about = [torch.arange(n) % self.n_queries for n in (self.n_queries, self.n_documents)]
        self._still = [0.7 * topics[topic] + normal(len(topic)) for topic in about]
        self._moves = [0.4 * normal(self.dimensions, len(topic)) for topic in about]
        self._bends = [self.bend * normal(self.dimensions, len(topic)) for topic in about]
        document_ids = [f"d{row}" for row in range(self.n_documents)]
        relevant = {
            f"q{q}": {f"d{row}": 1 + row % 2 for row in range(q, self.n_documents, self.n_queries)}
            for q in range(self.n_queries)
        }
        self.judgements = Judgements.prepare(list(relevant), document_ids, relevant)

    def embed(self, point: Array) -> tuple[Tensor, Tensor]:
        """Queries [Q, E] and documents [N, E] of the merge at `point`, float64."""
        c = torch.tensor(np.asarray(point), dtype=torch.float64)
        curve = torch.sin(2.5 * c) * torch.roll(c, 1) - c * c
        texts = [
            still + torch.einsum("d,dte->te", c, moves) + torch.einsum("d,dte->te", curve, bends)
            for still, moves, bends in zip(self._still, self._moves, self._bends, strict=True)
        ]
        if self.normalize:
            texts = [torch.nn.functional.normalize(t, dim=1) for t in texts]
        return texts[0], texts[1]

    def measure(self, points: Array, metric: str = "ndcg@10") -> Array:
        """True scores per query, [C, Q]."""
        return np.array([plain_scores(*self.embed(point), self.judgements, metric) for point in points])

    def bank(self, points: Array, dtype: torch.dtype = torch.float32, **options: object) -> CollectionBank:
        """What a worker would keep of the merges at `points`."""
        queries, documents = zip(*[self.embed(point) for point in points], strict=True)
        return CollectionBank(
            torch.stack(queries).to(dtype),
            torch.stack(documents).to(dtype),
            self.judgements,
            normalize=self.normalize,
            **options,  # type: ignore[arg-type]
        )


def plain_scores(queries: Tensor, documents: Tensor, judgements: Judgements, metric: str) -> Array:
    """Scores per query by sorting all documents, [Q]."""
    order = torch.argsort(queries @ documents.T, dim=1, descending=True).numpy()
    return parse_metric(metric).score(judgements.gains(order), judgements)
