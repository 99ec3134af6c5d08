"""`MergeRecipe`: everything that determines merged weights, and the prompts they are used with.

The same recipe always gives the same weights, wherever and whenever it is built; `fingerprint` is its name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any

CoefficientValue = float | Mapping[str, float]
"""One number for a group, or one number for every source of a group."""


@dataclass(frozen=True)
class SourceRef:
    """A model that is read: what the recipe calls it, where it lay, and what it held.

    `content_hash` is of all that the merge takes from it: the weights and, where word embeddings are merged over
    shared tokens, which of its rows those are.
    """

    name: str
    location: str
    content_hash: str
    revision: str | None = None


@dataclass(frozen=True)
class GroupRecipe:
    """One parameter group: copied from one source, or merged with coefficients.

    Attributes:
        name: for example `segment_1` or `embeddings`.
        places: the parts of the model it covers, such as `layer.0.attention`, `embeddings`, `pooler`.
        copy_from: the source whose parameters are taken unchanged; None when the group is merged.
        coefficients: coefficient name to its value, or to one value per source name.
    """

    name: str
    places: tuple[str, ...]
    copy_from: str | None = None
    coefficients: Mapping[str, CoefficientValue] = field(default_factory=dict)


@dataclass(frozen=True)
class MergeRecipe:
    """A merge, fully resolved.

    Attributes:
        method: a name in the registry of merge methods.
        options: the method's options that are not searched (for example `normalize`).
        sources: every source, in the study file's order.
        template: the source that gives architecture, tokenizer and all parameters that are not merged.
        base: the source that task vectors are taken from, or None.
        groups: every part of the model belongs to exactly one of them.
        dtype: what the merged weights are stored in: `float32`, `bfloat16` or `float16`.
        seed: where random masks start from.
        prompts: by collection and kind (`query`, `document`) what stands before its texts, given or picked: the
            template's own are left out. Empty where no prompt is searched. They decide scores and no weights.
    """

    method: str
    sources: tuple[SourceRef, ...]
    template: str
    groups: tuple[GroupRecipe, ...]
    base: str | None = None
    options: Mapping[str, bool | float | str] = field(default_factory=dict)
    dtype: str = "float32"
    seed: int = 0
    prompts: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; `from_dict` reads them back to an equal recipe."""
        plain: dict[str, Any] = asdict(self)
        if not self.prompts:  # as recipes were written before prompts were searched
            del plain["prompts"]
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> MergeRecipe:
        """The recipe that `to_dict` wrote."""
        groups = tuple(GroupRecipe(**{**g, "places": tuple(g["places"])}) for g in plain["groups"])
        sources = tuple(SourceRef(**s) for s in plain["sources"])
        return cls(**{**plain, "groups": groups, "sources": sources})

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of what determines the weights, and of the prompts; where the sources lay is not part of it."""
        prompts = {"prompts": self.prompts} if self.prompts else {}
        return _digest({**self._content(), **prompts, "groups": [asdict(group) for group in self.groups]})

    def prefix_key(self, places: Collection[str]) -> str:
        """SHA-256 of what determines the weights at some places.

        Recipes with equal keys have equal weights there, however the rest of the model differs and however the
        places are divided into groups.
        """
        decided = [[p, g.copy_from, g.coefficients] for g in self.groups for p in g.places if p in places]
        return _digest({**self._content(), "places": sorted(decided, key=lambda place: str(place[0]))})

    def _content(self) -> dict[str, Any]:
        """Everything that determines weights but the groups and where the sources lay."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("groups", "prompts")}
        return {**plain, "sources": [[s.name, s.content_hash] for s in self.sources]}


def _digest(plain: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(_canonical(plain), sort_keys=True).encode()).hexdigest()


def _canonical(value: Any) -> Any:
    """Numbers that compare equal are written alike: 1 and 1.0, 0.0 and -0.0."""
    if isinstance(value, Mapping):
        return {str(k): _canonical(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(v) for v in value]
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value) + 0.0
    return value
