"""Parameter groups: which parts of the model share coefficients, and which are copied from the template.

The defaults are the CIKM'25 study's: embeddings from the template, the final norm with the last segment.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mergesearch.errors import SourceError, unknown
from mergesearch.sources.layout import (
    COMPONENTS,
    DECODER_NORM,
    EMBEDDINGS,
    FINAL_NORM,
    HEAD,
    MLP,
    NORMS,
    POOLER,
    Layout,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

_DECODER = "decoder"
_KIN = {EMBEDDINGS: MLP, FINAL_NORM: NORMS, POOLER: MLP, DECODER_NORM: NORMS, HEAD: MLP}
"""The component that a part outside the layers joins where segments are divided: norms go to norms, and tables and
heads, which see one token at a time, to the MLPs."""

RULES = ("template", "first_segment", "last_segment", "own")
"""What may happen to a part outside the layers: copied from the template, merged with the coefficients of the
first or the last segment, or merged as a group of its own."""

DECODER_RULES = ("own", "with_encoder", "template")
"""What may happen to a decoder: segments of its own, as many as the encoder has and as equal as possible; each of these
with the coefficients of the encoder's segment of its number; or copied from the template."""


@dataclass(frozen=True)
class Group:
    """Places that share coefficients.

    Attributes:
        name: `segment_1`, `layer_0`, `segment_1_attention`, `embeddings`, `final_norm`, `pooler` or `head`; in a
            decoder `decoder_segment_1`, `decoder_layer_0`, `decoder_segment_1_attention`, or `decoder` for all of it.
        places: what it covers, in the model's order.
        merged: False for a group that is copied from the template.
        depth: of the middle of its layers, from 0 (first layer) to 1 (last); what stands before the layers is at
            0, what follows them at 1. A decoder's own segments follow the encoder's.
    """

    name: str
    places: tuple[str, ...]
    merged: bool
    depth: float


@dataclass(frozen=True)
class Grouping:
    """How a model is divided; exactly one of `segments`, `boundaries` and `per_layer` is given.

    With `components`, a rule joins parts outside the layers to a segment's group of their kind: the final norm to
    its norms, embeddings, pooler and head to its MLPs.

    Attributes:
        segments: this many segments of layers, as equal as possible, the earlier ones longer.
        boundaries: the first layer, from 0, of every segment after the first.
        per_layer: every layer is a group.
        components: divide each of these by attention, MLP and norms.
        embeddings: a rule of `RULES` for everything before the layers.
        final_norm: a rule for the norm after the layers; ignored by models that have none. A decoder's goes by it too:
            with the decoder's first or last segment, or with the encoder's.
        pooler: a rule for what follows it, a pooler or another part of the encoder; ignored by models that have none.
        head: a rule for the head of a model that is merged whole; its last segment is a decoder's where it has one.
        decoder: a rule of `DECODER_RULES`; ignored by models without a decoder.
    """

    segments: int | None = None
    boundaries: tuple[int, ...] | None = None
    per_layer: bool = False
    components: bool = False
    embeddings: str = "template"
    final_norm: str = "last_segment"
    pooler: str = "template"
    head: str = "template"
    decoder: str = "own"


def make_groups(grouping: Grouping, layout: Layout) -> tuple[Group, ...]:
    """The groups of a model in its order; every place of the layout is in exactly one.

    Raises:
        SourceError: everything in `grouping` that this model cannot have.
    """
    problems = _rule_problems(grouping) + _division_problems(grouping, layout)
    if problems:
        raise SourceError(problems)
    segments = blocks_of_segments(grouping, layout)
    depths = {EMBEDDINGS: 0.0, FINAL_NORM: 1.0, _DECODER: 1.0, POOLER: 1.0, HEAD: 1.0}
    places: dict[str, list[str]] = {EMBEDDINGS: []}
    for name, blocks in segments.items():
        for part in COMPONENTS if grouping.components else ("",):
            group = _named(name, part)
            depths[group] = _depth(blocks, grouping, layout)
            places[group] = [place for place in layout.places if _lies_in(place, blocks, part)]
    rules = _rules(grouping)
    if grouping.decoder == "template":
        places[_DECODER] = [p for p in layout.places if p.startswith(f"{_DECODER}.") and p != DECODER_NORM]
    for place in (p for p in _KIN if p in layout.places):
        places.setdefault(_group_of(place, grouping, segments), []).append(place)
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


