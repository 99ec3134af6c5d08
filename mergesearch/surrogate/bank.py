"""The embeddings of evaluated merges, and scores of merges predicted from them.

A predicted embedding is a weighted sum of evaluated ones. So the inner product of a predicted query and a predicted
document is a quadratic form in the weights, whose coefficients are inner products of evaluated queries and
documents: computed once per pair, they serve every candidate, whatever the dimension of the embeddings. Three
things keep that small:

* Merges are written as their mean and the principal directions of their differences, as many as it takes to lose
  no more than storing the embeddings in 16 bits has lost, and at most `MOST_DIRECTIONS`.
* Only documents that some evaluated merge ranks high for a query are ranked for it.
* A query's own length is the same for all documents and never computed.

Notation: n evaluated merges, R basis embeddings, F = R(R + 1)/2 products of two weights, C candidates, Q queries,
N documents, M shortlisted documents of a query, U documents of all shortlists, E dimensions, K ranks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mergesearch.errors import EvaluationError
from mergesearch.evaluation.judgements import Judgements
from mergesearch.evaluation.metrics import Metric, parse_metric
from mergesearch.surrogate.ranks import judgements_of, score_columns

Array = NDArray[np.float64]

SHORTLIST = 50
"""Documents that every evaluated merge puts on a query's shortlist; at least twice the metric's depth."""
LOST_ENERGY = 1e-7
"""Share of the squared length of all embeddings that the basis may lose; rounding to float16 loses up to 8e-8."""
MOST_DIRECTIONS = 24
"""Principal directions that are kept at most: the cost of a candidate grows with their square, and with many evaluated
merges the last of them hold next to nothing."""
_BLOCK_ELEMENTS = 1 << 25
"""Largest intermediate of fp32: 128 MB."""
_KEPT_ELEMENTS = 1 << 26
"""Most that is kept per collection between calls: 256 MB of fp32."""


@dataclass(frozen=True)
class CollectionBank:
    """The texts of one collection as every evaluated merge embeds them.

    Attributes:
        queries: [n, Q, E], any float dtype, as they are scored: of length 1 where `normalize`.
        documents: [n, N, E] on the same device.
        judgements: of the Q queries; its document positions are those of `documents`, or of `document_rows`.
        weight: the collection's share; shares are normalised over collections.
        normalize: whether predictions are scaled to length 1, for models compared by cosine; False for inner product.
        document_rows: position of each of the N documents in the corpus that `judgements`, `exclude` and
            `candidates` number, int64 [N]; None where they are the corpus.
        exclude: a corpus position per query that must not be ranked, int64 [Q]; -1 for none.
        candidates: the only corpus positions that each query may be answered with; None for all.
    """

    queries: Tensor
    documents: Tensor
    judgements: Judgements
    weight: float = 1.0
    normalize: bool = True
    document_rows: NDArray[np.int64] | None = None
    exclude: NDArray[np.int64] | None = None
    candidates: Sequence[NDArray[np.int64]] | None = None

    def __post_init__(self) -> None:
        shapes = self.queries.shape, self.documents.shape
        fit = len(shapes[0]) == len(shapes[1]) == 3 and shapes[0][::2] == shapes[1][::2]
        if not fit or shapes[0][1] != len(self.judgements.n_relevant):
            raise EvaluationError(
                f"embeddings of merges must be [n, Q, E] and [n, N, E] with Q = {len(self.judgements.n_relevant)}, "
                f"the judged queries; not {list(shapes[0])} and {list(shapes[1])}."
            )

    def rows(self) -> NDArray[np.int64]:
        """Corpus position of each document, int64 [N]."""
        return np.arange(self.documents.shape[1]) if self.document_rows is None else self.document_rows

    def shortlists(self, length: int) -> list[NDArray[np.int64]]:
        """Per query the documents, as indices into `documents`, among the `length` best of any evaluated merge."""
        _, n_documents, _ = self.documents.shape
        length = min(length, n_documents)
        found: list[list[NDArray[np.int64]]] = [[] for _ in range(self.queries.shape[1])]
        forbidden = self._forbidden()
        block = max(1, _BLOCK_ELEMENTS // max(1, n_documents))
        for queries_QE, documents_NE in zip(self.queries, self.documents, strict=True):
            documents_EN = documents_NE.float().T
            for start in range(0, len(queries_QE), block):
                scores_BN = queries_QE[start : start + block].float() @ documents_EN
                if forbidden is not None:
                    scores_BN[forbidden[start : start + block]] = -torch.inf
                values, columns = torch.topk(scores_BN, length, dim=1)
                for query, (value, column) in enumerate(zip(values.cpu(), columns.cpu(), strict=True), start):
                    found[query].append(column[value > -torch.inf].numpy())
        return [np.unique(np.concatenate(columns)) for columns in found]

    def _forbidden(self) -> Tensor | None:
        """Pairs that must not be ranked, bool [Q, N]; None where there are none."""
        if self.exclude is None and self.candidates is None:
            return None
        rows = self.rows()
        forbidden = np.zeros((self.queries.shape[1], len(rows)), dtype=bool)
        for query, row in enumerate(forbidden):
            if self.candidates is not None:
                row[:] = ~np.isin(rows, self.candidates[query])
            if self.exclude is not None:
                row |= rows == self.exclude[query]
        return torch.from_numpy(forbidden).to(self.queries.device)


def bank_bytes(n: int, queries: int, documents: int, dimensions: int) -> int:
    """Memory that a bank of `n` merges takes for one collection on its device, about.

    It is that of embeddings in float16, of the shortlisted pairs' quadratic forms, and of the largest intermediate.
    """
    n_basis = 1 + min(n, MOST_DIRECTIONS)
    pairs = n_basis * (n_basis + 1) * queries * min(documents, 2 * SHORTLIST)
    return 2 * n * (queries + documents) * dimensions + 4 * min(_KEPT_ELEMENTS + _BLOCK_ELEMENTS, pairs)


class EmbeddingBank:
    """Predicts per-query scores of merges from weights of evaluated ones.

    Not safe for use from several threads.

    Args:
        keys: what the n evaluated merges are called, in the order of every array's first axis.
        collections: at least one, all with n merges.
        shortlist: see `SHORTLIST`; the size of the corpus makes results those of the plain computation.
        lost_energy: see `LOST_ENERGY`; 0 keeps a basis of everything.
        most_directions: see `MOST_DIRECTIONS`.

    Raises:
        EvaluationError: there is no collection, a collection holds another number of merges, or embeddings are
            NaN or infinite.
    """

    def __init__(
        self,
        keys: Sequence[str],
        collections: Sequence[CollectionBank],
        *,
        shortlist: int = SHORTLIST,
        lost_energy: float = LOST_ENERGY,
        most_directions: int = MOST_DIRECTIONS,
    ) -> None:
        self.keys = tuple(keys)
        self.collections = tuple(collections)
        held = sorted({len(c.queries) for c in self.collections})
        if held != [len(self.keys)]:
            raise EvaluationError(f"{len(self.keys)} merges are named; the collections hold embeddings of {held}.")
        self._shortlist = shortlist
        self._shortlists: dict[tuple[int, int], list[NDArray[np.int64]]] = {}
        self._kept: dict[tuple[int, int], list[_Forms]] = {}
        self._gram, energy = self._differences()
        if not np.isfinite(self._gram).all():
            raise EvaluationError("embeddings of evaluated merges hold NaN or infinite values.")
        values, vectors = np.linalg.eigh(self._gram)
        lost = np.cumsum(np.maximum(values, 0.0)) <= lost_energy * energy  # ascending
        self._directions: Array = vectors[:, ~lost][:, ::-1][:, :most_directions]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Queries per collection."""
        return tuple(c.queries.shape[1] for c in self.collections)

    @property
    def shares(self) -> tuple[float, ...]:
        """Share of each collection in the value, as given."""
        return tuple(c.weight for c in self.collections)

    def gram(self) -> Array:
        """Inner products of the merges' differences from their mean, float64 [n, n].

        Per collection the mean over queries plus the mean over documents, halved; collections by their shares. So
        with embeddings of length 1 it measures squared distances per text, and the diagonal is below 1.
        """
        return self._gram

    def per_query_scores(self, weights: Array, metric: str) -> Array:
        """Scores of predicted merges, float64 [C, Q] with the queries of all collections side by side.

        Args:
            weights: of the evaluated merges in each prediction, [C, n].
            metric: for example `ndcg@10`. Ties are broken in no particular order.
        """
        measured = parse_metric(metric)
        # Any weights: Σ wᵢ Eᵢ = (Σ wᵢ) mean + Σ wᵢ (Eᵢ - mean), and the directions span the differences.
        weights_CR = np.hstack([weights.sum(axis=1, keepdims=True), weights @ self._directions])
        columns = [self._scores(i, weights_CR, measured) for i in range(len(self.collections))]
        return np.concatenate(columns, axis=1)

    def _scores(self, index: int, weights_CR: Array, metric: Metric) -> Array:
        bank = self.collections[index]
        n_candidates, n_basis = weights_CR.shape
        first, second = torch.triu_indices(n_basis, n_basis, device=bank.queries.device)
        scores_CQ = np.zeros((n_candidates, bank.queries.shape[1]))
        rows = bank.rows()
        for forms in self._forms(index, max(self._shortlist, 2 * metric.depth)):
            chunk = max(1, _BLOCK_ELEMENTS // max(len(first), len(forms.squares)))
            for start in range(0, n_candidates, chunk):
                part_RC = torch.from_numpy(weights_CR[start : start + chunk].T).to(forms.squares)
                part_FC = part_RC[first] * part_RC[second]
                scale_UC = (forms.squares @ part_FC).clamp_min(1e-30).rsqrt() if bank.normalize else None
                for query, (documents, columns, pairs_MF) in forms.queries.items():
                    similarity_MC = pairs_MF @ part_FC
                    if scale_UC is not None:
                        similarity_MC *= scale_UC[columns]
                    scores_CQ[start : start + chunk, query] = score_columns(
                        metric, judgements_of(bank.judgements, query), rows[documents], similarity_MC.cpu().numpy()
                    )
        return scores_CQ

    def _forms(self, index: int, length: int) -> Iterable[_Forms]:
        """Quadratic forms of a collection, computed once unless they are too many to keep."""
        if (index, length) in self._kept:
            return self._kept[index, length]
        if (index, length) not in self._shortlists:
            self._shortlists[index, length] = self.collections[index].shortlists(length)
        shortlists = self._shortlists[index, length]
        forms = self._compute_forms(self.collections[index], shortlists)
        n_basis = self._directions.shape[1] + 1
        if n_basis * (n_basis + 1) * sum(map(len, shortlists)) > _KEPT_ELEMENTS:  # pairs, and at most as many squares
            return forms
        return self._kept.setdefault((index, length), list(forms))

    def _compute_forms(self, bank: CollectionBank, shortlists: Sequence[NDArray[np.int64]]) -> Iterator[_Forms]:
        device = bank.queries.device
        n_basis = self._directions.shape[1] + 1
        first, second = torch.triu_indices(n_basis, n_basis, device=device)
        for queries in _blocks(shortlists, _BLOCK_ELEMENTS // (n_basis * max(n_basis, bank.queries.shape[2]))):
            used = np.unique(np.concatenate([shortlists[q] for q in queries]))
            documents_URE = self._basis(bank.documents[:, torch.from_numpy(used).to(device)]).transpose(0, 1)
            queries_RQE = self._basis(bank.queries[:, queries])
            forms = _Forms(_products(documents_URE @ documents_URE.transpose(1, 2), first, second), {})
            for position, query in enumerate(queries):
                columns = torch.from_numpy(np.searchsorted(used, shortlists[query])).to(device)
                pairs_MRR = documents_URE[columns] @ queries_RQE[:, position].T
                forms.queries[query] = shortlists[query], columns, _products(pairs_MRR, first, second)
            yield forms

    def _basis(self, embeddings_nTE: Tensor) -> Tensor:
        """Mean and principal differences of the merges' embeddings of some texts, fp32 [R, T, E]."""
        embeddings_nTE = embeddings_nTE.float()
        mean_1TE = embeddings_nTE.mean(dim=0, keepdim=True)
        directions = torch.from_numpy(self._directions.copy()).to(embeddings_nTE)
        return torch.cat([mean_1TE, torch.einsum("nr,nte->rte", directions, embeddings_nTE - mean_1TE)])

    def _differences(self) -> tuple[Array, float]:
        """See `gram`; and its trace before the mean was taken off."""
        n = len(self.keys)
        total = float(sum(self.shares))
        gram, energy = np.zeros((n, n)), 0.0
        for bank in self.collections:
            for texts_nTE in (bank.queries, bank.documents):
                share = bank.weight / total / 2 / max(1, texts_nTE.shape[1])
                block = max(1, _BLOCK_ELEMENTS // (n * texts_nTE.shape[2]))
                for part in torch.split(texts_nTE, block, dim=1):
                    part_nTE = part.float()
                    energy += share * float(part_nTE.square().sum())
                    flat = (part_nTE - part_nTE.mean(dim=0)).flatten(1)
                    gram += share * (flat @ flat.T).double().cpu().numpy()
        return gram, energy


class _Forms(NamedTuple):
    """Quadratic forms in basis weights, as coefficients of products of two: of a few queries and their documents.

    Attributes:
        squares: squared length of each document, [U, F].
        queries: per query its documents as indices into the collection's, int64 [M], their rows in `squares`,
            and inner products with the query, [M, F].
    """

    squares: Tensor
    queries: dict[int, tuple[NDArray[np.int64], Tensor, Tensor]]


def _products(forms: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Quadratic forms [X, R, R] as coefficients of the products wᵢwⱼ with i ≤ j, [X, F]."""
    both = forms + forms.transpose(1, 2)
    return both[:, first, second] / torch.where(first == second, 2.0, 1.0)


def _blocks(shortlists: Sequence[NDArray[np.int64]], documents: int) -> Iterator[list[int]]:
    """Runs of queries whose shortlists together name at most `documents` documents, or one query."""
    block: list[int] = []
    named = 0
    for query, shortlist in enumerate(shortlists):
        if block and named + len(shortlist) > max(1, documents):
            yield block
            block, named = [], 0
        block.append(query)
        named += len(shortlist)
    yield block
