"""BM25 (Robertson and Zaragoza, 2009, https://doi.org/10.1561/1500000019) by bm25s."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from mergesearch.evaluation.first_stages.registry import Candidates, FirstStage, first_stage
from mergesearch.evaluation.search import order_by_id, own_documents

if TYPE_CHECKING:
    from pathlib import Path

    from mergesearch.evaluation.collection import Collection


@first_stage("bm25", "BM25 over words, without stop words or stemming")
class BM25(FirstStage):
    """Documents that share a word with the query; with candidate lists all that are listed, the others with score 0.

    Words are those of `mergesearch.evaluation.pool.tokenize`.
    """

    k1: float = Field(1.5, ge=0)
    """How much further occurrences of a word add."""

    b: float = Field(0.75, ge=0, le=1)
    """How much long documents are discounted."""

    method: Literal["lucene", "robertson", "atire"] = "lucene"
    """The variant, in bm25s' words (Kamphuis et al., 2020, compare them)."""

    def identity(self, collection: Collection, relative_to: Path) -> dict[str, Any]:  # noqa: ARG002
        """See the base class."""
        from mergesearch.evaluation.pool import WORDS  # brings bm25s, which few need

        return {**self.model_dump(), "words": WORDS, "bm25s": version("bm25s")}

    def rank(self, collection: Collection, depth: int, *, relative_to: Path, device: str) -> Candidates:  # noqa: ARG002
        """See the base class."""
        from mergesearch.evaluation.pool import WordIndex, best

        index = WordIndex(collection.doc_texts, k1=self.k1, b=self.b, method=self.method)
        texts = dict(zip(collection.query_ids, collection.query_texts, strict=True))
        row_of = {doc_id: row for row, doc_id in enumerate(collection.doc_ids)}
        barred = own_documents(collection)
        from_last = np.empty(len(row_of), dtype=np.int64)
        from_last[order_by_id(collection.doc_ids)[::-1]] = np.arange(len(row_of))
        rows, found = [], []
        for query, query_id in enumerate(collection.judged):
            scores = index.scores(texts[query_id])
            if collection.candidates is None:
                among = np.flatnonzero(scores > 0)
            else:
                among = np.array(sorted({row_of[d] for d in collection.candidates[query_id]}), dtype=np.int64)
            if barred is not None:
                among = among[among != barred[query]]
            rows.append(best(scores, among, depth, from_last))
            found.append(scores[rows[-1]].astype(np.float64))
        return Candidates.from_lists(rows, found)
