"""Bare documents, without queries: what `mergesearch adapt` learns from and what pseudo-queries are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from mergesearch.errors import CollectionError, Problem
from mergesearch.evaluation.formats.files import json_records, or_compressed, text_lines

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from mergesearch.evaluation.formats.builder import CollectionBuilder, Place

SUFFIXES = (".jsonl", ".tsv", ".txt")


class Document(NamedTuple):
    """One document: its id (by file and line, where it has none), title (which may be empty), text, and place."""

    id: object
    title: str
    text: str
    place: Place


def document_files(paths: Sequence[Path]) -> list[Path]:
    """The files that hold the documents: of a BEIR folder its corpus, of another folder every file of a known kind.

    Raises:
        CollectionError: for paths that do not exist or hold nothing that can be read.
    """
    files: list[Path] = []
    problems = []
    for path in paths:
        corpus = or_compressed(path / "corpus.jsonl")
        if corpus.is_file():
            files.append(corpus)
        elif path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.is_file() and _kind(p) in SUFFIXES)
            files += inside
            if not inside:
                problems.append(Problem(f"the folder holds no corpus.jsonl and no {', '.join(SUFFIXES)}", str(path)))
        elif not path.exists():
            problems.append(Problem("there is no such file or folder", str(path)))
        elif _kind(path) in SUFFIXES:
            files.append(path)
        else:
            problems.append(Problem(f"documents are read from {', '.join(SUFFIXES)}, packed (.gz) or not", str(path)))
    if problems or not files:
        raise CollectionError(problems or ["no documents were named"])
    return files


def each_document(files: Sequence[Path], builder: CollectionBuilder) -> Iterator[Document]:
    """The documents, in the order of the files, empty ones among them; faults go to the builder.

    `.jsonl`: objects with `text` (or `contents`), and perhaps `_id` (or `id`) and `title`. `.tsv`: id and text, or
    columns that the first line names. `.txt`: a document a line.
    """
    for file in files:
        yield from _READERS[_kind(file)](file, builder)


def _json_documents(file: Path, builder: CollectionBuilder) -> Iterator[Document]:
    for place, record in json_records(file, builder):
        text, title = record.get("text", record.get("contents")), record.get("title") or ""
        if isinstance(text, str) and isinstance(title, str):
            yield Document(record.get("_id", record.get("id", _unnamed(place, file))), title, text, place)
        else:
            found = ", ".join(record) or "nothing"
            builder.error("incomplete records", f"expected 'text' (or 'contents') that is text, found: {found}", place)


def _tsv_documents(file: Path, builder: CollectionBuilder) -> Iterator[Document]:
    columns = {"id": 0, "text": 1}
    width = 2
    for i, (place, line) in enumerate(text_lines(file, builder)):
        cells = line.split("\t")
        if i == 0 and "text" in cells:
            columns, width = {cell: n for n, cell in enumerate(cells)}, len(cells)
        elif len(cells) != width:
            message = f"expected {width} columns (id and text, or what a first line names), found {len(cells)}"
            builder.error("malformed lines", message, place)
        else:
            key = next((cells[columns[name]] for name in ("_id", "id") if name in columns), _unnamed(place, file))
            yield Document(key, cells[columns["title"]] if "title" in columns else "", cells[columns["text"]], place)


def _plain_documents(file: Path, builder: CollectionBuilder) -> Iterator[Document]:
    for place, line in text_lines(file, builder):
        yield Document(_unnamed(place, file), "", line, place)


def _unnamed(place: Place, file: Path) -> str:
    return f"{file.name}:{place.line}"


_READERS: dict[str, Callable[[Path, CollectionBuilder], Iterator[Document]]] = {
    ".jsonl": _json_documents,
    ".tsv": _tsv_documents,
    ".txt": _plain_documents,
}


def _kind(path: Path) -> str:
    return path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
