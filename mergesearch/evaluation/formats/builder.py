"""`CollectionBuilder`: takes records in any order, checks them together, makes the `Collection`.

All formats share it, so that the same fault gives the same message in each of them.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import NamedTuple

from mergesearch.errors import CollectionError, Problem
from mergesearch.evaluation.collection import Collection

SHOWN = 10
"""Problems of one kind that are listed; a file with a fault in each line would fill the screen otherwise."""


class Place(NamedTuple):
    """Where a record stands: a file (or data set) and its line (or row), counted from 1."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


class _Record(NamedTuple):
    text: str
    line: int


class CollectionBuilder:
    """Collects the records of one split.

    Not thread-safe. Methods never raise for bad content: problems are kept, and `build` raises them together.

    Args:
        name: the collection's name.
        split: the split's name.
        unknown_ids: see `CollectionOptions`.
        empty_documents: see `CollectionOptions`.
        exclude_same_id: see `CollectionOptions`.
    """

    def __init__(
        self,
        name: str,
        split: str,
        *,
        unknown_ids: str = "error",
        empty_documents: str = "error",
        exclude_same_id: bool | None = None,
    ) -> None:
        self.name = name
        self.split = split
        self._unknown_ids = unknown_ids
        self._empty_documents = empty_documents
        self._exclude_same_id = exclude_same_id
        self._documents: dict[str, _Record] = {}
        self._empty: set[str] = set()
        self._queries: dict[str, tuple[str, Place]] = {}
        self._judgements: dict[str, dict[str, tuple[int, Place]]] = {}
        self._candidates: dict[str, dict[str, Place]] | None = None
        self._problems: list[Problem] = []
        self._found: Counter[str] = Counter()
        self._warned: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def error(self, kind: str, message: str, where: Place | str = "") -> None:
        """Keeps a problem; of one kind ("invalid JSON lines"), only the first are listed."""
        self._found[kind] += 1
        if self._found[kind] <= SHOWN:
            self._problems.append(Problem(message, str(where)))

    def warn(self, kind: str, example: str) -> None:
        """Keeps a warning; those of one kind become one line with their number and the first example."""
        self._warned[kind] += 1
        self._first.setdefault(kind, example)

    def problems(self) -> list[Problem]:
        """What was found so far, with a closing line for each kind that was cut short."""
        rest = [(kind, n - SHOWN) for kind, n in self._found.items() if n > SHOWN]
        return [*self._problems, *(Problem(f"… and {n:,} more {kind}") for kind, n in rest)]

    def add_document(
        self,
        doc_id: object,
        text: str | None,
        place: Place,
        *,
        title: str | None = None,
        repeats: bool = False,
    ) -> None:
        """Adds a document; `repeats` says that the format names a document once per query that lists it."""
        key = self._id("document", doc_id, place)
        if key is None:
            return
        whole = f"{title or ''} {text or ''}".strip()
        self._check_characters("document", key, whole, place)
        known = self._documents.get(key)
        if known is None:
            self._documents[key] = _Record(whole, place.line)
            if not whole:
                self._add_empty(key, place)
        elif known.text != whole:
            message = f"document id {key!r} was given to another document on line {known.line}"
            self.error("duplicate document ids", f"{message}; ids must be unique", place)
        elif not repeats:
            self.warn("repeated documents (same id, same text) left out", f"{key!r} at {place}")

    def add_query(self, query_id: object, text: str | None, place: Place, *, repeats: bool = False) -> None:
        """Adds a query; `repeats` as in `add_document`. Queries of other splits may be added as well."""
        key = self._id("query", query_id, place)
        if key is None:
            return
        whole = (text or "").strip()
        self._check_characters("query", key, whole, place)
        known = self._queries.get(key)
        if known is None:
            self._queries[key] = (whole, place)
        elif known[0] != whole:
            message = f"query id {key!r} was given to another query on line {known[1].line}"
            self.error("duplicate query ids", f"{message}; ids must be unique", place)
        elif not repeats:
            self.warn("repeated queries (same id, same text) left out", f"{key!r} at {place}")

    def add_judgement(self, query_id: object, doc_id: object, grade: object, place: Place) -> None:
        """Adds a relevance judgement; the grade is a whole number, as such or as text."""
        query, doc = self._id("query", query_id, place), self._id("document", doc_id, place)
        value = _whole(grade)
        if value is None:
            self.error("bad grades", f"the grade {grade!r} is not a whole number", place)
        if query is None or doc is None or value is None:
            return
        value = max(value, 0)
        grades = self._judgements.setdefault(query, {})
        known = grades.get(doc)
        if known is None:
            grades[doc] = (value, place)
        elif known[0] != value:
            message = f"query {query!r}, document {doc!r} was judged {known[0]} on line {known[1].line}"
            self.error("contradicting judgements", f"{message} and is judged {value} here; keep one", place)
        else:
            self.warn("repeated judgements left out", f"query {query!r}, document {doc!r} at {place}")

    def add_candidate(self, query_id: object, doc_id: object, place: Place) -> None:
        """Says that the document may be ranked for the query. Once used, every query needs candidates."""
        query, doc = self._id("query", query_id, place), self._id("document", doc_id, place)
        self._candidates = {} if self._candidates is None else self._candidates
        if query is not None and doc is not None:
            self._candidates.setdefault(query, {}).setdefault(doc, place)

    def build(self) -> Collection:
        """The collection.

        Raises:
            CollectionError: with all problems of reading, or else all that show when the parts are put
                together (unknown ids are not reported while lines could not be read: that may be why).
        """
        heading = f"collection {self.name!r}, split {self.split!r}, cannot be used:"
        if self._problems:
            raise CollectionError(self.problems(), heading)
        qrels = self._checked_judgements()
        judged = list(qrels)
        candidates = self._checked_candidates(judged)
        self._check_amounts(qrels)
        if self._problems:
            raise CollectionError(self.problems(), heading)
        query_ids = [q for q in self._queries if q in qrels]
        exclude = self._resolve_exclude(query_ids, qrels)
        return Collection(
            name=self.name,
            split=self.split,
            query_ids=query_ids,
            query_texts=[self._queries[q][0] for q in query_ids],
            doc_ids=list(self._documents),
            doc_texts=[document.text for document in self._documents.values()],
            qrels={q: qrels[q] for q in query_ids},
            candidates=None if candidates is None else {q: candidates[q] for q in query_ids},
            exclude_same_id=exclude,
            warnings=[f"{n:,} {kind}, first: {self._first[kind]}" for kind, n in self._warned.items()],
        )

    def _id(self, kind: str, value: object, place: Place) -> str | None:
        text = "" if value is None else str(value)
        if not text.strip():
            self.error(f"empty {kind} ids", f"the {kind} has no id", place)
            return None
        return text

    def _check_characters(self, kind: str, key: str, text: str, place: Place) -> None:
        r"""Reports halves of surrogate pairs, which JSON can spell (`\\ud83d`) and no tokenizer accepts."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            found = f"{kind} {key!r} holds {text[error.start]!r}, half of a character that was cut in two"
            self.error("broken characters", f"{found}; mend or remove it", place)

    def _add_empty(self, doc_id: str, place: Place) -> None:
        if self._empty_documents == "error":
            message = (
                f"document {doc_id!r} is empty (no title, no text); remove it, or set `empty_documents` to "
                "`drop` or `keep`"
            )
            self.error("empty documents", message, place)
        elif self._empty_documents == "drop":
            self.warn("empty documents dropped", f"{doc_id!r} at {place}")
            del self._documents[doc_id]
            self._empty.add(doc_id)
        else:
            self.warn("empty documents kept", f"{doc_id!r} at {place}")

    def _known(self, query: str, doc: str, place: Place) -> bool:
        """Whether both ids exist; tells of those that do not."""
        for kind, key, known, among in (
            ("query", query, query in self._queries, f"{len(self._queries):,} queries"),
            ("document", doc, doc in self._documents, f"{len(self._documents):,} documents"),
        ):
            if known or (kind == "document" and doc in self._empty):
                continue
            if self._unknown_ids == "drop":
                self.warn(f"judgements or candidates of an unknown {kind} dropped", f"{key!r} at {place}")
            else:
                message = f"unknown {kind} id {key!r}, not among the {among}"
                self.error(f"unknown {kind} ids", f"{message}; mend it, or set `unknown_ids: drop`", place)
        return query in self._queries and doc in self._documents

    def _checked_judgements(self) -> dict[str, dict[str, int]]:
        """Judgements of existing ids, for the queries that have a relevant document."""
        checked: dict[str, dict[str, int]] = {}
        for query, grades in self._judgements.items():
            kept = {doc: grade for doc, (grade, place) in grades.items() if self._known(query, doc, place)}
            if query not in self._queries:
                continue
            if not any(grade > 0 for grade in kept.values()):
                self.warn("judged queries without a relevant document left out", repr(query))
                continue
            text, place = self._queries[query]
            if not text:
                self.error("empty queries", f"query {query!r} is judged but has no text", place)
            checked[query] = kept
        return checked

    def _checked_candidates(self, judged: list[str]) -> dict[str, list[str]] | None:
        if self._candidates is None:
            return None
        checked: dict[str, list[str]] = {}
        for query in judged:
            listed = self._candidates.get(query, {})
            checked[query] = [doc for doc, place in listed.items() if self._known(query, doc, place)]
            if not listed:
                message = f"query {query!r} has no candidates, while others have"
                self.error("queries without candidates", message, self._queries[query][1])
        return checked

    def _check_amounts(self, qrels: dict[str, dict[str, int]]) -> None:
        for kind, number in (
            ("documents", len(self._documents)),
            ("queries", len(self._queries)),
            ("judgements", len(self._judgements)),
        ):
            if not number:
                self.error(f"missing {kind}", f"there are no {kind}")
        if self._judgements and not qrels and not self._problems:
            total = sum(map(len, self._judgements.values()))
            message = (
                f"no query has a relevant document: none of the {total:,} judgements of split {self.split!r} "
                "has a grade of 1 or more and names a query and a document that are there"
            )
            self.error("missing relevant documents", message)

    def _resolve_exclude(self, query_ids: list[str], qrels: dict[str, dict[str, int]]) -> bool:
        shared = [q for q in query_ids if q in self._documents]
        exclude = self._exclude_same_id
        if exclude is None:
            same = sum(_plain(self._queries[q][0]) in _plain(self._documents[q].text) for q in shared)
            exclude = 2 * same > len(shared) or not shared
            if not exclude:
                kind = "query ids are also ids of unrelated documents, which are ranked like all others"
                self._warned[kind] = len(shared)
                self._first[kind] = f"{shared[0]!r} (`exclude_same_id: true` leaves them out)"
        if exclude:
            for query in shared:
                if qrels[query].get(query, 0) > 0:
                    kind = "relevant documents with their query's id, which `exclude_same_id` bars from rankings"
                    self.warn(kind, repr(query))
        return exclude


def _whole(grade: object) -> int | None:
    """The grade as an int, also from "2" and 2.0; None when it is no whole number."""
    try:
        number = float(grade)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return int(number) if math.isfinite(number) and number.is_integer() else None


def _plain(text: str) -> str:
    return " ".join(text.lower().split())
