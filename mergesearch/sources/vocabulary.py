"""What token id means what: read from tokenizer files, compared between sources, and matched token by token."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from transformers import AutoTokenizer

from mergesearch.errors import SourceError
from mergesearch.sources.locate import model_folder

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

Vocabulary = dict[str, int]
OtherVocabulary = Literal["refuse", "template", "shared_tokens"]
"""What happens to sources with another vocabulary than the template's: they are an error, lend their layers only, or
lend the word embeddings of the tokens that all sources have, too."""
_LISTED = 3


@dataclass(frozen=True, eq=False)
class SharedTokens:
    """The tokens that every source has, as rows of its word embeddings.

    Attributes:
        tensor: canonical name of the word embeddings.
        rows: source name to row numbers, int64, in the order of the template's rows; at one position all sources
            have the same token. Rows that are not named here are merged with nothing.
    """

    tensor: str
    rows: Mapping[str, torch.Tensor]

    def __len__(self) -> int:
        return len(next(iter(self.rows.values())))


def hash_of_shared(weights: str, rows: torch.Tensor) -> str:
    """SHA-256 of a source of which only some rows of the word embeddings are taken.

    Args:
        weights: the source's own content hash, in hexadecimal.
        rows: its rows, int64, as in `SharedTokens.rows`.
    """
    return hashlib.sha256(bytes.fromhex(weights) + rows.numpy().tobytes()).hexdigest()


def match_tokens(
    vocabularies: Mapping[str, Vocabulary], n_rows: Mapping[str, int], template: str
) -> dict[str, torch.Tensor]:
    """Rows of the tokens that all of `vocabularies` have, matched by the tokens' text.

    Args:
        vocabularies: by source.
        n_rows: of each source's word embeddings; tables are padded, and tokenizers may know ids beyond their end.
        template: the source whose order is followed; a row with several tokens counts once.

    Returns:
        As `SharedTokens.rows`.
    """
    found: dict[int, list[int]] = {}
    for token, row in vocabularies[template].items():
        rows = [vocabulary.get(token, -1) for vocabulary in vocabularies.values()]
        if row not in found and all(0 <= r < n for r, n in zip(rows, n_rows.values(), strict=True)):
            found[row] = rows
    table = torch.tensor([found[row] for row in sorted(found)], dtype=torch.int64).reshape(-1, len(vocabularies))
    return {source: table[:, i].contiguous() for i, source in enumerate(vocabularies)}


def read_vocabulary(folder: Path) -> Vocabulary | None:
    """Token to id, special and added tokens included; None where there is no tokenizer.

    Raises:
        SourceError: there is one, and it cannot be read.
    """
    inside = model_folder(folder)
    fast = inside / "tokenizer.json"
    plain = inside / "vocab.txt"
    try:
        if fast.is_file():
            return _from_tokenizer_json(json.loads(fast.read_text(encoding="utf-8")))
        if plain.is_file():
            return {token: i for i, token in enumerate(plain.read_text(encoding="utf-8").split("\n")) if token}
        if not any(inside.glob("*.model")) and not (inside / "vocab.json").is_file():
            return None  # transformers would make a tokenizer of special tokens alone
        vocabulary: Vocabulary = AutoTokenizer.from_pretrained(inside, local_files_only=True).get_vocab()
    except (OSError, ValueError, TypeError, KeyError, AttributeError, ImportError, RuntimeError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise SourceError([f"the tokenizer in {inside} cannot be read ({reason}). Download it again."]) from error
    return vocabulary


def same_tokenizer_file(one: Path, other: Path) -> bool:
    """Whether both folders hold the same tokenizer.json byte for byte, which spares parsing it."""
    files = [model_folder(folder) / "tokenizer.json" for folder in (one, other)]
    if not all(file.is_file() for file in files):
        return False
    sizes = {file.stat().st_size for file in files}
    return len(sizes) == 1 and files[0].read_bytes() == files[1].read_bytes()


def same_vocabulary(one: Path, other: Path) -> bool:
    """Whether two model folders give every token the same id; a folder without a tokenizer counts as agreeing."""
    if same_tokenizer_file(one, other):
        return True
    vocabularies = (read_vocabulary(one), read_vocabulary(other))
    return None in vocabularies or vocabularies[0] == vocabularies[1]


def vocabulary_difference(template: Vocabulary, other: Vocabulary) -> str | None:
    """How `other` assigns ids differently from `template`, in one sentence; None where it does not."""
    if template == other:
        return None
    missing = template.keys() - other.keys()
    new = other.keys() - template.keys()
    moved = sorted((template[t], t) for t in template.keys() & other.keys() if template[t] != other[t])
    examples = [f"{token!r} is {other[token]}, the template's is {index}" for index, token in moved[:1]]
    examples += [f"missing: {_some(missing)}"] if missing else []
    examples += [f"new: {_some(new)}"] if new else []
    return (
        f"its tokenizer has {len(other):,} tokens, the template's {len(template):,}: {len(missing):,} of the "
        f"template's are missing, {len(new):,} are new, {len(moved):,} have another id ({'; '.join(examples)})."
    )


def _some(tokens: Collection[str]) -> str:
    listed = ", ".join(map(repr, sorted(tokens)[:_LISTED]))
    return listed if len(tokens) <= _LISTED else f"{listed}, …"


def _from_tokenizer_json(content: dict[str, object]) -> Vocabulary:
    model = content["model"]
    if not isinstance(model, dict):
        raise TypeError("tokenizer.json has no model")
    pieces = model["vocab"]
    if isinstance(pieces, dict):
        vocabulary = {str(token): int(index) for token, index in pieces.items()}
    else:  # Unigram models list [piece, score] in the order of the ids
        vocabulary = {str(piece[0]): index for index, piece in enumerate(pieces)}
    added = content.get("added_tokens")
    if isinstance(added, list):
        vocabulary |= {str(token["content"]): int(token["id"]) for token in added}
    return vocabulary
