"""Pseudo-queries: a dev split from bare documents, for collections that nobody has judged.

A query is a document's title, its first sentence, or what a language model wrote for it (`mergesearch synthesize
queries`, after InPars, https://arxiv.org/abs/2202.05144). Relevant is the document that it was made from, and those
that share the same title or sentence; nothing else is judged. What was made a query is taken out of its document, as
are all other titles (or first sentences), so that documents that are searched for do not stand out.

No user asked these queries: every score on them is labelled as one on pseudo-queries.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from mergesearch.errors import CollectionError, Problem
from mergesearch.evaluation.formats.documents import Document, document_files, each_document
from mergesearch.evaluation.formats.files import json_records, resolve, write_json_lines
from mergesearch.evaluation.formats.registry import CollectionOptions, collection_format

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mergesearch.evaluation.collection import Collection
    from mergesearch.evaluation.formats.builder import CollectionBuilder, Place

SPLITS = ("dev", "test")
SHORTEST = 10
"""Titles of fewer characters ("Reply", "Letter") make no query."""
SHORTEST_SENTENCE = 20
"""What ends before so many characters is no sentence yet: a heading, a number, an abbreviation."""
MOST_SHARED = 5
"""A title or sentence that more documents share says nothing of any of them."""
_END = re.compile(r"[.!?]+[\"')\]”’»]*(?=\s)|[。！？]+[」』]*|\n\s*\n")
_ABBREVIATION = re.compile(
    r"(?:^|[\s(])(?:[A-Za-z]|[Dd]r|[Ff]ig|[Nn]o|[Mm]rs?|Prof|St|al|ca|cf|e\.g|i\.e|vs|z\.B|Nr)\.$"
)


class PseudoOptions(CollectionOptions):
    """Options of format `pseudo`."""

    documents: Path
    """Documents without queries: a folder in BEIR layout, whose corpus is read, a folder of files, or one file
    (`.jsonl`, `.tsv`, `.txt`, packed or not), as `mergesearch adapt` reads them."""

    queries_from: Literal["titles", "first_sentences"] = "titles"
    """What becomes a query, and is taken out of the documents."""

    queries_file: Path | None = None
    """Instead: the file that `mergesearch synthesize queries` wrote for these documents."""

    test_share: float = Field(0.5, ge=0, le=1)
    """Share of the pseudo-queries, drawn by their words, that are split `test` and choose nothing; the rest are split
    `dev`."""


def write_pseudo(collection: Collection, folder: Path) -> dict[str, Any]:
    """Writes documents and a file of queries; of the judgements it keeps which documents are relevant, ungraded."""
    if collection.split not in SPLITS:
        raise CollectionError([f"pseudo-queries have splits dev and test; {collection.split!r} cannot be written"])
    texts = dict(zip(collection.doc_ids, collection.doc_texts, strict=True))
    write_json_lines(folder / "corpus.jsonl", [{"_id": i, "text": t} for i, t in texts.items()])
    queries = [
        {"_id": q, "query": text, "pos": [texts[d] for d, grade in collection.qrels[q].items() if grade > 0]}
        for q, text in zip(collection.query_ids, collection.query_texts, strict=True)
    ]
    write_json_lines(folder / "queries.jsonl", queries)
    return {"documents": ".", "queries_file": "queries.jsonl", "test_share": float(collection.split == "test")}


@collection_format("pseudo", options=PseudoOptions, write=write_pseudo, pseudo_queries=True)
def read_pseudo(options: PseudoOptions, split: str, builder: CollectionBuilder, relative_to: Path) -> None:
    """Bare documents with pseudo-queries: titles, first sentences, or what a language model wrote."""
    if split not in SPLITS:
        raise CollectionError([f"pseudo-queries have no split {split!r}; splits there are: {', '.join(SPLITS)}"])
    documents = each_document(document_files([resolve(options.documents, relative_to)]), builder)
    if options.queries_file is not None:
        ids: dict[str, list[str]] = {}
        for document in documents:
            whole = f"{document.title} {document.text}".strip()
            builder.add_document(document.id, whole, document.place)
            ids.setdefault(whole, []).append(str(document.id))
        found = _written(resolve(options.queries_file, relative_to), ids, builder, drop=options.unknown_ids == "drop")
    else:
        found = _taken(documents, options.queries_from, builder)
    count = kept = 0
    for query_id, text, relevant, place in found:
        count += 1
        if (_drawn(text) < options.test_share) == (split == "test"):
            kept += 1
            builder.add_query(query_id, text, place)
            for doc_id in relevant:
                builder.add_judgement(query_id, doc_id, 1, place)
    if not kept and not builder.problems():
        why = (
            f"none of {count:,} pseudo-queries is in split {split!r}: change `test_share`" if count else _none(options)
        )
        raise CollectionError([Problem(why, str(options.queries_file or options.documents))])


Query = tuple[str, str, "list[str]", "Place"]
"""Id, text, ids of relevant documents, and where it stands."""


def _taken(documents: Iterator[Document], what: str, builder: CollectionBuilder) -> Iterator[Query]:
    """Queries from the documents themselves; each document is added without what was taken out of it."""
    part, kind = (_title, "title") if what == "titles" else (_first_sentence, "sentence")
    name = what.replace("_", " ")
    found: dict[str, tuple[str, list[str], Place]] = {}
    for document in documents:
        query, rest = part(document)
        builder.add_document(document.id, rest, document.place)
        if query:
            found.setdefault(_plain(query), (query, [], document.place))[1].append(str(document.id))
    for query, relevant, place in found.values():
        if len(relevant) <= MOST_SHARED:
            yield f"{kind}:{relevant[0]}", query, relevant, place
        else:
            builder.warn(
                f"{name} of more than {MOST_SHARED} documents made no query", f"{query!r} of {len(relevant):,}"
            )


def _title(document: Document) -> tuple[str, str]:
    """A document's title as a query (empty where it makes none), and its text without it.

    Many texts open with their title once more, which would give the document away.
    """
    title, text = document.title.strip(), document.text.strip()
    if not title or not text:
        return "", text or title
    opening = re.match(r"\W*".join(map(re.escape, re.findall(r"\w+", title))) + r"\W*", text, re.IGNORECASE)
    rest = text[opening.end() :] if opening and opening.end() else text
    return (title, rest) if rest and len(title) >= SHORTEST else ("", rest or text)


def _first_sentence(document: Document) -> tuple[str, str]:
    """The first sentence of a document's text as a query, and the rest with the title; none of one sentence alone."""
    title, text = document.title.strip(), document.text.strip()
    for end in _END.finditer(text):
        sentence, rest = text[: end.end()].strip(), text[end.end() :].strip()
        goes_on = rest[:1].islower() and not text[: end.start()][-1:].isspace()  # "approx. three", but "jets . they"
        if rest and len(sentence) >= SHORTEST_SENTENCE and not goes_on and not _ABBREVIATION.search(sentence):
            return sentence, f"{title} {rest}".strip()
    return "", f"{title} {text}".strip()


