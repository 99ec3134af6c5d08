"""A study file with finer groups, whose study starts from what the coarse one scored.

Every new segment lies within an old one, so that every merge of the coarse study is a point of the finer one. Comments
and formatting of the file stay.
"""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.tokens import CommentToken

from mergesearch.errors import StudyFileError
from mergesearch.resolving import resolve
from mergesearch.search.dimension import Dimension
from mergesearch.search.points import Params
from mergesearch.search.ranges import is_range
from mergesearch.sources.groups import blocks_of_segments, layers_of_segments
from mergesearch.starting import highest, known_merges
from mergesearch.storage.reader import StudyReader
from mergesearch.study import Study
from mergesearch.study_checks import search_space
from mergesearch.study_file import ParsedStudy, parse_study_text
from mergesearch.study_inputs import grouping
from mergesearch.yaml_problems import plain

_SLACK = 1e-9


def refine(
    study: Study,
    out: Path,
    *,
    segments: int | None,
    name: str | None = None,
    storage: str | None = None,
    strategy: str | None = None,
    trials: int | None = None,
) -> Study:
    """The study of a file with finer groups; its text is `parsed.text`, and nothing is written.

    Args:
        study: the coarse study.
        out: what the file will be called; paths in it start from its folder.
        segments: how many, each within one of the coarse study's; None for a group per layer.
        name: of the finer study; by default the coarse one's and the number of segments.
        storage: where the coarse study is recorded, for the file to say; None where both are in one database.
        strategy: another one, with its default options.
        trials: another budget.

    Raises:
        StudyFileError: the coarse study has as many groups already, the model has not so many layers, or the file
            cannot be resolved.
    """
    tree = _load(study.parsed.text)
    coarse = layers_of_segments(grouping(study.parsed), study.layout.n_layers)
    fine = _divided(coarse, segments, study.layout.n_layers)
    _write_groups(tree, fine, study.layout.n_layers, per_layer=segments is None)
    inside = _inside(study, fine, per_layer=segments is None)
    names = {
        group.name: [group.name.replace(old, n, 1) for n in inside[old]]
        for group in study.groups
        for old in inside
        if group.name == old or group.name.startswith(f"{old}_")
    }
    for entry in tree["merge"]["coefficients"].values():
        _rename(entry, names)
        for inner in entry.values() if isinstance(entry, Mapping) else ():
            _rename(inner, names)
    tree["study"] = name or f"{study.name}-{'layers' if segments is None else f'{segments}-segments'}"
    start = study.name if storage is None else _flow({"study": study.name, "storage": storage})
    _write_search(tree["search"], start, strategy, trials)
    return resolve(_parsed(tree, study.parsed, out))


def narrow(study: Study, other: StudyReader, around: float, best: int) -> Study:
    """The study with ranges narrowed about the best merges that it will start with.

    Every range that belongs to one group, or to a source in one group, gets ends of its own; one that is tied or a
    gradient has to hold the values of all.

    Args:
        study: from `refine`.
        other: the records of the study that it starts from.
        around: how far a range goes beyond the values of the best merges, as a share of the range on its own scale
            (by rank where values are listed or stepped, by magnitude where it is logarithmic); at least to the next
            value.
        best: about so many of the highest merges that are points.

    Raises:
        StudyFileError: no merge came over that could be narrowed about.
    """
    points = [m.params for m in highest(study, known_merges(study, other)[0]) if m.params][:best]
    if not points:
        raise StudyFileError([f"study {other.record.name!r} has no scored merge yet to narrow ranges about"])
    tree = _load(study.parsed.text)
    coefficients = tree["merge"]["coefficients"]
    for keys in list(_ranges(plain(coefficients))):
        parent: Any = coefficients
        for key in keys[:-1]:
            parent = parent[key]
        parent[keys[-1]] = _narrowed(study, keys, parent[keys[-1]], points, around)
        _blank_lines_below(parent, keys[-1])
    return resolve(_parsed(tree, study.parsed, study.parsed.path))


