"""A mergekit configuration as a study: its numbers become the centres of ranges, and itself the first trial.

Ranges are documented in docs/export.md: half a number either way and at least 0.25, within what the method allows, and
not below 0 where the number is not; on a logarithmic scale from a quarter of it to four times it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
from ruamel.yaml.comments import CommentedMap, CommentedSeq

from mergesearch.errors import unknown
from mergesearch.merging.declared import Coefficient
from mergesearch.merging.method import MergeMethod
from mergesearch.merging.registry import METHODS
from mergesearch.recipe import CoefficientValue
from mergesearch.results.mergekit.reading import MergekitFile, Reference, number_at, read_mergekit
from mergesearch.results.mergekit.study_text import dump, flow, flow_list, range_around, short_names, shown, tidy
from mergesearch.results.mergekit.table import ENDS, Column, Parts, column, component_of, divide
from mergesearch.sources.config import load_config
from mergesearch.sources.groups import Group, Grouping
from mergesearch.sources.layout import COMPONENTS, read_layout
from mergesearch.sources.locate import locate, model_folder
from mergesearch.study_checks import search_space
from mergesearch.study_file import parse_study_text

PLACEHOLDER = "FILL-IN-A-COLLECTION"
_METHODS = frozenset(
    {"linear", "slerp", "nuslerp", "multislerp", "karcher", "task_arithmetic", "ties", "dare_linear", "dare_ties"}
    | {"della", "della_linear", "breadcrumbs", "breadcrumbs_ties", "model_stock", "sce", "nearswap", "ram"}
    | {"ramplus_tl", "arcee_fusion"}
)
"""Methods that mean the same in both."""
_OPTIONS = {"nuslerp_flatten": "flatten", "nuslerp_row_wise": "row_wise"}
_OFF = frozenset({"normalize", "rescale"})
"""Options that methods without them leave off."""
_RATIO_ONLY = frozenset(
    {"linear", "nuslerp", "multislerp", "karcher", "ties", "dare_ties", "della", "breadcrumbs_ties"}
)
"""Where weights are divided by their sum, only their ratios count: one weight stays as it is."""


@dataclass(frozen=True)
class Imported:
    """A study file's text, and what a user should know of it."""

    text: str
    point: Mapping[str, float]
    notes: tuple[str, ...]


def import_mergekit(
    path: Path, *, folder: Path = Path(), collection: str | None = None, split: str = "dev", trials: int = 40
) -> Imported:
    """Make a study file of a mergekit configuration. Of the models only the first one's config.json is read.

    Args:
        path: the configuration.
        folder: where the study file is going to lie; paths in it start there.
        collection: a folder with a judged collection in BEIR layout; None leaves it to be filled in.
        split: of the collection.
        trials: how many the study has.

    Raises:
        StudyFileError: listing, with lines, everything that cannot be said in a study.
    """
    file = read_mergekit(path)
    method = METHODS.get(file.method) if file.method in _METHODS else None
    if file.method == "passthrough":
        file.problem("passthrough takes layers as they are, so that there is no number to search", "merge_method")
    elif method is None:
        file.problem(unknown("merge method", file.method, _METHODS), "merge_method")
    parts = _parts(file, path.parent)
    if method is None or parts is None or not file.slices:
        file.raise_if_any()
        file.problem("names no models")
        file.raise_if_any()
    assert method is not None
    assert parts is not None
    return _Importer(file, method, parts, folder).study(collection, split, trials)


def _parts(file: MergekitFile, folder: Path) -> Parts | None:
    """The first model's layout, or a problem."""
    template = file.base or next(iter(file.models), None)
    if template is None:
        return None
    try:
        config = _config_folder(template, folder)
        layout = read_layout(config)
        architecture = (load_config(config).architectures or [""])[0]
    except (ValueError, OSError) as error:  # ours, and the hub's of names that are none, and of downloads
        said = " ".join(str(error).split())[:300]
        file.problem(f"config.json of {template} cannot be read, and it says how many layers there are: {said}")
        return None
    covered = file.slices[-1].layers if file.slices else None
    if covered is not None and covered[1] != layout.n_layers:
        file.problem(f"the slices make {covered[1]} layers, the model has {layout.n_layers}", "slices")
    head = architecture.partition("For")
    prefix = "model." if head[2] == "CausalLM" else ""
    return Parts(layout, prefix, ends_last=bool(head[1]))