def _written(file: Path, ids: Mapping[str, list[str]], builder: CollectionBuilder, *, drop: bool) -> Iterator[Query]:
    """Queries that a language model wrote, with the documents that it was shown, which are known by their texts."""
    for place, record in json_records(file, builder):
        query, texts = record.get("query"), record.get("pos")
        if not isinstance(query, str) or not query.strip() or not isinstance(texts, list):
            message = f"expected 'query' and 'pos', as `synthesize queries` writes them, found: {', '.join(record)}"
            builder.error("incomplete records", message, place)
            continue
        known = [doc_id for text in texts for doc_id in ids.get(str(text).strip(), [])]
        if known:
            yield str(record.get("_id", f"query:{place.line}")), query, list(dict.fromkeys(known)), place
        elif drop:
            builder.warn("queries for documents that are not there dropped", f"{query!r} at {place}")
        else:
            message = (
                f"{query!r} was written for a document that is not among these; mend it, or set `unknown_ids: drop`"
            )
            builder.error("unknown documents", message, place)


def _drawn(text: str) -> float:
    """Where a query lies in [0, 1): the same words always in the same split, whatever else there is."""
    return int.from_bytes(hashlib.sha256(_plain(text).encode(errors="replace")).digest()[:6]) / 2**48


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def _none(options: PseudoOptions) -> str:
    if options.queries_file is not None:
        return "the file holds no query"
    if options.queries_from == "titles":
        what, other = f"a title of {SHORTEST} characters or more beside its text", "first_sentences"
    else:
        what, other = "a first sentence and more", "titles"
    return (
        f"no document has {what}: try `queries_from: {other}`, or a `queries_file` of `mergesearch synthesize queries`"
    )
