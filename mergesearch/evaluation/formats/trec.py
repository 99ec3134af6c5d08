"""TSV and TREC files: a corpus, queries (topics) and qrels, each given by its path.

Corpus and queries are recognised by their first line: `<` opens TREC markup (`<DOC>`, `<top>`), `{` opens
JSON lines with `_id` and `text`, anything else is TSV: `id<tab>text`, for documents also
`id<tab>title<tab>text`. Qrels are TREC's four columns (query, iteration, document, grade), or three columns
separated by tabs (query, document, grade) with or without a header.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import field_validator

from mergesearch.errors import CollectionError
from mergesearch.evaluation.formats.builder import CollectionBuilder, Place
from mergesearch.evaluation.formats.files import (
    add_json_document,
    add_json_query,
    json_records,
    resolve,
    text_lines,
    tsv_line,
    write_text,
)
from mergesearch.evaluation.formats.registry import CollectionOptions, collection_format
from mergesearch.evaluation.formats.sgml import trec_documents, trec_topics

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mergesearch.evaluation.collection import Collection

HEADER_NAMES = {
    "id",
    "_id",
    "docid",
    "doc_id",
    "doc-id",
    "docno",
    "pid",
    "corpus-id",
    "qid",
    "query_id",
    "query-id",
}


class TrecOptions(CollectionOptions):
    """Options of format `trec`."""

    corpus_file: Path | list[Path]
    """The file with the documents, or several files."""

    queries_file: str | dict[str, str]
    """The file with the queries. It may differ by split: with `{split}` in its name, or as a mapping from
    split to file."""

    qrels_file: str | dict[str, str]
    """The file with the judgements: with `{split}` in its name, or a mapping from split to file, so that one
    split is never read for another."""

    candidates_file: str | dict[str, str] | None = None
    """A TREC run file (query, Q0, document, rank, score, tag) whose documents are the only ones ranked for
    each query; by split like `qrels_file`."""

    topic_field: Literal["title", "desc", "narr"] = "title"
    """Which part of TREC topics is the query."""

    header: bool = False
    """Whether TSV files of documents and queries open with a header line."""

    @field_validator("qrels_file", "candidates_file")
    @classmethod
    def _names_splits(cls, value: str | dict[str, str] | None) -> str | dict[str, str] | None:
        if isinstance(value, str) and "{split}" not in value:
            raise ValueError(
                "must say which split it belongs to: a name with {split} such as qrels.{split}.txt, or a "
                f"mapping such as {{dev: {value}}}"
            )
        return value


def write_trec(collection: Collection, folder: Path) -> dict[str, Any]:
    """Writes TSV files of documents and queries, and TREC qrels."""
    documents = zip(collection.doc_ids, collection.doc_texts, strict=True)
    write_text(folder / "corpus.tsv", [tsv_line(i, t) for i, t in documents])
    queries = zip(collection.query_ids, collection.query_texts, strict=True)
    write_text(folder / "queries.tsv", [tsv_line(i, t) for i, t in queries])
    rows = [f"{q} 0 {d} {g}" for q, grades in collection.qrels.items() for d, g in grades.items()]
    for id_ in (*collection.query_ids, *collection.doc_ids):
        if len(id_.split()) != 1:
            raise CollectionError([f"id {id_!r} holds white space, which TREC qrels cannot; write format 'beir'"])
    write_text(folder / f"qrels.{collection.split}.txt", rows)
    return {"corpus_file": "corpus.tsv", "queries_file": "queries.tsv", "qrels_file": "qrels.{split}.txt"}


@collection_format("trec", options=TrecOptions, write=write_trec)
def read_trec(options: TrecOptions, split: str, builder: CollectionBuilder, relative_to: Path) -> None:
    """TSV files, JSON lines or TREC markup, with TREC or TSV qrels."""
    files = options.corpus_file if isinstance(options.corpus_file, list) else [options.corpus_file]
    for path in files:
        _read_documents(resolve(path, relative_to), builder, header=options.header)
    queries = _of_split("queries_file", options.queries_file, split, builder, relative_to)
    if queries is not None:
        _read_queries(queries, builder, header=options.header, field=options.topic_field)
    qrels = _of_split("qrels_file", options.qrels_file, split, builder, relative_to)
    if qrels is not None:
        _read_qrels(qrels, builder)
    if options.candidates_file is not None:
        candidates = _of_split("candidates_file", options.candidates_file, split, builder, relative_to)
        if candidates is not None:
            _read_run(candidates, builder)


def _of_split(
    option: str, value: str | dict[str, str], split: str, builder: CollectionBuilder, relative_to: Path
) -> Path | None:
    """The file of a split; None when there is none, which is reported with the splits there are."""
    if isinstance(value, str):
        path = resolve(value.replace("{split}", split), relative_to)
        if "{split}" not in value or path.exists():
            return path
        before, _, after = Path(value).name.partition("{split}")
        names = [p.name for p in path.parent.glob(f"{before}*{after}")]
        there = sorted(name[len(before) : len(name) - len(after)] for name in names)
        where = str(path)
    elif split in value:
        return resolve(value[split], relative_to)
    else:
        there, where = sorted(value), f"option {option}"
    message = f"there is no split {split!r}; splits there are: {', '.join(there) or 'none'}"
    builder.error("missing splits", message, where)
    return None


def _read_documents(path: Path, builder: CollectionBuilder, *, header: bool) -> None:
    kind = _kind(path, builder)
    if kind == "trec":
        for place, doc_id, title, text in trec_documents(path, builder):
            builder.add_document(doc_id, text, place, title=title)
    elif kind == "json":
        for place, record in json_records(path, builder):
            add_json_document(record, place, builder)
    elif kind == "tsv":
        for place, cells in _tsv(path, builder, header=header, columns=(2, 3), expected="id, [title,] text"):
            builder.add_document(cells[0], cells[-1], place, title=cells[1] if len(cells) == 3 else None)


def _read_queries(path: Path, builder: CollectionBuilder, *, header: bool, field: str) -> None:
    kind = _kind(path, builder)
    if kind == "trec":
        for place, query_id, text in trec_topics(path, builder, field):
            builder.add_query(query_id, text, place)
    elif kind == "json":
        for place, record in json_records(path, builder):
            add_json_query(record, place, builder)
    elif kind == "tsv":
        for place, cells in _tsv(path, builder, header=header, columns=(2,), expected="id, text"):
            builder.add_query(cells[0], cells[1], place)


def _kind(path: Path, builder: CollectionBuilder) -> str | None:
    """`trec`, `json` or `tsv` by the first line; None (reported) when there is none to read."""
    probe = CollectionBuilder("", "")  # faults of the first lines are reported when the file itself is read
    for _, line in text_lines(path, probe):
        return {"<": "trec", "{": "json"}.get(line.lstrip()[0], "tsv")
    if probe.problems():
        for _ in text_lines(path, builder):
            pass
    return None


def _tsv(
    path: Path, builder: CollectionBuilder, *, header: bool, columns: tuple[int, ...], expected: str
) -> Iterator[tuple[Place, list[str]]]:
    first = True
    for place, line in text_lines(path, builder):
        cells = line.split("\t")
        skip, first = first and header, False
        if skip:
            continue
        if len(cells) not in columns:
            message = f"expected {expected} separated by tabs, found {len(cells)} columns"
            builder.error("malformed TSV lines", message, place)
        elif place.line == 1 and cells[0].strip().lower() in HEADER_NAMES:
            message = f"the first line, {line[:60]!r}, looks like a header; set `header: true` to leave it out"
            builder.error("unexpected headers", message, place)
        else:
            yield place, cells


def _read_qrels(path: Path, builder: CollectionBuilder) -> None:
    for place, line in text_lines(path, builder):
        cells = line.split("\t") if line.count("\t") == 2 else line.split()
        if len(cells) == 4:
            builder.add_judgement(cells[0], cells[2], cells[3], place)
        elif len(cells) == 3 and line.count("\t") == 2:
            query, document, grade = (cell.strip() for cell in cells)
            is_header = place.line == 1 and not grade.lstrip("+-").replace(".", "", 1).isdigit()
            if not is_header:
                builder.add_judgement(query, document, grade, place)
        else:
            message = (
                "expected four columns (query, iteration, document, grade), or three separated by tabs "
                f"(query, document, grade), found {len(cells)}"
            )
            builder.error("malformed qrels lines", message, place)


def _read_run(path: Path, builder: CollectionBuilder) -> None:
    for place, line in text_lines(path, builder):
        cells = line.split()
        if len(cells) == 6:
            builder.add_candidate(cells[0], cells[2], place)
        else:
            message = f"expected six columns (query, Q0, document, rank, score, tag), found {len(cells)}"
            builder.error("malformed run lines", message, place)
