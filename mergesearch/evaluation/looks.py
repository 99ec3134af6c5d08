"""Looks: which queries and documents a raced trial takes one after the other.

Queries come in one fixed order, shuffled by hash, and every look takes the same share of each collection's, so that
the queries of any look are a random sample of each. A look encodes the documents that its queries need and no
earlier look encoded, and every query so far searches every document so far:

* in a pool, a query needs the documents that it brought in: the judged ones and its BM25 negatives;
* with candidate lists, its candidates, so that no look is approximate;
* in a whole corpus, the judged ones and its best BM25 hits. What nobody needs comes with the last look.

Over fewer documents scores are higher than the final ones, so such looks are approximate, and a trial is compared
with what others scored over the same documents. The last look takes everything: its scores are the trial's.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mergesearch.evaluation.collection import Collection


@dataclass(frozen=True)
class LookSettings:
    """What decides which queries and documents each look takes, and so what a look's score is.

    Attributes:
        shares: share of every collection's queries that is scored by the end of each look: ascending, the last is 1.
        hits: in a whole corpus, BM25 hits that the looks before the last search per query, beside judged documents.
        seed: of the order of the queries.
    """

    shares: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)
    hits: int = 10
    seed: int = 0


@dataclass(frozen=True)
class LookPlan:
    """The looks at one collection; every query and document is in exactly one.

    Attributes:
        queries: positions among the judged queries that are new in each look, int64; may be none.
        documents: corpus positions that are new in each look, int64; may be none.
        approximate: whether each look searches fewer documents than the last.
    """

    queries: tuple[NDArray[np.int64], ...]
    documents: tuple[NDArray[np.int64], ...]
    approximate: tuple[bool, ...]


def plan_looks(
    needs: Sequence[NDArray[np.int64]],
    document_rows: NDArray[np.int64],
    order: NDArray[np.int64],
    shares: Sequence[float],
    *,
    listed: bool = False,
) -> LookPlan:
    """Divide queries and documents into looks.

    Args:
        needs: corpus positions of the documents that each of Q queries needs; those not in `document_rows` are
            passed over.
        document_rows: corpus positions of all documents that a trial encodes.
        order: in which queries are looked at, a permutation of 0 … Q - 1.
        shares: see `LookSettings`; a share is rounded up to whole queries.
        listed: queries are answered with what they need only, so that other documents do not change their scores.
    """
    queries = divide_queries(order, shares)
    left = document_rows
    documents = []
    for group in queries[:-1]:
        new = (
            np.isin(left, np.concatenate([needs[query] for query in group]))
            if len(group)
            else np.zeros(len(left), bool)
        )
        documents.append(left[new])
        left = left[~new]
    documents.append(left)
    # What is still to come after each look.
    coming = np.cumsum([len(rows) for rows in documents][::-1])[::-1][1:]
    approximate = tuple(bool(n) and not listed for n in coming)
    return LookPlan(queries, tuple(documents), (*approximate, False))


def divide_queries(order: NDArray[np.int64], shares: Sequence[float]) -> tuple[NDArray[np.int64], ...]:
    """Positions of the queries that are new in each look, int64, ascending; arguments as for `plan_looks`."""
    ends = [math.ceil(share * len(order) - 1e-9) for share in shares]
    return tuple(np.sort(order[start:end]) for start, end in zip([0, *ends[:-1]], ends, strict=True))


def order_queries(query_ids: Sequence[str], seed: int) -> NDArray[np.int64]:
    """Positions of the queries as they are looked at: shuffled, whatever their order is."""
    hashes = [hashlib.sha256(f"look\0{seed}\0{query_id}".encode()).digest() for query_id in query_ids]
    return np.array(sorted(range(len(hashes)), key=hashes.__getitem__), dtype=np.int64)


def needed_documents(collection: Collection, query_ids: Sequence[str], hits: int, seed: int) -> list[NDArray[np.int64]]:
    """Corpus positions of the documents that each query needs, see this file's head; int64, ascending."""
    rows = {doc_id: row for row, doc_id in enumerate(collection.doc_ids)}
    needed = collection.candidates or collection.pooled
    if needed is None:
        found: dict[str, list[str]] = {}
        if hits:
            from mergesearch.evaluation.pool import hard_negatives  # brings bm25s, which few need

            found = hard_negatives(collection, hits, seed)
        needed = {query: [*collection.qrels[query], *found.get(query, ())] for query in query_ids}
    return [np.unique([rows[d] for d in needed.get(q, ())]).astype(np.int64) for q in query_ids]
