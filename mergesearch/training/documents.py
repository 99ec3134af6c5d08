"""Unlabelled documents read one after the other, and kept as token ids on disk.

So text of any size is trained on: what is in memory at a time is a few hundred documents and one number per document.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mergesearch.errors import CollectionError
from mergesearch.evaluation.formats.builder import CollectionBuilder
from mergesearch.evaluation.formats.documents import Document, document_files, each_document

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

__all__ = ["TokenStore", "document_files", "read_documents", "write_tokens"]

_AT_ONCE = 512  # texts given to the tokenizer together


def read_documents(files: Sequence[Path]) -> Iterator[str]:
    """The texts, in the order of the files; empty ones are left out, a title stands before its text.

    Files as `each_document` reads them.

    Raises:
        CollectionError: after the last document, with the first faults of each kind.
    """
    builder = CollectionBuilder("documents", "all")
    yield from filter(None, (_whole(document, builder) for document in each_document(files, builder)))
    if problems := builder.problems():
        raise CollectionError(problems, "the documents cannot be used:")


def _whole(document: Document, builder: CollectionBuilder) -> str:
    whole = f"{document.title} {document.text}".strip()
    if not whole.isascii():
        try:
            whole.encode()
        except UnicodeEncodeError:  # JSON can spell what no tokenizer accepts
            message = "the text holds half of a character that was cut in two"
            builder.error("broken characters", message, document.place)
            return ""
    return whole


@dataclass(frozen=True)
class TokenStore:
    """Token ids of documents in files of a folder, mapped into memory and not read.

    Attributes:
        ids: uint32 [all tokens].
        ends: int64 [documents], where each document ends in `ids`.
        empty: documents that were left out, being too short to learn from.
    """

    ids: NDArray[np.uint32]
    ends: NDArray[np.int64]
    empty: int

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each document, int64 [documents]."""
        return np.diff(self.ends, prepend=0)

    def document(self, number: int) -> NDArray[np.int64]:
        """Token ids of one document, int64 [its tokens], a copy."""
        start = int(self.ends[number - 1]) if number else 0
        return self.ids[start : int(self.ends[number])].astype(np.int64)

    @classmethod
    def open(cls, folder: Path) -> TokenStore:
        """What `write_tokens` left in the folder."""
        ends = np.fromfile(folder / "ends.i64", dtype=np.int64)
        ids = np.memmap(folder / "ids.u32", dtype=np.uint32, mode="r")
        return cls(ids, ends, int(json.loads((folder / "empty.json").read_text(encoding="utf-8"))))


def write_tokens(
    texts: Iterator[str],
    tokenizer: Any,
    folder: Path,
    *,
    max_length: int,
    shortest: int,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Tokenise texts into a folder that does not exist yet; it appears whole or not at all.

    Args:
        texts: as they come; a few hundred are in memory at a time.
        tokenizer: of transformers; its special tokens are kept.
        folder: is made.
        max_length: tokens at which a text is cut, special tokens included.
        shortest: texts of fewer tokens are left out.
        progress: called with the number of documents so far.

    Raises:
        CollectionError: no text has as many tokens as `shortest`; or what `texts` raises.
    """
    draft = folder.with_name(f"{folder.name}.partial")
    draft.mkdir(parents=True, exist_ok=True)
    end, seen = 0, 0
    with (draft / "ids.u32").open("wb") as ids, (draft / "ends.i64").open("wb") as ends:
        kept = 0
        while some := list(islice(texts, _AT_ONCE)):
            encoded = tokenizer(some, truncation=True, max_length=max_length, return_attention_mask=False)
            fitting = [tokens for tokens in encoded["input_ids"] if len(tokens) >= shortest]
            seen, kept = seen + len(some), kept + len(fitting)
            for tokens in fitting:
                np.asarray(tokens, dtype=np.uint32).tofile(ids)
            lengths = np.fromiter(map(len, fitting), dtype=np.int64, count=len(fitting))
            (end + np.cumsum(lengths)).tofile(ends)
            end += int(lengths.sum())
            if progress:
                progress(seen)
    if not kept:
        raise CollectionError([f"none of the {seen:,} documents has {shortest} tokens or more; nothing can be learned"])
    (draft / "empty.json").write_text(json.dumps(seen - kept), encoding="utf-8")
    draft.rename(folder)
