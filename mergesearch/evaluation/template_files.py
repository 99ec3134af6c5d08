"""What a retriever's sentence-transformers files state about turning text into embeddings.

Only what is written down counts. sentence-transformers fills gaps with defaults (mean pooling, cosine, the
whole context); a gap that would change scores is a problem here, and the user's word closes it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mergesearch.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

POOLING_MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
"""Pooling modes of sentence-transformers."""

_BOOLEAN_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_NO_LIMIT = 1_000_000
"""Tokenizers without a length of their own state absurdly large ones."""


@dataclass(frozen=True)
class TemplateFiles:
    """The statements found; None or empty where nothing is stated.

    Attributes:
        has_modules: whether there is a modules.json at all.
        has_pooling: whether it lists a pooling module.
        pooling: pooling modes of that module; several are concatenated.
        normalize: whether it ends in a normalisation; None without modules.json.
        similarity: `cosine`, `dot`, …
        prompts: prompt name to text.
        default_prompt: the name of the prompt for texts of every kind.
        states_length: whether a maximum length is stated for the tokenizer.
        adds: special tokens that the tokenizer's file promises: `bos`, `eos`.
        problems: files that are missing or unreadable.
    """

    has_modules: bool
    has_pooling: bool = False
    pooling: tuple[str, ...] = ()
    normalize: bool | None = None
    similarity: str | None = None
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    states_length: bool = False
    adds: frozenset[str] = frozenset()
    problems: tuple[Problem, ...] = ()


def read_template_files(folder: Path) -> TemplateFiles:
    """Read the small JSON files of a model folder; weights are not touched and nothing is raised."""
    problems: list[Problem] = []
    modules = _read(folder / "modules.json", problems)
    config = _read(folder / "config_sentence_transformers.json", problems) or {}
    tokenizer = _read(folder / "tokenizer_config.json", problems) or {}
    lengths = _read(folder / "sentence_bert_config.json", problems) or {}
    kinds = [str(module.get("type", "")).rpartition(".")[2] for module in modules or []]
    pooling: tuple[str, ...] = ()
    if "Pooling" in kinds:
        pooling = _pooling_modes(folder / modules[kinds.index("Pooling")]["path"] / "config.json", problems)
    stated = [lengths.get("max_seq_length"), tokenizer.get("model_max_length")]
    return TemplateFiles(
        has_modules=modules is not None,
        has_pooling="Pooling" in kinds,
        pooling=pooling,
        normalize=None if modules is None else "Normalize" in kinds,
        similarity=config.get("similarity_fn_name"),
        prompts={name: text for name, text in (config.get("prompts") or {}).items() if text is not None},
        default_prompt=config.get("default_prompt_name"),
        states_length=any(isinstance(n, int | float) and n < _NO_LIMIT for n in stated),
        adds=frozenset(which for which in ("bos", "eos") if tokenizer.get(f"add_{which}_token") is True),
        problems=tuple(problems),
    )


def _pooling_modes(path: Path, problems: list[Problem]) -> tuple[str, ...]:
    """Both spellings: one `pooling_mode`, or a boolean per mode."""
    config = _read(path, problems)
    if config is None:
        if not path.is_file():
            problems.append(Problem("modules.json names this pooling configuration, but it is missing", str(path)))
        return ()
    if "pooling_mode" in config:
        mode = config["pooling_mode"]
        return (mode,) if isinstance(mode, str) else tuple(mode)
    return tuple(mode for key, mode in _BOOLEAN_MODES.items() if config.get(key))


def _read(path: Path, problems: list[Problem]) -> Any:
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        problems.append(Problem(f"is not readable JSON: {error}", str(path)))
        return None
