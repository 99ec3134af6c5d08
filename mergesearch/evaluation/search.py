"""Exact nearest documents over a stream of embeddings, in trec_eval's order.

The score of a pair is its inner product computed in float64 and rounded to fp32, and equal scores are ordered
by document id, descending, as trec_eval orders them. So a ranking depends on the embeddings alone: not on the
size of the chunks they come in, on the backend, or on how a BLAS library splits a matrix. Fast fp32 products
only shortlist what is scored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mergesearch.errors import EvaluationError
from mergesearch.evaluation.backends import SearchBackend, get_backend

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from mergesearch.evaluation.collection import Collection

_ABSENT = torch.iinfo(torch.int64).min
_MATRIX_ELEMENTS = 1 << 25
"""Largest queries × documents matrix of fp32 scores: 128 MB."""
_PAIR_ELEMENTS = 1 << 22
"""Largest gathered pairs × dimensions of float64: 32 MB each for queries and documents."""
_UNIT_ROUNDOFF = 2.0**-24


@dataclass(frozen=True)
class Ranking:
    """The best documents of Q queries.

    Attributes:
        rows: positions in the corpus, best first, int64 [Q, K]; -1 where a query has fewer documents.
        scores: fp32 [Q, K]; -inf where there is no document.
    """

    rows: NDArray[np.int64]
    scores: NDArray[np.float32]

    def to_run(self, query_ids: Sequence[str], doc_ids: Sequence[str]) -> dict[str, tuple[tuple[str, float], ...]]:
        """Query id to (document id, score), best first."""
        return {
            query_id: tuple((doc_ids[row], float(score)) for row, score in zip(rows, scores, strict=True) if row >= 0)
            for query_id, rows, scores in zip(query_ids, self.rows, self.scores, strict=True)
        }


class TopK:
    """The `depth` best documents per query, kept up to date while chunks of embeddings pass by.

    Notation: Q queries, N documents of the corpus, C documents of a chunk, E dimensions, M shortlisted.

    Args:
        queries_QE: query embeddings, any float dtype; scored in fp32. Normalise them first for cosine.
        doc_ids: ids of all N documents; they break ties.
        depth: documents to keep per query.
        backend: a name in the registry of search backends.
        exclude: a corpus position per query that must not be returned (the query itself), int64 [Q]; or -1.
        candidates: the only corpus positions that each query may be answered with; None for the whole corpus.
        by_id: what `order_by_id` gives, for those who search one corpus again and again; None works it out.

    Raises:
        EvaluationError: an embedding is NaN or infinite. On a GPU, `add` says so of queries too.
    """

    def __init__(
        self,
        queries_QE: Tensor,
        doc_ids: Sequence[str],
        depth: int,
        *,
        backend: str = "torch",
        exclude: NDArray[np.int64] | None = None,
        candidates: Sequence[NDArray[np.int64]] | None = None,
        by_id: NDArray[np.int64] | None = None,
    ) -> None:
        self._queries_QE = queries_QE.float()
        # Looking at a GPU's values waits for them; there the queries are looked at with the first documents.
        self._looked_at = queries_QE.device.type != "cuda"
        if self._looked_at:
            _check_finite(self._queries_QE, "query")
        self._backend: SearchBackend = get_backend(backend)
        self._depth = depth
        device = queries_QE.device
        by_id = order_by_id(doc_ids) if by_id is None else by_id
        self._row_of_place = by_id
        places = np.empty_like(by_id)
        places[by_id] = np.arange(len(by_id))
        self._place_of_row = torch.from_numpy(places).to(device)
        self._exclude = None if exclude is None else torch.from_numpy(exclude).to(device)
        self._candidates = None if candidates is None else _rectangle(candidates).to(device)
        # A document's key holds score and id in one integer, so that one top-k orders by both.
        self._keys_QK = torch.full((len(queries_QE), depth), _ABSENT, dtype=torch.int64, device=device)

    def add(self, rows: NDArray[np.int64], documents_CE: Tensor) -> None:
        """Take in a chunk: embeddings of the documents at corpus positions `rows`, int64 [C].

        Every document may be added once. The embeddings are not kept.

        Raises:
            EvaluationError: an embedding is NaN or infinite.
        """
        if not len(rows):
            return
        if not self._looked_at:
            _check_finite(self._queries_QE, "query")
            self._looked_at = True
        documents_CE = documents_CE.float().contiguous()
        _check_finite(documents_CE, "document")
        row_C = torch.from_numpy(rows).to(documents_CE.device)
        for queries, columns_QM in self._proposals(row_C, documents_CE):
            kept = self._keys_QK[queries]
            merged = torch.cat([kept, self._keys(queries, columns_QM, row_C, documents_CE)], dim=1)
            self._keys_QK[queries] = torch.topk(merged, self._depth, dim=1).values

    def result(self) -> Ranking:
        """The ranking over everything added so far."""
        keys = self._keys_QK.cpu()
        absent = (keys == _ABSENT).numpy()
        scores = _ordered_to_float((keys >> 32).to(torch.int32)).numpy()
        places = (keys & 0xFFFFFFFF).numpy()
        rows = np.full(places.shape, -1, dtype=np.int64)
        rows[~absent] = self._row_of_place[places[~absent]]
        return Ranking(rows, np.where(absent, np.float32(-np.inf), scores))

    def _proposals(self, row_C: Tensor, documents_CE: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Groups of queries with the chunk's columns to score for each, int64 [Q, M], -1 for none."""
        if self._candidates is not None:
            column_of_row = torch.full_like(self._place_of_row, -1)
            column_of_row[row_C] = torch.arange(len(row_C), device=row_C.device)
            columns_QM = torch.where(self._candidates >= 0, column_of_row[self._candidates], -1)
            yield torch.arange(len(columns_QM), device=row_C.device), columns_QM
            return
        self._backend.open(documents_CE)
        longest = documents_CE.norm(dim=1).max()
        block = max(1, _MATRIX_ELEMENTS // len(documents_CE))
        for queries in torch.split(torch.arange(len(self._queries_QE), device=row_C.device), block):
            yield from self._shortlist(queries, len(documents_CE), longest)

    def _shortlist(self, queries: Tensor, n_documents: int, longest: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Columns that hold every document whose exact score can be among the best.

        An fp32 inner product is off by less than `slack`. With a the `depth`-th best approximate score, there
        are `depth` documents with exact scores of at least a - slack, and a document that beats one of them
        has an approximate score of at least a - 2 slack. Queries whose shortlist ends above that (many near
        ties) get a longer one.
        """
        depth = min(n_documents, self._depth + (self._exclude is not None))
        slack_Q = 1.01 * (self._queries_QE.shape[1] + 2) * _UNIT_ROUNDOFF * longest * self._queries_QE.norm(dim=1)
        length = min(n_documents, depth + max(8, depth // 4))
        while len(queries):
            scores_QM, columns_QM = self._backend.best(self._queries_QE[queries], length)
            settled = scores_QM[:, -1] < scores_QM[:, depth - 1] - 2 * slack_Q[queries]
            if length == n_documents:
                settled[:] = True
            group = max(1, _PAIR_ELEMENTS // length)
            yield from zip(torch.split(queries[settled], group), torch.split(columns_QM[settled], group), strict=True)
            queries = queries[~settled]
            length = min(n_documents, 4 * length)

    def _keys(self, queries: Tensor, columns_QM: Tensor, row_C: Tensor, documents_CE: Tensor) -> Tensor:
        """Keys of the proposed documents, int64 [Q, M]; a larger key ranks higher."""
        valid = columns_QM >= 0
        if self._exclude is not None:
            valid &= row_C[columns_QM.clamp(min=0)] != self._exclude[queries][:, None]
        pairs = valid.nonzero()
        columns = columns_QM[valid]
        scores = torch.empty(len(pairs), device=documents_CE.device)
        block = max(1, _PAIR_ELEMENTS // documents_CE.shape[1])
        for start in range(0, len(pairs), block):
            part = slice(start, start + block)
            query_PE = self._queries_QE[queries[pairs[part, 0]]].double()
            document_PE = documents_CE[columns[part]].double()
            scores[part] = (query_PE * document_PE).sum(dim=1).float()
        keys = torch.full_like(columns_QM, _ABSENT)
        keys[valid] = (_float_to_ordered(scores).long() << 32) | self._place_of_row[row_C[columns]]
        return keys


def own_documents(collection: Collection) -> NDArray[np.int64] | None:
    """Corpus position per judged query of the document that is the query itself, int64 [Q], -1 for none.

    None where no query has one, or where documents with the id of a query are ranked like all others.
    """
    judged = collection.judged
    rows = {doc_id: row for row, doc_id in enumerate(collection.doc_ids)}
    if not collection.exclude_same_id or rows.keys().isdisjoint(judged):
        return None
    return np.array([rows.get(query_id, -1) for query_id in judged], dtype=np.int64)


def order_by_id(doc_ids: Sequence[str]) -> NDArray[np.int64]:
    """Corpus positions in the order of document ids, int64 [N]; a second for a million documents."""
    # Code points sort as the UTF-8 bytes that trec_eval compares.
    return np.array(sorted(range(len(doc_ids)), key=doc_ids.__getitem__), dtype=np.int64)


def _float_to_ordered(values: Tensor) -> Tensor:
    """Integers, int32, in the order of fp32 `values`; +0.0 and -0.0 are one."""
    bits = (values + 0.0).view(torch.int32)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def _ordered_to_float(ordered: Tensor) -> Tensor:
    """The inverse of `_float_to_ordered`."""
    return (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).view(torch.float32)


def _check_finite(embeddings: Tensor, what: str) -> None:
    if not torch.isfinite(embeddings).all():
        broken = int((~torch.isfinite(embeddings).all(dim=1)).sum())
        raise EvaluationError(
            f"{broken} of {len(embeddings)} {what} embeddings hold NaN or infinite values, so the merge "
            "cannot be scored. Its weights are too large for the arithmetic: smaller coefficients or float32 help."
        )


def _rectangle(lists: Sequence[NDArray[np.int64]]) -> Tensor:
    """Lists of unequal length as int64 [Q, M], -1 behind."""
    table = np.full((len(lists), max((len(x) for x in lists), default=0)), -1, dtype=np.int64)
    for row, values in zip(table, lists, strict=True):
        row[: len(values)] = values
    return torch.from_numpy(table)
