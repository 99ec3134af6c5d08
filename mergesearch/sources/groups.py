"""Parameter groups: which parts of the model share coefficients, and which are copied from the template.

The defaults are the CIKM'25 study's: embeddings from the template, the final norm with the last segment.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mergesearch.errors import SourceError, unknown
from mergesearch.sources.layout import (
    COMPONENTS,
    EMBEDDINGS,
    FINAL_NORM,
    MLP,
    NORMS,
    POOLER,
    Layout,
    layer_and_component,
)

_KIN = {EMBEDDINGS: MLP, FINAL_NORM: NORMS, POOLER: MLP}
"""The component that a part outside the layers joins where segments are divided: norms go to norms, and tables and
heads, which see one token at a time, to the MLPs."""

RULES = ("template", "first_segment", "last_segment", "own")
"""What may happen to a part outside the layers: copied from the template, merged with the coefficients of the
first or the last segment, or merged as a group of its own."""


@dataclass(frozen=True)
class Group:
    """Places that share coefficients.

    Attributes:
        name: `segment_1`, `layer_0`, `segment_1_attention`, `embeddings`, `final_norm` or `pooler`.
        places: what it covers, in the model's order.
        merged: False for a group that is copied from the template.
        depth: of the middle of its layers, from 0 (first layer) to 1 (last); what stands before the layers is at
            0, what follows them at 1.
    """

    name: str
    places: tuple[str, ...]
    merged: bool
    depth: float


@dataclass(frozen=True)
class Grouping:
    """How a model is divided; exactly one of `segments`, `boundaries` and `per_layer` is given.

    With `components`, a rule joins parts outside the layers to a segment's group of their kind: the final norm to
    its norms, embeddings and pooler to its MLPs.

    Attributes:
        segments: this many segments of layers, as equal as possible, the earlier ones longer.
        boundaries: the first layer, from 0, of every segment after the first.
        per_layer: every layer is a group.
        components: divide each of these by attention, MLP and norms.
        embeddings: a rule of `RULES` for everything before the layers.
        final_norm: a rule for the norm after the layers; ignored by models that have none.
        pooler: a rule for what follows it, a pooler or another head; ignored by models that have none.
    """

    segments: int | None = None
    boundaries: tuple[int, ...] | None = None
    per_layer: bool = False
    components: bool = False
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
    segments = layers_of_segments(grouping, layout.n_layers)
    depths = {EMBEDDINGS: 0.0, FINAL_NORM: 1.0, POOLER: 1.0}
    places: dict[str, list[str]] = {EMBEDDINGS: []}
    for name, layers in segments.items():
        for part in COMPONENTS if grouping.components else ("",):
            group = _named(name, part)
            depths[group] = _depth(layers, layout.n_layers)
            places[group] = [place for place in layout.places if _lies_in(place, layers, part)]
    joins = {"first_segment": next(iter(segments)), "last_segment": list(segments)[-1]}
    rules = {EMBEDDINGS: grouping.embeddings, FINAL_NORM: grouping.final_norm, POOLER: grouping.pooler}
    for place in (p for p in rules if p in layout.places):
        joined = joins.get(rules[place])
        group = place if joined is None else _named(joined, _KIN[place] if grouping.components else "")
        places.setdefault(group, []).append(place)
    order = {place: i for i, place in enumerate(layout.places)}
    return tuple(
        Group(name, tuple(sorted(held, key=order.__getitem__)), rules.get(name) != "template", depths[name])
        for name, held in places.items()
        if held
    )


def layers_of_segments(grouping: Grouping, n_layers: int) -> dict[str, list[int]]:
    """Name of every segment, or of every layer, to its layers, from 0; before they are divided by component."""
    if grouping.per_layer:
        return {f"layer_{i}": [i] for i in range(n_layers)}
    cuts = grouping.segments or 1 if grouping.boundaries is None else list(grouping.boundaries)
    return {f"segment_{i}": part.tolist() for i, part in enumerate(np.array_split(np.arange(n_layers), cuts), 1)}


def _named(segment: str, component: str) -> str:
    return f"{segment}_{component}" if component else segment


def _depth(layers: list[int], n_layers: int) -> float:
    return (layers[0] + layers[-1]) / 2 / (n_layers - 1) if n_layers > 1 else 0.5


def _lies_in(place: str, layers: list[int], component: str) -> bool:
    inside = layer_and_component(place)
    return inside is not None and inside[0] in layers and component in ("", inside[1])


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