def _config_folder(model: Reference, folder: Path) -> Path:
    for start in (Path(), folder):  # mergekit's paths start where it is called
        if (start / model.path).is_dir():
            return model_folder((start / model.path).resolve())
    if model.path.startswith(("package:", ".", "/", "~")):  # no name for the hub, which would only say so
        return model_folder(locate(model.path, relative_to=folder))
    downloaded = huggingface_hub.hf_hub_download(model.path, "config.json", revision=model.revision)
    return Path(downloaded).parent


class _Importer:
    """The steps from a configuration to a study file."""

    def __init__(self, file: MergekitFile, method: MergeMethod, parts: Parts, folder: Path) -> None:
        self.file, self.method, self.parts, self.folder = file, method, parts, folder
        self.names = short_names(file.models)
        self.template = file.base or file.models[0]
        self.base = file.base if method.takes_base else None
        self.columns: dict[tuple[str, str | None], Column] = {}
        self.invented: set[str] = set()

    def study(self, collection: str | None, split: str, trials: int) -> Imported:
        options = self._options()
        self._read_columns()
        self.file.raise_if_any()
        self._note_idle_filters()
        grouping, groups = divide(list(self.columns.values()), self.file, self.parts)
        merge = self._merge(grouping, groups, options)
        content = CommentedMap()
        content["study"] = re.sub(r"[^A-Za-z0-9._-]+", "-", self.file.path.stem).strip("-._") or "imported"
        content["seed"] = 0
        content["sources"] = self._sources()
        content["merge"] = merge
        content["search"] = CommentedMap({"strategy": "tpe", "trials": trials})
        content["evaluation"] = self._evaluation(collection, split)
        point = self._point(content, groups)
        content["search"]["enqueue"] = CommentedSeq([flow(point), "sources", "uniform"])
        content["search"]["enqueue"].yaml_add_eol_comment("the merge of the configuration itself", 0)
        head = f"The merge of {self.file.path.name} as a study: its numbers are the centres of the ranges below.\n"
        notes = list(dict.fromkeys(self.file.notes))
        head += "".join(f"Note: {note}.\n" for note in notes)
        content.yaml_set_start_comment(head.rstrip("\n"))
        return Imported(dump(content), point, tuple(notes))

    # What the file says

    def _options(self) -> dict[str, Any]:
        """Mergekit's settings that are no coefficients, under our names; those that differ from the defaults."""
        found: dict[str, Any] = {}
        for parameter in self._parameters():
            name = _OPTIONS.get(parameter, parameter)
            option = self.method.options.get(name)
            if option is None and parameter not in _OFF:
                if parameter == "int8_mask":
                    self.file.notes.append("int8_mask is left out: it saves memory and changes no number")
                elif parameter in self.method.coefficients:
                    self._note_unheard(parameter)
                else:
                    known = [*self.method.coefficients, *self.method.options]
                    self.file.notes.append(f"{unknown(f'parameter of {self.method.name}', parameter, known)} Left out")
                continue
            read = column(self.file, self.parts, parameter, None)
            values = {s.values for s in read.settings.values()} if read else set()
            if len(values) != 1 or len(next(iter(values))) != 1:
                self.file.problem(f"{parameter} cannot differ between parts of the model", "parameters", parameter)
                continue
            (setting,) = values.pop()
            if option is None:
                if setting:
                    self.file.problem(f"{self.method.name} has no {parameter} here: scale the weights instead",
                                      "parameters", parameter)  # fmt: skip
                continue
            value = bool(setting) if option.type is bool else setting
            if value != option.default:
                found[name] = value
        return found

    def _note_unheard(self, parameter: str) -> None:
        """Where the file gives one model what counts for all together, or the base what counts for the others."""
        for_all = not self.method.coefficients[parameter].per_source
        for part in self.file.slices:
            for model, scope in part.inputs.items():
                if parameter in scope.parameters and (for_all or model == self.base):
                    line = self.file.where(*scope.keys, "parameters", parameter)
                    self.file.notes.append(
                        f"{parameter} of {model} ({line}) counts for nothing, nor in mergekit. Left out"
                    )

    def _parameters(self) -> list[str]:
        """Every name of a parameter in the file."""
        scopes = [s for part in self.file.slices for s in (part.scope, *part.inputs.values())]
        names = [name for scope in scopes for name in scope.parameters]
        return list(dict.fromkeys([*names, *(self.file.tree.get("parameters") or {})]))

    def _read_columns(self) -> None:
        weighted = [m for m in self.file.models if m != self.base]
        n_least, n_most = self.method.min_sources, self.method.max_sources
        if self.method.needs_base and self.base is None:
            self.file.problem(f"{self.method.name} needs a base_model", "merge_method")
        if len(weighted) < n_least or (n_most is not None and len(weighted) > n_most):
            self.file.problem(f"{self.method.name} cannot merge {len(weighted)} models", "merge_method")
        for name, declared in self.method.coefficients.items():
            for model in weighted if declared.per_source else [None]:
                found = column(self.file, self.parts, name, model)
                if found is None and declared.default is None and not self.file.problems:
                    self.file.problem(f"{name} of {model or 'the merge'} is not given everywhere", "parameters")
                if found is not None:
                    self._check(declared, found)
                    self.columns[name, None if model is None else self.names[model]] = found
        if not self.columns:  # there is always something to search: what is at its default
            self._invent(weighted)

    def _check(self, declared: Coefficient, found: Column) -> None:
        for place, number in found.numbers.items():
            for wrong in declared.problems(number):
                self.file.problem(f"{wrong} ({found.settings[place].line})", "parameters", declared.name)
                return

    def _note_idle_filters(self) -> None:
        """Filters are parts of names, and names differ by architecture: `self_attn` is nothing to a BERT."""
        layout = self.parts.layout
        example = self.parts.prefix + next(n for p in layout.places if p.startswith("layer.") for n in layout.names(p))
        for wanted in (w for w, applies in self.file.filters.items() if not applies):
            self.file.notes.append(
                f"the filter {wanted!r} is in no tensor's name of {self.template}, such as {example}, so it does "
                "nothing, in mergekit either"
            )

    def _invent(self, weighted: list[Reference]) -> None:
        for name, declared in self.method.coefficients.items():
            for model in weighted if declared.per_source else [None]:
                numbers = dict.fromkeys(self.parts.layout.places, float(declared.default or 0.0))
                self.columns[name, None if model is None else self.names[model]] = Column(numbers)
                self.invented.add(name)

    # What the study says

    def _sources(self) -> CommentedMap:
        written = CommentedMap()
        for model, name in self.names.items():
            where = self._located(model.lora or model.path)
            if model.lora:
                written[name] = flow({"model": where})
                written.yaml_add_eol_comment(f"an adapter of {model.path}", name)
            elif model.revision:
                written[name] = flow({"model": where, "revision": model.revision})
            else:
                written[name] = where
        return written

    def _located(self, path: str) -> str:
        """A folder as it is reached from the study file; what is no folder is the hub's."""
        for start in (Path(), self.file.path.parent):
            if (start / path).is_dir():
                found = os.path.relpath((start / path).resolve(), self.folder.resolve())
                return found if found.startswith(".") else f"./{found}"
        return path

    def _merge(self, grouping: Grouping, groups: tuple[Group, ...], options: dict[str, Any]) -> CommentedMap:
        written = CommentedMap({"method": self.method.name, "template": self.names[self.template]})
        if self.base is not None:
            written["base"] = self.names[self.base]
        division: dict[str, Any] = {"per_layer": True} if grouping.per_layer else {"segments": grouping.segments}
        if grouping.boundaries is not None:
            division = {"boundaries": list(grouping.boundaries)}
        if grouping.components:
            division["components"] = True
        division |= {end: getattr(grouping, end) for end in ENDS if end in self.parts.layout.places}
        written["groups"] = flow(division)
        if options:
            written["options"] = CommentedMap(options)
        if self.method.mergekit is not None:
            note = "add `arithmetic: mergekit` to `options` to round as mergekit does, at some cost of time"
            self.file.notes.append(note)
        if "random" in self.method.properties:
            self.file.notes.append(f"{self.method.name} draws random masks: these are others than mergekit's")
        held = self._held(options)
        coefficients = written["coefficients"] = CommentedMap()
        for (name, source), found in self.columns.items():
            entry = self._entry(self.method.coefficients[name], found, groups, hold=(name, source) == held)
            target = coefficients if source is None else coefficients.setdefault(name, CommentedMap())
            key = name if source is None else source
            target[key] = entry
            if not isinstance(entry, CommentedMap) or entry.fa.flow_style():
                target.yaml_add_eol_comment(self._told(name, found, (name, source) == held), key)
        return written

    def _held(self, options: Mapping[str, Any]) -> tuple[str, str | None] | None:
        """The weight that stays as it is, because only ratios count."""
        default = self.method.options.get("normalize") or self.method.options.get("normalize_weights")
        name = "normalize_weights" if "normalize_weights" in self.method.options else "normalize"
        divided = options.get(name, default.default) if default else True
        if self.method.name not in _RATIO_ONLY or not divided:
            return None
        weights = [(key, found) for key, found in self.columns.items() if key[0] == "weight"]
        if len(weights) < 2:
            return None
        return next((key for key, found in weights if min(found.numbers.values()) > 0), None)

    def _told(self, name: str, found: Column, held: bool) -> str:
        if name in self.invented:
            return "mergekit's own"
        said = {f"{shown(s.values)} in line {s.line.rpartition(':')[2]}": None for s in found.settings.values()}
        return "; ".join(said) + ("; stays, for only ratios count" if held else "")

    def _entry(self, declared: Coefficient, found: Column, groups: tuple[Group, ...], *, hold: bool) -> Any:
        """A range or number for all groups, or a mapping of components and groups."""
        alone = self._leaf(declared, found, groups, hold)
        if alone is not None:
            return alone
        written = CommentedMap()
        families = {c: [g for g in groups if component_of(g) == c] for c in COMPONENTS}
        for component, members in families.items():
            leaf = self._leaf(declared, found, tuple(members), hold) if members else None
            if leaf is not None:
                written[component] = leaf
                written.yaml_add_eol_comment(self._told_of(declared, found, members, hold), component)
        for group in groups:
            if component_of(group) not in written:
                written[group.name] = self._leaf(declared, found, (group,), hold)
                written.yaml_add_eol_comment(self._told_of(declared, found, [group], hold), group.name)
        return written

    def _told_of(self, declared: Coefficient, found: Column, groups: list[Group], hold: bool) -> str:
        places = [p for g in groups for p in g.places]
        some = Column({p: found.numbers[p] for p in places}, {p: s for p, s in found.settings.items() if p in places})
        return self._told(declared.name, some, hold)

    def _leaf(self, declared: Coefficient, found: Column, of: tuple[Group, ...], hold: bool) -> Any:
        """One number or gradient for these groups; None where they need several."""
        places = [p for g in of for p in g.places]
        numbers = [found.numbers[p] for p in places]
        layers = [p for p in places if p.startswith("layer.")]
        values = found.gradient(layers, len(self.file.slices)) if layers and found.settings else None
        if len(set(numbers)) == 1:
            if hold:
                return tidy(numbers[0])
            more = len(of) > 1
            return range_around(declared, [numbers[0]], tie="groups" if more else None)
        n_layers = self.parts.layout.n_layers
        if values is None or n_layers < 2:
            return None
        if len(values) > n_layers:  # more knots than layers say no more than a number for each
            values = tuple(found.numbers[f"layer.{i}.{layers[0].rpartition('.')[2]}"] for i in range(n_layers))
        if any(abs(number_at(values, g.depth) - found.numbers[g.places[0]]) > 1e-9 for g in of):
            return None  # what follows the layers has the gradient's first value, and a depth of 1
        if hold:
            return flow_list([tidy(v) for v in values])
        return range_around(declared, list(values), knots=len(values))

    def _evaluation(self, collection: str | None, split: str) -> CommentedMap:
        entry = CommentedMap({"name": "dev" if collection is None else Path(collection).name})
        if collection is None:
            entry["folder"] = PLACEHOLDER
            entry.yaml_add_eol_comment("FILL IN: a folder with a judged collection in BEIR layout", "folder")
        else:
            entry["folder"] = self._located(collection)
        entry["split"] = split
        written = CommentedMap({"collections": CommentedSeq([entry])})
        if self.file.dtype is None:
            self.file.notes.append("no dtype is given, so merges are float32: see `evaluation.dtype`")
        if self.file.dtype is not None and self.file.dtype != "float32":
            written["dtype"] = self.file.dtype
        return written

    def _point(self, content: CommentedMap, groups: tuple[Group, ...]) -> dict[str, float]:
        """The configuration's own merge as a point of the study's space."""
        wanted: dict[str, dict[str, CoefficientValue]] = {}
        for group in groups:
            own: dict[str, CoefficientValue] = {}
            for (name, source), found in self.columns.items():
                number = tidy(found.numbers[group.places[0]])
                if source is None:
                    own[name] = number
                else:
                    before = own.get(name)
                    own[name] = {**(before if isinstance(before, Mapping) else {}), source: number}
            wanted[group.name] = own
        parsed = parse_study_text(dump(content), self.file.path)
        space = search_space(parsed, {g.name: g.depth for g in groups})
        point = space.locate(wanted)
        assert point is not None, "the study does not hold the merge that it was made from"
        # Knots between layers follow from depths such as 1/3, whose digits end: nobody wrote 0.499999999825.
        return {name: float(f"{value:.9g}") for name, value in point.items()}
