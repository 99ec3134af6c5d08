"""What token id means what: read from tokenizer files, and compared between sources."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from transformers import AutoTokenizer

from mergesearch.sources.locate import model_folder

if TYPE_CHECKING:
    from pathlib import Path

Vocabulary = dict[str, int]


def read_vocabulary(folder: Path) -> Vocabulary | None:
    """Token to id, special and added tokens included; None where there is no tokenizer to read."""
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
    except (OSError, ValueError, TypeError, KeyError, AttributeError, ImportError):
        return None
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
    missing = len(template.keys() - other.keys())
    new = len(other.keys() - template.keys())
    moved = sorted((template[t], t) for t in template.keys() & other.keys() if template[t] != other[t])
    parts = [
        f"{missing:,} of the template's are missing",
        f"{new:,} are new",
        f"{len(moved):,} have another id",
    ]
    if moved:
        index, token = moved[0]
        parts[-1] += f" ({token!r} is {other[token]}, the template's is {index})"
    return f"its tokenizer has {len(other):,} tokens, the template's {len(template):,}: {', '.join(parts)}."


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
