"""A smaller corpus that keeps the hard part of the task: judged documents and BM25 negatives.

Encoding is what a trial pays for, so a search over merges is run on a pool: every document that the split
judges, and for each query the documents that BM25 ranks highest among those not relevant to it. All queries
search the whole pool. Scores on a pool are higher than on the full corpus and are for comparing merges only.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import bm25s
import numpy as np

from mergesearch.errors import CollectionError, Problem

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mergesearch.evaluation.collection import Collection

# Scripts written without spaces: a run of them is cut into overlapping pairs of characters, else a whole
# sentence would be one word. (Kana, Han, Thai, Lao, Khmer, Myanmar.)
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\uff66-\uff9f"
_TOKEN = re.compile(rf"[{_UNSPACED}]+|[^\W{_UNSPACED}]+")
_RUN = re.compile(rf"[{_UNSPACED}]")
WORDS = 1
"""Version of what `tokenize` takes for words: another number, and rankings by them are worked out anew."""


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
    index = WordIndex(collection.doc_texts)
    # order_of[i]: place of document i among documents of equal score.
    hashes = [hashlib.sha256(f"{seed}\0{doc_id}".encode()).digest() for doc_id in collection.doc_ids]
    order_of = np.empty(len(hashes), dtype=np.int64)
    order_of[sorted(range(len(hashes)), key=hashes.__getitem__)] = np.arange(len(hashes))
    found = {}
    for query_id, text in zip(collection.query_ids, collection.query_texts, strict=True):
        relevant = {d for d, grade in collection.qrels[query_id].items() if grade > 0}
        barred = relevant | ({query_id} if collection.exclude_same_id else set())
        scores = index.scores(text)
        rows = best(scores, np.flatnonzero(scores > 0), k + len(barred), order_of)
        ids = [collection.doc_ids[i] for i in rows]
        found[query_id] = [d for d in ids if d not in barred][:k]
    return found


class WordIndex:
    """BM25 over the words of a corpus, as `tokenize` finds them.

    Args:
        texts: N documents.
        parameters: of `bm25s.BM25`; its own defaults otherwise.
    """

    def __init__(self, texts: Sequence[str], **parameters: Any) -> None:
        self._n = len(texts)
        tokens = [tokenize(text) for text in texts]
        self._index: bm25s.BM25 | None = None
        if any(tokens):  # bm25s cannot index nothing
            self._index = bm25s.BM25(backend="numpy", **parameters)
            self._index.index(tokens, show_progress=False)

    def scores(self, query: str) -> NDArray[np.float32]:
        """Scores of all documents, fp32 [N]; 0 for those that share no word with the query."""
        token_ids = [] if self._index is None else self._index.get_tokens_ids(tokenize(query))
        if self._index is None or not token_ids:
            return np.zeros(self._n, dtype=np.float32)
        scores: NDArray[np.float32] = self._index.get_scores_from_ids(token_ids)
        return scores


def best(
    scores: NDArray[np.float32], rows: NDArray[np.int64], k: int, order_of: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The k of some documents with the highest scores, best first.

    Args:
        scores: of all N documents.
        rows: the documents to choose among.
        k: how many, at most.
        order_of: place of each of the N documents among those of equal score.
    """
    if len(rows) > k:
        # All documents that tie with the k-th stay until the ties are broken below.
        kth = np.partition(scores[rows], len(rows) - k)[len(rows) - k] if k else np.inf
        rows = rows[scores[rows] >= kth]
    found: NDArray[np.int64] = rows[np.lexsort((order_of[rows], -scores[rows]))][:k]
    return found
