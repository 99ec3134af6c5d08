"""Queries with their texts and, where they were ranked, their top documents before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mergesearch.evaluation.collection import Collection
from mergesearch.evaluation.result import CollectionScores
from mergesearch.results.report.examples import Examples
from mergesearch.results.report.queries import Query
from mergesearch.results.report.text import readable

TOP = 5
"""Documents shown per query."""
MOST_QUERY, MOST_DOCUMENT = 400, 260
"""Characters of a text that are shown."""


@dataclass(frozen=True)
class Hit:
    """A document in a ranking.

    Attributes:
        rank: from 1.
        id, text: of the document, fit to be shown.
        grade: its relevance, 0 where it is judged irrelevant; None where nobody judged it.
        other: its rank in the other ranking; None where it is not among those that are kept.
    """

    rank: int
    id: str
    text: str
    grade: int | None
    other: int | None


@dataclass(frozen=True)
class Shown:
    """A query on the page; `relevant` counts its relevant documents."""

    query: Query
    text: str
    relevant: int
    before: tuple[Hit, ...]
    after: tuple[Hit, ...]


def shown_queries(
    collections: Sequence[Collection], rows: Sequence[Query], examples: Examples | None
) -> tuple[Shown, ...]:
    """The queries with what is known of them; texts are missing where collections are."""
    by_name = {c.name: c for c in collections}
    texts = _texts(collections, rows, examples)
    found = []
    for row in rows:
        collection = by_name.get(row.collection)
        text, grades = "", dict[str, int]()
        if collection is not None:
            text = readable(collection.query_texts[collection.query_ids.index(row.id)], MOST_QUERY)
            grades = collection.qrels[row.id]
        before: tuple[Hit, ...] = ()
        after: tuple[Hit, ...] = ()
        if collection is not None and examples is not None:
            runs = [_run(scores, row) for scores in (examples.before, examples.after)]
            before = _hits(runs[0], runs[1], grades, texts[collection.name])
            after = _hits(runs[1], runs[0], grades, texts[collection.name])
        found.append(Shown(row, text, sum(g > 0 for g in grades.values()), before, after))
    return tuple(found)


def _run(scores: Sequence[CollectionScores], row: Query) -> list[str]:
    run = next((s.run for s in scores if s.collection == row.collection), None) or {}
    return [document for document, _ in run.get(row.id, ())]


def _texts(
    collections: Sequence[Collection], rows: Sequence[Query], examples: Examples | None
) -> dict[str, dict[str, str]]:
    """By collection the texts of the documents that are shown; a corpus is gone through once."""
    if examples is None:
        return {}
    wanted: dict[str, set[str]] = {c.name: set() for c in collections}
    for row in rows:
        for scores in (examples.before, examples.after):
            wanted.setdefault(row.collection, set()).update(_run(scores, row)[:TOP])
    return {
        c.name: {d: text for d, text in zip(c.doc_ids, c.doc_texts, strict=True) if d in wanted[c.name]}
        for c in collections
    }


def _hits(
    run: Sequence[str], other: Sequence[str], grades: dict[str, int], texts: Mapping[str, str]
) -> tuple[Hit, ...]:
    places = {document: rank for rank, document in enumerate(other, 1)}
    return tuple(
        Hit(
            rank,
            readable(document, 80),
            readable(texts[document], MOST_DOCUMENT),
            grades.get(document),
            places.get(document),
        )
        for rank, document in enumerate(run[:TOP], 1)
    )
