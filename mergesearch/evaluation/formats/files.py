"""Reading text files with every fault reported by file and line.

Shared by the formats that read files. Text is UTF-8, with or without a byte order mark; files may be
gzip-compressed (`.gz`).
"""

from __future__ import annotations

import codecs
import gzip
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergesearch.errors import CollectionError
from mergesearch.evaluation.formats.builder import CollectionBuilder, Place

if TYPE_CHECKING:
    from collections.abc import Iterator


def resolve(path: str | Path, relative_to: Path) -> Path:
    """`path` with `~` expanded, and relative paths starting from `relative_to`."""
    return relative_to / Path(path).expanduser()


def text_lines(path: Path, builder: CollectionBuilder) -> Iterator[tuple[Place, str]]:
    """The lines that are not blank, without their ends; those that are not UTF-8 are reported instead."""
    opener: Any = gzip.open if path.suffix == ".gz" else Path.open
    try:
        with opener(path, "rb") as stream:
            for number, raw in enumerate(stream, start=1):
                place = Place(str(path), number)
                if number == 1:
                    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                        hint = f"convert it: iconv -f utf-16 -t utf-8 {path.name}"
                        builder.error("wrong encodings", f"the file is UTF-16, expected UTF-8; {hint}", place)
                        return
                    raw = raw.removeprefix(codecs.BOM_UTF8)
                try:
                    line = raw.decode("utf-8").rstrip("\r\n")
                except UnicodeDecodeError as error:
                    found = f"byte {error.start + 1} of the line is 0x{raw[error.start]:02x}, which is not UTF-8"
                    hint = f"convert the file, for example: iconv -f latin1 -t utf-8 {path.name}"
                    builder.error("lines with a wrong encoding", f"{found}; {hint}", place)
                    continue
                if line.strip():
                    yield place, line
    except FileNotFoundError:
        builder.error("missing files", "there is no such file", str(path))
    except (OSError, EOFError) as error:
        builder.error("unreadable files", f"cannot be read ({error})", str(path))


def json_records(path: Path, builder: CollectionBuilder) -> Iterator[tuple[Place, dict[str, Any]]]:
    """The objects of a file with one JSON object per line."""
    for place, line in text_lines(path, builder):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            message = f"invalid JSON at column {error.colno}: {error.msg}"
            builder.error("invalid JSON lines", f"{message}; each line must be one object", place)
            continue
        if isinstance(record, dict):
            yield place, record
        else:
            found = type(record).__name__
            builder.error("invalid JSON lines", f"expected a JSON object, found a {found}", place)


def add_json_document(record: dict[str, Any], place: Place, builder: CollectionBuilder) -> None:
    """Adds a BEIR document: `_id`, `text` and perhaps `title`."""
    if _has_fields("document", record, place, builder, optional=("title",)):
        builder.add_document(record["_id"], record["text"], place, title=record.get("title"))


def add_json_query(record: dict[str, Any], place: Place, builder: CollectionBuilder) -> None:
    """Adds a BEIR query: `_id` and `text`."""
    if _has_fields("query", record, place, builder):
        builder.add_query(record["_id"], record["text"], place)


def or_compressed(path: Path) -> Path:
    """The path, or `<path>.gz` where only that exists."""
    packed = path.with_name(path.name + ".gz")
    if not path.exists() and packed.exists():
        return packed
    return path


def write_text(path: Path, lines: list[str]) -> None:
    """Writes lines as UTF-8, with line feeds on every platform."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")


def write_json_lines(path: Path, records: list[dict[str, Any]]) -> None:
    """Writes one JSON object per line."""
    write_text(path, [json.dumps(record, ensure_ascii=False) for record in records])


def tsv_line(*cells: object) -> str:
    """Cells joined by tabs.

    Raises:
        CollectionError: when a cell holds a tab or a line break, which a TSV file cannot.
    """
    texts = [str(cell) for cell in cells]
    for text in texts:
        if any(mark in text for mark in "\t\r\n"):
            message = f"{text[:40]!r} holds a tab or line break, which a TSV file cannot; write format 'beir'"
            raise CollectionError([message])
    return "\t".join(texts)


def _has_fields(
    kind: str,
    record: dict[str, Any],
    place: Place,
    builder: CollectionBuilder,
    optional: tuple[str, ...] = (),
) -> bool:
    """Whether the record has the fields of a document or query; reports those that are missing or no text."""
    missing = [name for name in ("_id", "text") if name not in record]
    if missing:
        found = ", ".join(record) or "nothing"
        message = f"the {kind} has no {' and no '.join(map(repr, missing))}; found: {found}"
        builder.error(f"incomplete {kind} records", message, place)
        return False
    fine = True
    if not isinstance(record["_id"], str | int) or isinstance(record["_id"], bool):
        builder.error(f"bad {kind} records", f"'_id' must be text, found {record['_id']!r}", place)
        fine = False
    for name in ("text", *optional):
        value = record.get(name)
        if value is not None and not isinstance(value, str):
            found = f"found a {type(value).__name__}"
            builder.error(f"bad {kind} records", f"{name!r} must be text, {found}", place)
            fine = False
    return fine
