"""The numbers of a mergekit configuration by the parts of a model, and how the model has to be divided for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mergesearch.results.mergekit.reading import MergekitFile, Reference, Setting, Slice, number_at
from mergesearch.sources.groups import Group, Grouping, make_groups
from mergesearch.sources.layout import COMPONENTS, EMBEDDINGS, Layout, layer_and_component

ENDS = ("embeddings", "final_norm", "pooler")
"""What lies outside the layers."""


@dataclass(frozen=True)
class Parts:
    """Where tensors lie for mergekit.

    Attributes:
        layout: of the template.
        prefix: what its checkpoint puts before canonical names, such as `model.`, which filters see.
        ends_last: whether what follows the layers goes with the last slice; else with the first.
    """

    layout: Layout
    prefix: str
    ends_last: bool

    def slice_of(self, place: str, slices: list[Slice]) -> tuple[Slice, float]:
        """The slice of a place and its t, the position in the slice that gradients are read at."""
        inside = layer_and_component(place)
        if inside is None:
            return slices[-1 if self.ends_last and place != EMBEDDINGS else 0], 0.0
        layer = inside[0]
        for part in slices:
            first, end = part.layers or (0, self.layout.n_layers)
            if first <= layer < end:
                return part, (layer - first) / (end - first - 1) if end - first > 1 else 1.0
        return slices[-1], 1.0  # the file has fewer layers than the model, which is a problem of its own


@dataclass(frozen=True)
class Column:
    """One coefficient of one source (or of all together), at every place.

    Attributes:
        numbers: by place.
        settings: by place: what the file says there.
    """

    numbers: Mapping[str, float] = field(default_factory=dict)
    settings: Mapping[str, Setting] = field(default_factory=dict)

    def gradient(self, places: list[str], n_slices: int) -> tuple[float, ...] | None:
        """The gradient over the whole model that counts at all these places; None where there is none."""
        found = {self.settings[p].values for p in places}
        values = found.pop() if len(found) == 1 else ()
        return tuple(map(float, values)) if len(values) > 1 and n_slices == 1 else None


def column(file: MergekitFile, parts: Parts, parameter: str, model: Reference | None) -> Column | None:
    """What the file says of a parameter, place by place; None where it says nothing.

    Problems are noted where it says something for a part of the tensors of a place, or of the places.
    """
    numbers: dict[str, float] = {}
    settings: dict[str, Setting] = {}
    missing: list[str] = []
    for place in parts.layout.places:
        part, t = parts.slice_of(place, file.slices)
        names = parts.layout.names(place)
        found = [file.setting(parameter, part, model, parts.prefix + name) for name in names]
        said = {s.values: s for s in found if s is not None}
        if len(said) + (None in found) > 1:
            lines = ", ".join(s.line for s in said.values())
            file.problem(
                f"{parameter} is not the same for all tensors of {place} ({lines}), and a study divides a model into "
                "embeddings, final norm, pooler, and the attention, mlp and norms of its layers",
                *("parameters", parameter),
            )
        if not said:
            missing.append(place)
            continue
        settings[place] = next(iter(said.values()))
        numbers[place] = number_at(settings[place].values, t)
    if settings and missing:
        file.problem(
            f"{parameter} is said for some tensors and not for those of {', '.join(missing[:3])}", "parameters"
        )
    return Column(numbers, settings) if settings and not missing else None


def divide(columns: list[Column], file: MergekitFile, parts: Parts) -> tuple[Grouping, tuple[Group, ...]]:
    """The coarsest division of the model in which every group has one number of each column.

    Gradients need a group per layer; what lies outside the layers joins the first or last group where it has the same
    numbers, as gradients then need no entry for it.
    """
    layout, n_slices = parts.layout, len(file.slices)
    starts = tuple(s.layers[0] for s in file.slices[1:] if s.layers)
    by_component = any(
        len({c.numbers[p] for p in layout.places if p.startswith(f"layer.{i}.")}) > 1
        for c in columns
        for i in range(layout.n_layers)
    )
    varies = any(
        len({c.numbers[p] for p in layout.places if _slice_and_component(p, starts) == kind}) > 1
        for c in columns
        for kind in {_slice_and_component(p, starts) for p in layout.places if layer_and_component(p)}
    )
    ends = [e for e in ENDS if e in layout.places]
    division = {"per_layer": True} if varies else {"boundaries": starts} if n_slices > 1 else {"segments": 1}
    rules = {e: _rule(e, columns, layout) for e in ends}
    by_component = by_component or (varies and "own" in rules.values())
    if by_component:
        rules = dict.fromkeys(ends, "own")
    grouping = Grouping(**division, components=by_component, **rules)  # type: ignore[arg-type]
    return grouping, make_groups(grouping, layout)


def _rule(end: str, columns: list[Column], layout: Layout) -> str:
    """With which layers a part outside of them has all its numbers in common."""
    first, last = (0, "first_segment"), (layout.n_layers - 1, "last_segment")
    for layer, rule in (first, last) if end == EMBEDDINGS else (last, first):
        beside = [p for p in layout.places if p.startswith(f"layer.{layer}.")]
        if all(c.numbers[end] == c.numbers[p] for c in columns for p in beside):
            return rule
    return "own"


def _slice_and_component(place: str, starts: tuple[int, ...]) -> tuple[int, str] | None:
    inside = layer_and_component(place)
    return None if inside is None else (sum(inside[0] >= s for s in starts), inside[1])


def component_of(group: Group) -> str | None:
    """`mlp` for `layer_3_mlp`; None for groups that are no component of anything."""
    word = group.name.rpartition("_")[2]
    return word if word in COMPONENTS and group.name.startswith(("layer_", "segment_")) else None
