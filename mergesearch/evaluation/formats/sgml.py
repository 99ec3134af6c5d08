"""TREC markup: documents between `<DOC>` and `</DOC>`, topics between `<top>` and `</top>`.

It is not XML: tags may stay open, `&` and `<` may stand alone, and each collection has its own tags. Only
what is common to them is read.
"""

from __future__ import annotations

import html
import re
from typing import TYPE_CHECKING

from mergesearch.evaluation.formats.files import text_lines

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from mergesearch.evaluation.formats.builder import CollectionBuilder, Place

_TAG = re.compile(r"</?[A-Za-z][^<>]*>")
_TITLE = re.compile(r"<(title|headline|hl|ttl)>(.*?)</\1>", re.IGNORECASE | re.DOTALL)
_TEXT = re.compile(r"<text>(.*?)</text>", re.IGNORECASE | re.DOTALL)
_DOCNO = re.compile(r"<docno>(.*?)</docno>", re.IGNORECASE | re.DOTALL)
_FIELD = re.compile(r"<(num|title|desc|narr)>(.*?)(?=<(?:num|title|desc|narr)>|\Z)", re.IGNORECASE | re.DOTALL)
# The words that classic topics repeat behind each tag: "<num> Number: 301".
_LABEL = re.compile(r"^\s*(number|topic|description|narrative)\s*:", re.IGNORECASE)


def trec_documents(path: Path, builder: CollectionBuilder) -> Iterator[tuple[Place, str, str, str]]:
    """Place, id, title and text of every document.

    The id is DOCNO; the title is TITLE, HEADLINE, HL or TTL; the text is all of TEXT, or else what is left.
    """
    for place, block in _blocks(path, "doc", builder):
        number = _DOCNO.search(block)
        if number is None:
            builder.error("incomplete document records", "the document has no <DOCNO>", place)
            continue
        rest = block.replace(number.group(0), " ", 1)
        title = " ".join(match.group(2) for match in _TITLE.finditer(rest))
        texts = _TEXT.findall(rest) or [_TITLE.sub(" ", rest)]
        yield place, _plain(number.group(1)), _plain(title), _plain(" ".join(texts))


def trec_topics(path: Path, builder: CollectionBuilder, field: str) -> Iterator[tuple[Place, str, str]]:
    """Place, number and the text of `field` (`title`, `desc` or `narr`) of every topic."""
    for place, block in _blocks(path, "top", builder):
        fields = {name.lower(): _plain(_LABEL.sub("", text)) for name, text in _FIELD.findall(block)}
        missing = [name for name in ("num", field) if not fields.get(name)]
        if missing:
            message = f"the topic has no {' and no '.join(f'<{name}>' for name in missing)}"
            builder.error("incomplete query records", message, place)
        else:
            yield place, fields["num"], fields[field]


def _blocks(path: Path, tag: str, builder: CollectionBuilder) -> Iterator[tuple[Place, str]]:
    """What stands between each pair of tags, which stand on lines of their own, and where it starts."""
    opening, closing = f"<{tag}>", f"</{tag}>"
    start: Place | None = None
    lines: list[str] = []
    for place, line in text_lines(path, builder):
        mark = line.strip().lower()
        if start is None:
            if mark.startswith(opening):
                start, lines = place, [line.strip()[len(opening) :]]
        elif mark.startswith(opening):
            builder.error("open tags", f"{opening} is not closed before the next one", start)
            start, lines = place, [line.strip()[len(opening) :]]
        else:
            lines.append(line)
        if start is not None and mark.endswith(closing):
            lines[-1] = lines[-1].rstrip()[: -len(closing)]
            yield start, "\n".join(lines)
            start = None
    if start is not None:
        builder.error("open tags", f"{opening} is not closed at the end of the file", start)


def _plain(text: str) -> str:
    """Text without tags, with entities resolved and white space joined."""
    return " ".join(html.unescape(_TAG.sub(" ", text)).split())
