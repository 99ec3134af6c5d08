"""`Collection`: one judged split of one corpus, as every later step sees it.

What the formats in `mergesearch.evaluation.formats` agree on when they make one:

* A document is `title + " " + text` when it has a title, else its text; surrounding white space is removed,
  from queries too (BEIR does the same with documents).
* Queries are those that the split judges and for which it knows at least one relevant document (grade 1 or
  more). Queries of other splits are left out silently; judged queries without a relevant document are left
  out with a warning, since no ranking could score on them.
* Judgements of grade 0 are kept; negative grades count as 0, as in trec_eval.
* Every id in `qrels` and `candidates` exists. Documents and queries keep the order of their files.
* A document whose id equals the query's is not ranked for that query where queries are themselves documents
  of the corpus (ArguAna, Quora); see `CollectionOptions.exclude_same_id`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

from mergesearch.errors import CollectionError, Problem

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True)
class Collection:
    """A corpus, the queries of one split, and their relevance judgements.

    Attributes:
        name: what the study calls it.
        split: for example `dev`.
        query_ids: Q ids, unique.
        query_texts: Q texts, without any prompt.
        doc_ids: D ids, unique.
        doc_texts: D texts, title included, without any prompt.
        qrels: query id to document id to grade (0 or more); exactly the queries of `query_ids`.
        candidates: query id to the only document ids that may be ranked for it; None ranks the whole corpus.
        pooled: of a pool: query id to the document ids that it brought in; None for a whole corpus. It decides nothing
            but the order in which a raced trial encodes documents.
        exclude_same_id: whether a document with the id of the query is left out of its ranking.
        warnings: what was mended or left out while loading, for people to read.

    Raises:
        CollectionError: when ids and texts differ in number, or the parts do not name the same queries.
    """

    name: str
    split: str
    query_ids: list[str]
    query_texts: list[str]
    doc_ids: list[str]
    doc_texts: list[str]
    qrels: dict[str, dict[str, int]]
    candidates: dict[str, list[str]] | None = None
    exclude_same_id: bool = True
    pooled: dict[str, list[str]] | None = field(default=None, compare=False)
    warnings: list[str] = field(default_factory=list, compare=False)

    def __post_init__(self) -> None:
        problems = []
        for kind, ids, texts in (
            ("queries", self.query_ids, self.query_texts),
            ("documents", self.doc_ids, self.doc_texts),
        ):
            if len(ids) != len(texts):
                problems.append(f"{kind}: {len(ids)} ids but {len(texts)} texts")
            if len(set(ids)) != len(ids):
                problems.append(f"{kind}: ids are not unique")
        for kind, keys in (
            ("qrels", self.qrels.keys()),
            ("candidates", (self.candidates or self.qrels).keys()),
        ):
            if keys != set(self.query_ids):
                problems.append(f"{kind}: must name exactly the collection's queries")
        if problems:
            raise CollectionError(Problem(p, f"collection {self.name!r}") for p in problems)

    @property
    def judged(self) -> list[str]:
        """Ids of the queries that have judgements, in the collection's order: those that are scored."""
        return [query_id for query_id in self.query_ids if self.qrels.get(query_id)]

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 (hex) of all that may change a score; the order of ids, the name and the split do not."""
        digest = hashlib.sha256()

        def add(*record: object) -> None:
            digest.update(json.dumps(record, ensure_ascii=True).encode() + b"\n")

        add("exclude_same_id", self.exclude_same_id, "candidates", self.candidates is not None)
        for kind, ids, texts in (
            ("query", self.query_ids, self.query_texts),
            ("document", self.doc_ids, self.doc_texts),
        ):
            for i in sorted(range(len(ids)), key=ids.__getitem__):
                add(kind, ids[i], texts[i])
        for query_id in sorted(self.query_ids):
            add("qrels", query_id, sorted(self.qrels[query_id].items()))
            if self.candidates is not None:
                add("candidates", query_id, sorted(set(self.candidates[query_id])))
        return digest.hexdigest()

    def sample_queries(self, n: int, seed: int) -> Collection:
        """The same corpus with `n` of its queries, drawn by the hash of seed and id.

        The draw does not depend on the order of the queries, and a smaller sample lies within a larger one of
        the same seed. Asking for more queries than there are gives all of them and a warning.

        Raises:
            CollectionError: when `n` is less than 1.
        """
        if n < 1:
            raise CollectionError([f"collection {self.name!r}: cannot sample {n} queries; ask for 1 or more"])
        if n >= len(self.query_ids):
            if n == len(self.query_ids):
                return self
            note = f"asked for a sample of {n:,} queries; all {len(self.query_ids):,} there are were taken"
            return replace(self, warnings=[*self.warnings, note])
        drawn = sorted(self.query_ids, key=lambda q: hashlib.sha256(f"{seed}\0{q}".encode()).digest())[:n]
        return self.with_queries(drawn)

    def with_pool(self, negatives: int, seed: int) -> Collection:
        """The same queries on a smaller corpus: judged documents and BM25 negatives.

        See `mergesearch.evaluation.pool.pool_documents`, which this calls.
        """
        from mergesearch.evaluation.pool import pool_documents  # brings bm25s, which few need

        return pool_documents(self, negatives, seed)

    def with_documents(self, kept: Iterable[str]) -> Collection:
        """The same queries on the part of the corpus whose ids are in `kept`.

        Judgements and candidates of documents that go are dropped.
        """
        ids = set(kept)
        rows = [i for i, doc_id in enumerate(self.doc_ids) if doc_id in ids]

        def left(lists: dict[str, list[str]] | None) -> dict[str, list[str]] | None:
            return lists and {q: [d for d in listed if d in ids] for q, listed in lists.items()}

        return replace(
            self,
            doc_ids=[self.doc_ids[i] for i in rows],
            doc_texts=[self.doc_texts[i] for i in rows],
            qrels={q: {d: g for d, g in grades.items() if d in ids} for q, grades in self.qrels.items()},
            candidates=left(self.candidates),
            pooled=left(self.pooled),
        )

    def with_queries(self, kept: Iterable[str]) -> Collection:
        """The same corpus with those of its queries whose ids are in `kept`, in the collection's order."""
        ids = set(kept)
        rows = [i for i, query_id in enumerate(self.query_ids) if query_id in ids]
        query_ids = [self.query_ids[i] for i in rows]
        return replace(
            self,
            query_ids=query_ids,
            query_texts=[self.query_texts[i] for i in rows],
            qrels={q: self.qrels[q] for q in query_ids},
            candidates=self.candidates and {q: self.candidates[q] for q in query_ids},
            pooled=self.pooled and {q: self.pooled[q] for q in query_ids},
        )
