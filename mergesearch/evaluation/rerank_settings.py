"""What a study says of re-ranking: small and picklable, for workers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Fusion = float | Literal["tuned"]
"""Share of the re-ranker in the sum of both scores, or `tuned`: the best of `fusion.SHARES` on the dev queries."""


@dataclass(frozen=True)
class FirstStageSpec:
    """Where the candidates of a collection's queries come from.

    Attributes:
        kind: a name in the registry of first stages.
        options: the kind's own.
        depth: candidates per query, at most.
        relative_to: what relative paths in the options start from.
    """

    kind: str = "bm25"
    options: Mapping[str, Any] = field(default_factory=dict)
    depth: int = 100
    relative_to: Path = Path()


@dataclass(frozen=True)
class RerankSettings:
    """How pairs are scored; see the study file's `evaluation.rerank`. None leaves an entry to the model's files.

    Attributes:
        family: a name in the registry of re-rankers; None detects it.
        fusion: see `Fusion`.
        max_length: tokens of a pair, special tokens included.
        template: text of a pair around `{query}` and `{document}` (and `{instruction}`), for families that have one.
        query_template: text around `{query}`, for families that give the tokenizer a pair.
        document_template: the same, around `{document}`.
        instruction: what takes the place of `{instruction}`.
        tokens: the tokens that say no and yes, for families that read their logits.
    """

    family: str | None = None
    fusion: Fusion = "tuned"
    max_length: int | None = None
    template: str | None = None
    query_template: str | None = None
    document_template: str | None = None
    instruction: str | None = None
    tokens: tuple[str, str] | None = None
