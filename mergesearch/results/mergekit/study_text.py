"""Pieces of a study file's text: names of sources, ranges around numbers, YAML."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq

from mergesearch.merging.declared import Coefficient
from mergesearch.results.mergekit.reading import Reference
from mergesearch.sources.layout import COMPONENTS
from mergesearch.study_schema import RESERVED_SOURCE_NAMES

RADIUS = 0.25
"""The least that a range goes to either side of its centre."""


def short_names(models: list[Reference]) -> dict[Reference, str]:
    """Short names for models, each once, that are no words of a study file."""
    found: dict[Reference, str] = {}
    taken = {*RESERVED_SOURCE_NAMES, *COMPONENTS, "embeddings", "final_norm", "pooler", "head", "decoder"}
    for model in models:
        last = Path(model.lora or model.path).name
        name = stem = re.sub(r"[^A-Za-z0-9-]+", "_", last).strip("_") or "model"
        if re.fullmatch(r"(decoder_)?(segment|layer)_\d+.*", name):
            name = stem = f"model_{stem}"
        n = 1
        while name in taken:
            n += 1
            name = f"{stem}_{n}"
        taken.add(name)
        found[model] = name
    return found


def range_around(
    declared: Coefficient, centres: list[float], *, tie: str | None = None, knots: int | None = None
) -> Any:
    """A range around numbers; the only number where nothing can be searched."""
    if declared.log and min(centres) > 0:
        low, high = min(centres) / 4, max(centres) * 4
    elif declared.log:
        return tidy(centres[0])
    else:
        spread = [max(RADIUS, abs(c) / 2) for c in centres]
        low = min(c - s for c, s in zip(centres, spread, strict=True))
        high = max(c + s for c, s in zip(centres, spread, strict=True))
        if min(centres) >= 0:
            low = max(low, 0.0)
    entry: dict[str, Any] = {"low": tidy(max(low, declared.low)), "high": tidy(min(high, declared.high))}
    if tie is not None:
        entry["tie"] = tie
    if knots is not None:
        entry["knots"] = knots
    return flow(entry)


def tidy(value: float) -> float:
    """0.1 + 0.2 is 0.3 in a file for people."""
    return float(f"{value:.12g}")


def shown(values: tuple[float | bool, ...]) -> str:
    """A number, or a gradient as a list."""
    return f"{values[0]:g}" if len(values) == 1 else f"[{', '.join(f'{v:g}' for v in values)}]"


def flow(content: Mapping[str, Any]) -> CommentedMap:
    """A mapping on one line."""
    written = CommentedMap(content)
    written.fa.set_flow_style()
    return written


def flow_list(content: list[float]) -> CommentedSeq:
    """A list on one line."""
    written = CommentedSeq(content)
    written.fa.set_flow_style()
    return written


def dump(content: CommentedMap) -> str:
    """YAML with its comments."""
    yaml = YAML()
    yaml.width = 4096
    yaml.indent(mapping=2, sequence=4, offset=2)
    out = io.StringIO()
    yaml.dump(content, out)
    return out.getvalue()
