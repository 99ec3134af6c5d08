"""The lists that come with a collection, as in JQaRA."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mergesearch.errors import CollectionError, Problem
from mergesearch.evaluation.first_stages.registry import Candidates, FirstStage, first_stage
from mergesearch.evaluation.search import own_documents

if TYPE_CHECKING:
    from pathlib import Path

    from mergesearch.evaluation.collection import Collection


@first_stage("candidates", "the lists that come with the collection; the re-ranker alone decides")
class CollectionCandidates(FirstStage):
    """Whole lists, in descending order of document ids, for lists come without scores and in no order that counts."""

    def identity(self, collection: Collection, relative_to: Path) -> dict[str, Any]:  # noqa: ARG002
        """See the base class; the collection decides."""
        return {}

    def rank(self, collection: Collection, depth: int, *, relative_to: Path, device: str) -> Candidates:  # noqa: ARG002
        """See the base class. A list that is longer than `depth` is an error: nothing says what to leave out."""
        where = f"collection {collection.name!r}"
        if collection.candidates is None:
            message = "it has no candidate lists; name another first stage, such as bm25"
            raise CollectionError([Problem(message, where)])
        row_of = {doc_id: row for row, doc_id in enumerate(collection.doc_ids)}
        barred = own_documents(collection)
        lists = []
        for query, query_id in enumerate(collection.judged):
            listed = sorted(set(collection.candidates[query_id]), reverse=True)
            rows = np.array([row_of[doc_id] for doc_id in listed], dtype=np.int64)
            lists.append(rows if barred is None else rows[rows != barred[query]])
        longest = max(map(len, lists), default=0)
        if longest > depth:
            message = f"it has lists of up to {longest:,} candidates, more than the depth of {depth:,}; give "
            raise CollectionError([Problem(f"{message}`depth: {longest}`", where)])
        return Candidates.from_lists(lists, None)
