"""A smaller corpus that keeps the hard part of the task: judged documents and BM25 negatives.

Encoding is what a trial pays for, so a search over merges is run on a pool: every document that the split
judges, and for each query the documents that BM25 ranks highest among those not relevant to it. All queries
search the whole pool. Scores on a pool are higher than on the full corpus and are for comparing merges only.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from typing import TYPE_CHECKING

import bm25s
import numpy as np

from mergesearch.errors import CollectionError, Problem

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mergesearch.evaluation.collection import Collection

# Scripts written without spaces: a run of them is cut into overlapping pairs of characters, else a whole
# sentence would be one word. (Kana, Han, Thai, Lao, Khmer, Myanmar.)
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\uff66-\uff9f"
_TOKEN = re.compile(rf"[{_UNSPACED}]+|[^\W{_UNSPACED}]+")
_RUN = re.compile(rf"[{_UNSPACED}]")


def tokenize(text: str) -> list[str]:
    """Lower-case words; scripts without spaces as overlapping pairs of characters."""
    tokens: list[str] = []
    for word in _TOKEN.findall(text.lower()):
        if len(word) > 2 and _RUN.match(word):
            tokens.extend(word[i : i + 2] for i in range(len(word) - 1))
        else:
            tokens.append(word)
    return tokens


def pool_documents(collection: Collection, negatives: int, seed: int) -> Collection:
    """The collection on a pool of judged documents and `negatives` BM25 negatives per query.

    BM25 is bm25s' default (Lucene's variant, k1 = 1.5, b = .75) over `tokenize`, without stop words or
    stemming, whatever the language. A negative shares a word with the query and is not judged relevant to it;
    equal scores are ordered by the hash of seed and document id, so the pool does not depend on the order of
    the corpus. Queries with fewer matching documents get fewer negatives: BM25's padding with score 0 is not
    taken.

    Args:
        collection: any collection without candidate lists.
        negatives: documents added per query, 0 or more.
        seed: decides between documents with equal scores, and nothing else.

    Returns:
        A collection with the same queries and qrels, documents in the order of the corpus.

    Raises:
        CollectionError: for a negative number, or a collection that has candidate lists already.
    """
    where = f"collection {collection.name!r}"
    if negatives < 0:
        raise CollectionError([Problem(f"a pool cannot have {negatives} negatives; give 0 or more", where)])
    if collection.candidates is not None:
        message = "it has candidate lists, which are its pool; take the pool out of the study file"
        raise CollectionError([Problem(message, where)])
    found = hard_negatives(collection, negatives, seed) if negatives else {}
    pooled = {q: list(dict.fromkeys([*grades, *found.get(q, ())])) for q, grades in collection.qrels.items()}
    kept = {doc_id for documents in pooled.values() for doc_id in documents}
    return replace(collection.with_documents(kept), pooled=pooled)


def hard_negatives(collection: Collection, k: int, seed: int) -> dict[str, list[str]]:
    """Query id to the ids of the k best-scored documents that are not relevant to it, best first."""
    doc_tokens = [tokenize(text) for text in collection.doc_texts]
    if not any(doc_tokens):
        return {query_id: [] for query_id in collection.query_ids}
    index = bm25s.BM25(backend="numpy")
    index.index(doc_tokens, show_progress=False)
    # order_of[i]: place of document i among documents of equal score.
    hashes = [hashlib.sha256(f"{seed}\0{doc_id}".encode()).digest() for doc_id in collection.doc_ids]
    order_of = np.empty(len(hashes), dtype=np.int64)
    order_of[sorted(range(len(hashes)), key=hashes.__getitem__)] = np.arange(len(hashes))
    found = {}
    for query_id, text in zip(collection.query_ids, collection.query_texts, strict=True):
        relevant = {d for d, grade in collection.qrels[query_id].items() if grade > 0}
        barred = relevant | ({query_id} if collection.exclude_same_id else set())
        best = _best(index, tokenize(text), k + len(barred), order_of)
        ids = [collection.doc_ids[i] for i in best]
        found[query_id] = [d for d in ids if d not in barred][:k]
    return found


def _best(index: bm25s.BM25, query: list[str], k: int, order_of: NDArray[np.int64]) -> list[int]:
    """Rows of the k best documents with a score above 0, best first, ties by `order_of`."""
    token_ids = index.get_tokens_ids(query)
    if not token_ids:
        return []
    scores = index.get_scores_from_ids(token_ids)
    rows = np.flatnonzero(scores > 0)
    if len(rows) > k:
        # All documents that tie with the k-th stay until the ties are broken below.
        kth = np.partition(scores[rows], len(rows) - k)[len(rows) - k]
        rows = rows[scores[rows] >= kth]
    order = np.lexsort((order_of[rows], -scores[rows]))
    best: list[int] = rows[order][:k].tolist()
    return best
