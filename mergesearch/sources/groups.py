"""Parameter groups: which parts of the model share coefficients, and which are copied from the template.

The defaults are the CIKM'25 study's: embeddings from the template, the final norm with the last segment.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mergesearch.errors import SourceError, unknown
from mergesearch.sources.layout import EMBEDDINGS, FINAL_NORM, POOLER, Layout

if TYPE_CHECKING:
    from collections.abc import Sequence

RULES = ("template", "first_segment", "last_segment", "own")
"""What may happen to a part outside the layers: copied from the template, merged with the coefficients of the
first or the last segment, or merged as a group of its own."""


@dataclass(frozen=True)
class Group:
    """Places that share coefficients.

    Attributes:
        name: `segment_1`, `layer_0`, `embeddings`, `final_norm` or `pooler`.
        places: what it covers, in the model's order.
        merged: False for a group that is copied from the template.
    """

    name: str
    places: tuple[str, ...]
    merged: bool


@dataclass(frozen=True)
class Grouping:
    """How a model is divided; exactly one of `segments`, `boundaries` and `per_layer` is given.

    Attributes:
        segments: this many segments of layers, as equal as possible, the earlier ones longer.
        boundaries: the first layer, from 0, of every segment after the first.
        per_layer: every layer is a group.
        embeddings: a rule of `RULES` for everything before the layers.
        final_norm: a rule for the norm after the layers; ignored by models that have none.
        pooler: a rule for what follows it; ignored by models that have none.
    """

    segments: int | None = None
    boundaries: tuple[int, ...] | None = None
    per_layer: bool = False
    embeddings: str = "template"
    final_norm: str = "last_segment"
    pooler: str = "template"


def make_groups(grouping: Grouping, layout: Layout) -> tuple[Group, ...]:
    """The groups of a model in its order; every place of the layout is in exactly one.

    Raises:
        SourceError: everything in `grouping` that this model cannot have.
    """
    problems = _rule_problems(grouping) + _division_problems(grouping, layout.n_layers)
    if problems:
        raise SourceError(problems)
    segments = _segments(grouping, layout.n_layers)
    prefix, start = ("layer", 0) if grouping.per_layer else ("segment", 1)
    names = [f"{prefix}_{i}" for i in range(start, start + len(segments))]
    places = {name: [f"layer.{i}" for i in layers] for name, layers in zip(names, segments, strict=True)}
    joins = {"first_segment": names[0], "last_segment": names[-1]}
    rules = {EMBEDDINGS: grouping.embeddings, FINAL_NORM: grouping.final_norm, POOLER: grouping.pooler}
    present = {place: rule for place, rule in rules.items() if place in layout.places}
    for place, rule in present.items():
        places.setdefault(joins.get(rule, place), []).append(place)
    order = {place: i for i, place in enumerate(layout.places)}
    groups = [
        Group(name, tuple(sorted(held, key=order.__getitem__)), merged=present.get(name) != "template")
        for name, held in places.items()
    ]
    head = [g for g in groups if g.name == EMBEDDINGS]
    return tuple(head + [g for g in groups if g.name != EMBEDDINGS])


def _segments(grouping: Grouping, n_layers: int) -> list[Sequence[int]]:
    if grouping.per_layer:
        return [[i] for i in range(n_layers)]
    layers = np.arange(n_layers)
    if grouping.boundaries is not None:
        return [part.tolist() for part in np.split(layers, list(grouping.boundaries))]
    return [part.tolist() for part in np.array_split(layers, grouping.segments or 1)]


def _rule_problems(grouping: Grouping) -> list[str]:
    rules = {EMBEDDINGS: grouping.embeddings, FINAL_NORM: grouping.final_norm, POOLER: grouping.pooler}
    return [unknown(f"rule for {place}", rule, RULES) for place, rule in rules.items() if rule not in RULES]


def _division_problems(grouping: Grouping, n_layers: int) -> list[str]:
    given = [
        name
        for name, value in (
            ("segments", grouping.segments is not None),
            ("boundaries", grouping.boundaries is not None),
            ("per_layer", grouping.per_layer),
        )
        if value
    ]
    if len(given) != 1:
        return [f"give exactly one of segments, boundaries and per_layer; given: {', '.join(given) or 'none'}."]
    if grouping.segments is not None and not 1 <= grouping.segments <= n_layers:
        return [f"segments is {grouping.segments}, but the model has {n_layers} layers: choose 1 to {n_layers}."]
    if grouping.boundaries is None:
        return []
    problems = [
        f"boundary {b} is outside the model: a later segment may start at layer 1 to {n_layers - 1}."
        for b in grouping.boundaries
        if not 1 <= b < n_layers
    ]
    if list(grouping.boundaries) != sorted(set(grouping.boundaries)):
        problems.append(f"boundaries must increase; given: {list(grouping.boundaries)}.")
    return problems