def blocks_of_segments(grouping: Grouping, layout: Layout) -> dict[str, list[str]]:
    """Name of every segment to its blocks (`layer.3`, `decoder.0`), with those of a decoder that is merged."""
    layers = layers_of_segments(grouping, layout.n_layers)
    segments = {name: [f"layer.{i}" for i in numbers] for name, numbers in layers.items()}
    n_decoder = layout.n_decoder_layers
    if not n_decoder or grouping.decoder == "template":
        return segments
    own = grouping.decoder == "own"
    parts = np.array_split(np.arange(n_decoder), n_decoder if own and grouping.per_layer else len(segments))
    decoder = [[f"{_DECODER}.{i}" for i in part] for part in parts]
    if not own:
        return {name: blocks + beside for (name, blocks), beside in zip(segments.items(), decoder, strict=True)}
    start = ("layer", 0) if grouping.per_layer else ("segment", 1)
    return segments | {f"{_DECODER}_{start[0]}_{i}": blocks for i, blocks in enumerate(decoder, start[1])}


def _group_of(place: str, grouping: Grouping, segments: Mapping[str, list[str]]) -> str:
    """The group of a part outside the layers."""
    if place == DECODER_NORM and grouping.decoder == "template":
        return _DECODER
    stack = list(segments)
    if place != HEAD:
        stack = [s for s in stack if s.startswith(_DECODER) == (place == DECODER_NORM)] or stack
    joined = {"first_segment": stack[0], "last_segment": stack[-1]}.get(_rules(grouping)[place])
    if joined is None:
        return FINAL_NORM if place == DECODER_NORM else place
    return _named(joined, _KIN[place] if grouping.components else "")


def _named(segment: str, component: str) -> str:
    return f"{segment}_{component}" if component else segment


def _depth(blocks: list[str], grouping: Grouping, layout: Layout) -> float:
    """Of the middle of a segment's layers, those of a decoder that goes with them left aside."""
    n = layout.n_layers + (layout.n_decoder_layers if grouping.decoder == "own" else 0)
    ends = [int(block.rpartition(".")[2]) for block in blocks if block.startswith("layer.")]
    if not ends:
        ends = [layout.n_layers + int(block.rpartition(".")[2]) for block in blocks]
    return (ends[0] + ends[-1]) / 2 / (n - 1) if n > 1 else 0.5


def _lies_in(place: str, blocks: list[str], component: str) -> bool:
    block, _, part = place.rpartition(".")
    return block in blocks and component in ("", part)


def _rules(grouping: Grouping) -> dict[str, str]:
    return {
        EMBEDDINGS: grouping.embeddings,
        FINAL_NORM: grouping.final_norm,
        DECODER_NORM: grouping.final_norm,
        POOLER: grouping.pooler,
        HEAD: grouping.head,
        _DECODER: grouping.decoder,
    }


def _rule_problems(grouping: Grouping) -> list[str]:
    return [
        unknown(f"rule for {place}", rule, DECODER_RULES if place == _DECODER else RULES)
        for place, rule in _rules(grouping).items()
        if place != DECODER_NORM and rule not in (DECODER_RULES if place == _DECODER else RULES)
    ]


def _division_problems(grouping: Grouping, layout: Layout) -> list[str]:
    n_layers, n_decoder = layout.n_layers, layout.n_decoder_layers
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
    n = grouping.segments or 1 + len(grouping.boundaries or ())
    if grouping.decoder == "own" and not grouping.per_layer and 0 < n_decoder < n:
        found = f"the decoder has {n_decoder} layers and cannot have {n} segments of its own"
        return [f"{found}: choose fewer, or `decoder: with_encoder`, or `decoder: template`."]
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