def _divided(coarse: Mapping[str, list[int]], segments: int | None, n_layers: int) -> dict[str, list[int]]:
    """Name to layers of the new segments: the longest pieces are divided further until there are enough."""
    if segments is None:
        segments, name = n_layers, "layer_{}"
    else:
        name = "segment_{}"
    if len(coarse) == n_layers:
        raise StudyFileError([f"the study has a segment for each of its {n_layers} layers already"])
    if not len(coarse) < segments <= n_layers:
        found = f"the study has {len(coarse)} in {n_layers} layers"
        raise StudyFileError(
            [f"{segments} segments are no refinement: {found}, so {len(coarse) + 1} to {n_layers} are"]
        )
    pieces = dict.fromkeys(coarse, 1)
    while sum(pieces.values()) < segments:
        longest = max(coarse, key=lambda s: len(coarse[s]) / pieces[s])
        pieces[longest] += 1
    parts = [part.tolist() for s, layers in coarse.items() for part in np.array_split(layers, pieces[s])]
    first = 0 if name.startswith("layer") else 1
    return {name.format(i): part for i, part in enumerate(parts, first)}


def _inside(study: Study, fine: Mapping[str, list[int]], *, per_layer: bool) -> dict[str, list[str]]:
    """Every old segment, those of a decoder among them, to the new ones inside it."""
    division = grouping(study.parsed)
    starts = None if per_layer else tuple(layers[0] for layers in fine.values())[1:]
    divided = replace(division, segments=None, boundaries=starts, per_layer=per_layer)
    coarse, finer = blocks_of_segments(division, study.layout), blocks_of_segments(divided, study.layout)
    inside = {old: [n for n, blocks in finer.items() if {*blocks} <= {*coarse[old]}] for old in coarse}
    if sum(map(len, inside.values())) < len(finer):
        what = f"with {len(fine)} segments the decoder's would not lie inside those that it has"
        raise StudyFileError([f"{what}: double their number, divide by layer, or write `groups.decoder: template`"])
    return inside


def _write_groups(tree: Any, fine: Mapping[str, list[int]], n_layers: int, *, per_layer: bool) -> None:
    merge = tree["merge"]
    if "groups" not in merge:
        merge.insert(list(merge).index("coefficients"), "groups", _flow({"segments": 1}))
    groups = merge["groups"]
    old = next(key for key in ("segments", "boundaries", "per_layer") if key in groups)
    even = [part.tolist() for part in np.array_split(range(n_layers), len(fine))]
    division: dict[str, Any] = {"boundaries": _flow_list([layers[0] for layers in fine.values()][1:])}
    if per_layer:
        division = {"per_layer": True}
    elif even == list(fine.values()):
        division = {"segments": len(fine)}
    _replace(groups, old, division)


def _write_search(search: Any, start: object, strategy: str | None, trials: int | None) -> None:
    search.pop("start_from", None)
    search.insert(0, "start_from", start)
    if strategy is not None:
        search["strategy"] = strategy
    elif isinstance(options := search["strategy"], CommentedMap) and isinstance(options.get("x0"), Mapping):
        del options["x0"]  # by parameter names that are no more
    if trials is not None:
        search["trials"] = trials
    if "enqueue" in search:  # points by parameter name came over with the others
        search["enqueue"] = _flow_list([entry for entry in search["enqueue"] if isinstance(entry, str)])


def _rename(entry: Any, names: Mapping[str, Sequence[str]]) -> None:
    """Every group of a mapping by the groups that it was divided into, which get what it had."""
    if isinstance(entry, Mapping):
        # The last one first: a new name may be an old one's, never of a group that comes before.
        for group in [name for name in reversed(list(names)) if name in entry]:
            _replace(entry, group, {name: copy.deepcopy(entry[group]) for name in names[group]})


def _replace(mapping: Any, key: str, instead: Mapping[str, Any]) -> None:
    """Other entries in the place of one; a comment on its line stays with the last of them."""
    position, comment = list(mapping).index(key), mapping.ca.items.pop(key, None)
    del mapping[key]
    for offset, (name, value) in enumerate(instead.items()):
        mapping.insert(position + offset, name, value)
    if comment is not None:
        mapping.ca.items[name] = comment


def _blank_lines_below(mapping: Any, key: str) -> None:
    """What followed an entry follows it still, now that the entry has lines of its own."""
    after = mapping.ca.items.get(key, [None, None, None, None])[2]
    last = mapping[key]
    if after is None or last.fa.flow_style():
        return
    while not last[list(last)[-1]].fa.flow_style():
        last = last[list(last)[-1]]
    line, _, rest = after.value.partition("\n")
    after.value = f"{line}\n"
    if rest:
        last.ca.items[list(last)[-1]] = [None, None, CommentToken(f"\n{rest}", after.start_mark), None]


