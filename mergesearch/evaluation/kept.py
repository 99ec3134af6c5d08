"""What is worth keeping of a trial: embeddings or a re-ranker's logits, from which a surrogate predicts other merges.

Of a pool every document is kept. Of a large corpus only documents that can matter are: the judged ones and those
that a merge ranked high; whoever compares several merges fills in the rows that one has and another lacks. What is
still large is projected onto its principal directions, which costs some accuracy: see docs/search.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mergesearch.evaluation.pipeline import PreparedCollection
    from mergesearch.evaluation.prepared_pairs import PreparedPairs
    from mergesearch.evaluation.search import TopK

MOST_WHOLE = 20_000
"""Documents up to which all of them are kept."""
LARGEST_HALF = 6e4
"""Numbers beyond it do not fit into float16."""
LARGE = 64 << 20
"""Bytes of one merge beyond which its embeddings are projected: 64 such merges fill half of a folder of artifacts."""
LOST_ENERGY = 0.002
"""Share of the squared length of embeddings that a projection may lose."""
LEAST_SAVED = 0.25
"""Share of the dimensions that a projection must do without to be worth its error."""


@dataclass(frozen=True)
class KeptCollection:
    """Embeddings of one collection's texts under one merge, as they are compared: scaled to length 1 for cosine.

    Attributes:
        queries: float16 [Q, E] (float32 where numbers are too large for it), in the judgements' order.
        rows: corpus positions of the kept documents, ascending, int64 [N].
        documents: like `queries`, [N, E].
        basis: orthonormal rows of the same dtype, [R, E]; `queries` and `documents` are coordinates along them then,
            [Q, R] and [N, R]. None where they are embeddings.
    """

    queries: Tensor
    rows: NDArray[np.int64]
    documents: Tensor
    basis: Tensor | None = None

    @property
    def n_bytes(self) -> int:
        """Of all embeddings."""
        return self.queries.nbytes + self.documents.nbytes

    def whole(self) -> tuple[Tensor, Tensor]:
        """Embeddings of queries and documents, [Q, E] and [N, E], whatever they are kept as."""
        if self.basis is None:
            return self.queries, self.documents
        basis_RE = self.basis.float()
        queries, documents = ((x.float() @ basis_RE).to(x.dtype) for x in (self.queries, self.documents))
        return queries, documents

    def filled(self, rows: NDArray[np.int64], embeddings: Tensor) -> KeptCollection:
        """With further documents, [M, E] at corpus positions `rows`, none of which is there yet."""
        if self.basis is not None:
            embeddings = embeddings.float() @ self.basis.float().T
        every = np.concatenate([self.rows, rows])
        order = np.argsort(every)
        documents = torch.cat([self.documents, embeddings.to(self.documents.dtype)])
        return replace(self, rows=every[order], documents=documents[torch.from_numpy(order)])

    def projected(self, lost_energy: float) -> KeptCollection:
        """Coordinates along as many principal directions of these texts as it takes to lose no more than that.

        Queries and documents count equally, and their origin stays where it is, so that inner products do: of length
        1, those of all queries and documents change by `lost_energy` on average at most (rounding apart), as a product
        of two lost parts is at most the mean of their squares. What would save less than a quarter stays as it is.
        """
        if self.basis is not None:
            return self
        texts = [self.queries.float(), self.documents.float()]
        values, vectors = torch.linalg.eigh(sum(x.T @ x / max(1, len(x)) for x in texts))
        lost = values.clamp_min(0).cumsum(0) <= lost_energy * values.clamp_min(0).sum()  # ascending
        if int(lost.sum()) < LEAST_SAVED * len(lost):
            return self
        basis_RE = vectors[:, ~lost].T.flip(0).to(self.documents.dtype)
        queries, documents = ((x @ basis_RE.float().T).to(self.documents.dtype) for x in texts)
        return KeptCollection(queries, self.rows, documents, basis_RE.contiguous())


@dataclass(frozen=True)
class KeptEmbeddings:
    """Embeddings of one merge, per collection."""

    collections: tuple[KeptCollection, ...]

    def compact(self) -> KeptEmbeddings:
        """Projected where they are `LARGE`; what was projected stays as it is."""
        if sum(kept.n_bytes for kept in self.collections) <= LARGE:
            return self
        return KeptEmbeddings(tuple(kept.projected(LOST_ENERGY) for kept in self.collections))

    def to_bytes(self) -> bytes:
        """As a safetensors file."""
        from safetensors.torch import save

        tensors = {}
        for i, kept in enumerate(self.collections):
            tensors[f"{i}.queries"] = kept.queries.contiguous()
            tensors[f"{i}.rows"] = torch.from_numpy(kept.rows)
            tensors[f"{i}.documents"] = kept.documents.contiguous()
            if kept.basis is not None:
                tensors[f"{i}.basis"] = kept.basis
        content: bytes = save(tensors)
        return content

    @classmethod
    def from_bytes(cls, content: bytes) -> KeptEmbeddings:
        """What `to_bytes` wrote."""
        from safetensors.torch import load

        tensors = load(content)
        n = sum(name.endswith(".rows") for name in tensors)
        return cls(
            tuple(
                KeptCollection(
                    tensors[f"{i}.queries"],
                    tensors[f"{i}.rows"].numpy(),
                    tensors[f"{i}.documents"],
                    tensors.get(f"{i}.basis"),
                )
                for i in range(n)
            )
        )


class Keeper:
    """Collects, while a trial is evaluated, the embeddings to keep of it."""

    def __init__(self, collections: Sequence[PreparedCollection]) -> None:
        self._collections = collections
        self._positions: dict[int, list[NDArray[np.int64]]] = {i: [] for i in range(len(collections))}
        self._queries: dict[int, list[Tensor]] = {i: [] for i in range(len(collections))}
        self._rows: dict[int, list[NDArray[np.int64]]] = {i: [] for i in range(len(collections))}
        self._documents: dict[int, list[Tensor]] = {i: [] for i in range(len(collections))}
        self._taken = [np.zeros(c.judgements.n_documents, dtype=bool) for c in collections]

    def add_queries(self, i: int, positions: NDArray[np.int64], embeddings: Tensor) -> None:
        """Queries of collection `i`, at `positions` among the judged ones, [B, E]."""
        self._positions[i].append(positions)
        self._queries[i].append(_halved(embeddings))

    def add_documents(self, i: int, rows: NDArray[np.int64], embeddings: Tensor, searches: Sequence[TopK]) -> None:
        """Documents of collection `i` at corpus positions `rows`, [C, E], which all `searches` have taken in.

        They may be shown again to other searches, of queries that were encoded later.
        """
        prepared = self._collections[i]
        wanted = ~self._taken[i][rows]
        if len(prepared.document_rows) > MOST_WHOLE:
            high = [search.result().rows.ravel() for search in searches]
            judged = prepared.judgements.keys % prepared.judgements.n_documents
            wanted &= np.isin(rows, np.concatenate([judged, *high]))
        if not wanted.all():
            rows, embeddings = rows[wanted], embeddings[torch.from_numpy(wanted).to(embeddings.device)]
        self._taken[i][rows] = True
        self._rows[i].append(rows)
        self._documents[i].append(_halved(embeddings))

    def result(self) -> KeptEmbeddings:
        """What was collected, on the CPU."""
        kept = []
        for i in range(len(self._collections)):
            rows = np.concatenate(self._rows[i])
            order = np.argsort(rows)
            documents = torch.cat(self._documents[i])[torch.from_numpy(order)]
            in_order = torch.from_numpy(np.argsort(np.concatenate(self._positions[i])))
            kept.append(KeptCollection(torch.cat(self._queries[i])[in_order], rows[order], documents))
        return KeptEmbeddings(tuple(kept))


@dataclass(frozen=True)
class KeptLogits:
    """What a re-ranker scored every pair under one merge, before any activation.

    Attributes:
        logits: per collection fp32 [P], in the order of its pairs (`PreparedPairs`), on the CPU.
        candidates: per collection a number of which pairs these are, see `PreparedPairs.digest`.
    """

    logits: tuple[Tensor, ...]
    candidates: tuple[int, ...]

    def to_bytes(self) -> bytes:
        """As a safetensors file."""
        from safetensors.torch import save

        tensors = {f"{i}.logits": logits.contiguous() for i, logits in enumerate(self.logits)}
        content: bytes = save({**tensors, "candidates": torch.tensor(self.candidates, dtype=torch.int64)})
        return content

    @classmethod
    def from_bytes(cls, content: bytes) -> KeptLogits:
        """What `to_bytes` wrote."""
        from safetensors.torch import load

        tensors = load(content)
        candidates = tuple(tensors.pop("candidates").tolist())
        return cls(tuple(tensors[f"{i}.logits"] for i in range(len(tensors))), candidates)


class PairKeeper:
    """Collects, while a trial is evaluated, the logits to keep of it.

    Args:
        collections: what it is evaluated on.
    """

    def __init__(self, collections: Sequence[PreparedPairs]) -> None:
        self._logits = [torch.full((c.plan.n_texts,), math.nan) for c in collections]
        self._candidates = tuple(c.digest for c in collections)

    def add(self, i: int, pairs: NDArray[np.int64], logits: Tensor) -> None:
        """Logits of some pairs of collection `i`, fp32 [B]."""
        self._logits[i][torch.from_numpy(pairs)] = logits.cpu()

    def result(self) -> KeptLogits:
        """What was collected; NaN for pairs that were not scored."""
        return KeptLogits(tuple(self._logits), self._candidates)


def _halved(embeddings: Tensor) -> Tensor:
    fits = not embeddings.numel() or float(embeddings.abs().max()) < LARGEST_HALF
    kept = embeddings.half() if fits else embeddings.float().clone()
    return kept.cpu()
