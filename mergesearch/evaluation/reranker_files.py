"""What a re-ranker's files state, read without its weights: its class, and what sentence-transformers notes of it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mergesearch.errors import SourceError
from mergesearch.sources.locate import model_folder

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_NO_LIMIT = 1_000_000
"""Tokenizers without a length of their own state absurdly large ones."""


@dataclass(frozen=True)
class RerankerFiles:
    """The statements found; empty or None where nothing is stated.

    Attributes:
        folder: where they are.
        config: config.json.
        prompt: text that sentence-transformers puts before the first text of every pair.
        max_length: tokens of a pair.
        answers: ids of the tokens for no and yes, of a `CrossEncoder` that reads a language model's logits; the
            first is None where only yes is read.
    """

    folder: Path
    config: Mapping[str, Any] = field(default_factory=dict)
    prompt: str = ""
    max_length: int | None = None
    answers: tuple[int | None, int] | None = None

    @property
    def architecture(self) -> str:
        """The class that the model was saved from, such as `BertForSequenceClassification`."""
        listed = self.config.get("architectures") or [""]
        return str(listed[0])

    @property
    def model_type(self) -> str:
        """As in config.json."""
        return str(self.config.get("model_type", ""))

    @property
    def activation(self) -> str | None:
        """Dotted path of the class that sentence-transformers applies to logits, as it notes it now or did before 4."""
        noted = self.config.get("sentence_transformers") or {}
        path = noted.get("activation_fn") or self.config.get("sbert_ce_default_activation_function")
        return None if path is None else str(path)


def read_reranker_files(folder: Path) -> RerankerFiles:
    """Read the small JSON files of a model folder.

    Raises:
        SourceError: there is no config.json, or a file is no JSON.
    """
    inside = model_folder(folder)
    config = _read(inside / "config.json")
    if config is None:
        raise SourceError([f"{folder} has no config.json, so it is no model."])
    noted = _read(folder / "config_sentence_transformers.json") or {}
    transformer = _read(inside / "sentence_bert_config.json") or {}
    tokenizer = _read(inside / "tokenizer_config.json") or {}
    stated = (transformer.get("max_seq_length"), tokenizer.get("model_max_length"))
    lengths = [int(n) for n in stated if isinstance(n, int | float) and n < _NO_LIMIT]
    return RerankerFiles(
        folder=folder,
        config=config,
        prompt=(noted.get("prompts") or {}).get(noted.get("default_prompt_name")) or "",
        max_length=lengths[0] if lengths else None,
        answers=_answers(folder),
    )


def _answers(folder: Path) -> tuple[int | None, int] | None:
    for module in _read(folder / "modules.json") or []:
        if str(module.get("type", "")).endswith(".LogitScore"):
            config = _read(folder / module["path"] / "config.json") or {}
            if "true_token_id" in config:
                return config.get("false_token_id"), int(config["true_token_id"])
    return None


def _read(path: Path) -> Any:
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SourceError([f"{path} is not readable JSON: {error}"]) from error