def _ranges(entry: Any, *keys: str) -> Iterator[tuple[str, ...]]:
    """Where under the coefficients the ranges stand."""
    if isinstance(entry, Mapping):
        if is_range(entry):
            yield keys
        else:
            for key, inner in entry.items():
                yield from _ranges(inner, *keys, key)


def _narrowed(study: Study, keys: tuple[str, ...], entry: Any, points: Sequence[Params], around: float) -> Any:
    """A range about the values of the best points, or a mapping of such ranges by source and group."""
    dimensions, prefix = _dimensions_of(study, keys), ".".join(keys) + "."
    parts = [d.name.removeprefix(prefix).split(".") for d in dimensions if d.name.startswith(prefix)]
    if len(parts) < len(dimensions) or any(group not in study.space.groups for *_, group in parts):
        return _about(entry, dimensions, points, around)
    found = CommentedMap()
    for d, (*source, group) in zip(dimensions, parts, strict=True):
        inner = found.setdefault(source[0], CommentedMap()) if source else found
        inner[group] = _about(entry, [d], points, around)
    return found


def _dimensions_of(study: Study, keys: tuple[str, ...]) -> list[Dimension]:
    """The dimensions that a range makes: those that are gone where a constant stands in its place."""
    merge = study.parsed.content.merge
    changed = copy.deepcopy(merge.coefficients)
    node: Any = changed
    for key in keys[:-1]:
        node = node[key]
    entry = node[keys[-1]]
    node[keys[-1]] = entry["values"][0] if "values" in entry else entry["low"]
    content = study.parsed.content.model_copy(update={"merge": merge.model_copy(update={"coefficients": changed})})
    try:
        others = search_space(
            replace(study.parsed, content=content), {g.name: g.depth for g in study.groups if g.merged}
        )
    except StudyFileError:  # nothing else is searched
        return list(study.space.dimensions)
    return [d for d in study.space.dimensions if d.name not in others.by_name]


def _about(entry: Any, dimensions: Sequence[Dimension], points: Sequence[Params], around: float) -> Any:
    """A range with the same shape that holds the values of all points and a margin."""
    d = dimensions[0]
    if d.names or d.single:
        return copy.deepcopy(entry)
    units = [d.to_unit(point[other.name]) for other in dimensions for point in points]
    low, high = max(0.0, min(units) - around), min(1.0, max(units) + around)
    written = _flow(dict(entry))
    choices = d.choices()
    if choices is None:
        written["low"], written["high"] = (_plain(float(f"{d.from_unit(u):.4g}")) for u in (low, high))
        return written
    last = len(choices) - 1
    kept = choices[math.floor(low * last + _SLACK) : math.ceil(high * last - _SLACK) + 1]
    if d.values is not None:
        written["values"] = _flow_list([v for v in entry["values"] if any(v == k for k in kept)])
    else:
        written["low"], written["high"] = _plain(kept[0]), _plain(kept[-1])
    return written


def _plain(number: float) -> float:
    """1 rather than 1.0, as people write it."""
    return int(number) if number.is_integer() else number


def _parsed(tree: Any, before: ParsedStudy, out: Path) -> ParsedStudy:
    """The tree as text and parsed; comments before the first key call the file by its new name."""
    yaml = _yaml()
    stream = io.StringIO()
    yaml.dump(tree, stream)
    lines = stream.getvalue().splitlines(keepends=True)
    head = next((i for i, line in enumerate(lines) if not line.startswith("#")), 0)
    lines[:head] = [line.replace(before.path.name, out.name) for line in lines[:head]]
    return parse_study_text("".join(lines), out)


def _load(text: str) -> Any:
    return _yaml().load(text)


def _yaml() -> YAML:
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096
    yaml.indent(mapping=2, sequence=4, offset=2)
    return yaml


def _flow(content: Mapping[str, Any]) -> CommentedMap:
    written = CommentedMap(content)
    written.fa.set_flow_style()
    return written


def _flow_list(content: Sequence[Any]) -> CommentedSeq:
    written = CommentedSeq(content)
    written.fa.set_flow_style()
    return written
