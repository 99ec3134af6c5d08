"""BEIR folders: `corpus.jsonl`, `queries.jsonl` and `qrels/<split>.tsv`.

Layout as in https://github.com/beir-cellar/beir: documents have `_id`, `title` and `text`, queries `_id` and
`text`; judgements are `query-id`, `corpus-id`, `score`, separated by tabs, below a header line.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergesearch.errors import CollectionError, Problem
from mergesearch.evaluation.formats.files import (
    add_json_document,
    add_json_query,
    json_records,
    or_compressed,
    resolve,
    text_lines,
    tsv_line,
    write_json_lines,
    write_text,
)
from mergesearch.evaluation.formats.registry import CollectionOptions, collection_format

if TYPE_CHECKING:
    from mergesearch.evaluation.collection import Collection
    from mergesearch.evaluation.formats.builder import CollectionBuilder, Place

COLUMNS = ("query-id", "corpus-id", "score")


class BeirOptions(CollectionOptions):
    """Options of format `beir`."""

    folder: Path
    """The folder that holds `corpus.jsonl`, `queries.jsonl` and `qrels/`."""

    corpus_file: Path | None = None
    """Another corpus file to read in place of the folder's, for example its translation with the same ids."""

    queries_file: Path | None = None
    """Another queries file to read in place of the folder's."""

    qrels_header: bool = True
    """Whether the qrels open with a header line. Set it to false for files that start with a judgement."""


def write_beir(collection: Collection, folder: Path) -> dict[str, Any]:
    """Writes a BEIR folder. Titles are part of the text by then, so `title` is empty."""
    documents = zip(collection.doc_ids, collection.doc_texts, strict=True)
    write_json_lines(folder / "corpus.jsonl", [{"_id": i, "title": "", "text": t} for i, t in documents])
    queries = zip(collection.query_ids, collection.query_texts, strict=True)
    write_json_lines(folder / "queries.jsonl", [{"_id": i, "text": t} for i, t in queries])
    rows = [tsv_line(q, d, g) for q, grades in collection.qrels.items() for d, g in grades.items()]
    write_text(folder / "qrels" / f"{collection.split}.tsv", [tsv_line(*COLUMNS), *rows])
    return {"folder": "."}


@collection_format("beir", options=BeirOptions, write=write_beir)
def read_beir(options: BeirOptions, split: str, builder: CollectionBuilder, relative_to: Path) -> None:
    """A folder in BEIR layout."""
    folder = resolve(options.folder, relative_to)
    if not folder.is_dir():
        raise CollectionError([Problem("there is no such folder", str(folder))])
    corpus = resolve(options.corpus_file, relative_to) if options.corpus_file else folder / "corpus.jsonl"
    for place, record in json_records(or_compressed(corpus), builder):
        add_json_document(record, place, builder)
    queries = resolve(options.queries_file, relative_to) if options.queries_file else folder / "queries.jsonl"
    for place, record in json_records(or_compressed(queries), builder):
        add_json_query(record, place, builder)
    qrels = or_compressed(folder / "qrels" / f"{split}.tsv")
    if qrels.exists():
        read_tsv_qrels(qrels, builder, header=options.qrels_header)
    else:
        there = sorted({p.name.partition(".tsv")[0] for p in qrels.parent.glob("*.tsv*")})
        message = f"there is no split {split!r}; splits there are: {', '.join(there) or 'none'}"
        builder.error("missing splits", message, str(qrels))


def read_tsv_qrels(path: Path, builder: CollectionBuilder, *, header: bool) -> None:
    """Reads judgements in three columns.

    A header may name the columns in another order; unknown names stand for `COLUMNS` in their order.
    """
    order = (0, 1, 2)
    first = True
    for place, line in text_lines(path, builder):
        cells = line.split("\t")
        if len(cells) != len(COLUMNS):
            found = f"{len(cells)} columns" if len(cells) > 1 else "no tabs"
            hint = "; files with four columns are read by format 'trec'" if len(line.split()) == 4 else ""
            message = f"expected {', '.join(COLUMNS)} separated by tabs, found {found}{hint}"
            builder.error("malformed qrels lines", message, place)
        elif first and header:
            order = _header_order(cells, line, place, builder)
        else:
            query, document, grade = (cells[i].strip() for i in order)
            builder.add_judgement(query, document, grade, place)
        first = False


def _header_order(cells: list[str], line: str, place: Place, builder: CollectionBuilder) -> tuple[int, int, int]:
    """Where query, document and grade stand; a first line that is a judgement would be lost: reported."""
    names = [cell.strip().lower() for cell in cells]
    if set(names) == set(COLUMNS):
        return names.index(COLUMNS[0]), names.index(COLUMNS[1]), names.index(COLUMNS[2])
    if names[2].lstrip("+-").replace(".", "", 1).isdigit():
        expected = "<tab>".join(COLUMNS)
        message = (
            f"the header is missing: the first line, {line!r}, looks like a judgement. "
            f"Put {expected} above it, or set `qrels_header: false`"
        )
        builder.error("missing headers", message, place)
    return 0, 1, 2
