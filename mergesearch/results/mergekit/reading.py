"""A mergekit configuration, read with the lines that its numbers stand on.

What mergekit makes of a parameter (https://github.com/arcee-ai/mergekit, docs): the closest scope that says something
for a tensor counts: the model's own parameters, then the slice's, then those of the whole file. A list of mappings is
tried in order by `filter`, which is part of the tensor's name; a list of numbers is a gradient over the slice's layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from mergesearch.errors import Problem, StudyFileError, unknown
from mergesearch.yaml_problems import plain, where

Key = str | int
_KEYS = frozenset(
    {"merge_method", "base_model", "models", "slices", "parameters", "dtype", "out_dtype"}
    | {"tokenizer_source", "tokenizer", "chat_template"}
)
_DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Reference:
    """A model as mergekit names it: a path or hub id, and maybe an adapter for it."""

    path: str
    revision: str | None = None
    lora: str | None = None

    def __str__(self) -> str:
        at = f"@{self.revision}" if self.revision else ""
        return f"{self.path}{at}" + (f"+{self.lora}" if self.lora else "")


@dataclass(frozen=True)
class Setting:
    """What counts for some tensor: numbers, of which several are a gradient, or true or false; and where it stands."""

    values: tuple[float | bool, ...]
    line: str


@dataclass(frozen=True)
class Scope:
    """The entry at `keys` whose `parameters` are asked."""

    keys: tuple[Key, ...]
    parameters: Mapping[str, Any]


@dataclass(frozen=True)
class Slice:
    """A run of layers: `first` and one after `last`, None for all of them; what is asked for it, and for its inputs."""

    layers: tuple[int, int] | None
    scope: Scope
    inputs: Mapping[Reference, Scope]


@dataclass
class MergekitFile:
    """A configuration.

    Attributes:
        path: of the file, for messages.
        tree: as ruamel read it.
        method: mergekit's.
        base: as it is named.
        models: in the order of the file; the base is added as the last where it is not among them.
        slices: from below; one of all layers where the file lists models.
        dtype: what the result is stored in, where the file says so.
        problems: what cannot be said in a study.
        notes: what is left out without harm.
        filters: those that were tried, and whether any tensor's name has them.
    """

    path: Path
    tree: Any
    method: str = ""
    base: Reference | None = None
    models: list[Reference] = field(default_factory=list)
    slices: list[Slice] = field(default_factory=list)
    dtype: str | None = None
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    filters: dict[str, bool] = field(default_factory=dict)

    def problem(self, message: str, *keys: Key) -> None:
        """Note something that cannot be said."""
        found = Problem(message, self.where(*keys))
        if found not in self.problems:
            self.problems.append(found)

    def where(self, *keys: Key) -> str:
        """Such as `merge.yml:12`."""
        return where(self.path, self.tree, keys)

    def raise_if_any(self) -> None:
        """Raise the StudyFileError that lists everything found, in the order of the lines."""
        if self.problems:
            ordered = sorted(self.problems, key=lambda p: int(p.where.rpartition(":")[2] or 0))
            n = len(ordered)
            raise StudyFileError(ordered, heading=f"{self.path}: {n} problem{'s' * (n > 1)}")

    def scopes(self, part: Slice, model: Reference | None) -> Iterator[Scope]:
        """What is asked for a parameter, the closest first; `model` None for those of all models together."""
        if model is not None and model in part.inputs:
            yield part.inputs[model]
        yield part.scope
        yield Scope((), self.tree.get("parameters") or {})

    def setting(self, parameter: str, part: Slice, model: Reference | None, tensor: str) -> Setting | None:
        """What counts for a tensor; None where nothing does."""
        for scope in self.scopes(part, model):
            if parameter in scope.parameters:
                found = self._evaluate(scope.parameters[parameter], (*scope.keys, "parameters", parameter), tensor)
                if found is not None:
                    return found
        return None

    def _evaluate(self, entry: Any, keys: tuple[Key, ...], tensor: str) -> Setting | None:
        if isinstance(entry, Mapping):
            entry = [entry]
        if isinstance(entry, list) and any(isinstance(e, Mapping) for e in entry):
            for i, condition in enumerate(entry):
                wanted = condition.get("filter") if isinstance(condition, Mapping) else None
                applies = wanted is None or wanted == "*" or wanted in tensor
                if wanted is not None:
                    self.filters[wanted] = self.filters.get(wanted, False) or applies
                if applies:
                    value = condition.get("value") if isinstance(condition, Mapping) else condition
                    return self._evaluate(value, (*keys, i), tensor)
            return None
        values = [_scalar(e) for e in (entry if isinstance(entry, list) else [entry])]
        if not values:
            return None
        known = tuple(v for v in values if v is not None)
        if len(known) < len(values):
            self.problem(f"expected a number or a list of numbers, found {plain(entry)!r}", *keys)
            return None
        return Setting(known if len(set(known)) > 1 else known[:1], self.where(*keys))


def _scalar(value: Any) -> float | bool | None:
    if isinstance(value, bool):
        return value
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def read_mergekit(path: Path) -> MergekitFile:
    """Read a configuration as far as it goes without looking at any model; `problems` says what is wrong with it.

    Raises:
        StudyFileError: the file cannot be read, or is no configuration at all.
    """
    try:
        tree = YAML(typ="rt").load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StudyFileError([f"{path} cannot be read: {error.strerror}"]) from error
    except (YAMLError, UnicodeDecodeError) as error:
        raise StudyFileError([f"{path} is no valid YAML: {' '.join(str(error).split())[:200]}"]) from error
    if not isinstance(tree, Mapping) or "merge_method" not in tree:
        raise StudyFileError([f"{path} is no mergekit configuration: expected a mapping with `merge_method:`"])
    found = MergekitFile(path, tree, str(tree["merge_method"]))
    for key in tree:
        if key == "modules":
            found.problem("modules: models of several parts cannot be said", key)
        elif key not in _KEYS:
            found.problem(unknown("key", str(key), _KEYS), key)
    if "base_model" in tree:
        found.base = _reference(found, tree["base_model"], "base_model")
    if ("models" in tree) == ("slices" in tree) and "modules" not in tree:
        found.problem("expected either `models:` or `slices:`")
    elif "models" in tree:
        _read_models(found, tree["models"])
    elif "slices" in tree:
        _read_slices(found, tree["slices"])
    if found.base is not None and found.base not in found.models:
        found.models.append(found.base)
    _read_rest(found)
    return found


def _read_models(found: MergekitFile, entries: Any) -> None:
    found.slices.append(Slice(None, Scope((), {}), _read_inputs(found, entries, ("models",))))


def _read_inputs(found: MergekitFile, entries: Any, keys: tuple[Key, ...]) -> dict[Reference, Scope]:
    inputs: dict[Reference, Scope] = {}
    for i, entry in enumerate(entries if isinstance(entries, list) else []):
        given = entry if isinstance(entry, Mapping) else {}
        _note_unread(found, given, ("model", "layer_range", "parameters"), *keys, i)
        model = _reference(found, given.get("model"), *keys, i)
        if model is None:
            continue
        if model in inputs:
            found.problem(f"{model} is listed twice", *keys, i)
        inputs[model] = Scope((*keys, i), given.get("parameters") or {})
        if model not in found.models:
            found.models.append(model)
    return inputs


def _note_unread(found: MergekitFile, entry: Mapping[str, Any], known: Sequence[str], *keys: Key) -> None:
    """Mergekit passes over keys that it does not know, such as a weight that stands beside `parameters`."""
    for key in entry:
        if key not in known:
            found.notes.append(f"{key!r} ({found.where(*keys)}) is read by nobody there, nor by mergekit. Left out")


def _read_slices(found: MergekitFile, entries: Any) -> None:
    """Slices that follow each other and take every model's layers from the place where they are put."""
    position = 0
    for i, entry in enumerate(entries if isinstance(entries, list) else []):
        given = entry if isinstance(entry, Mapping) else {}
        if given.get("base_model") is not None and _reference(found, given["base_model"], "slices", i) != found.base:
            found.problem("a slice with a base of its own cannot be said: a study has one base", "slices", i)
        if given.get("residual_weight") is not None:
            found.problem("residual_weight cannot be said", "slices", i, "residual_weight")
        _note_unread(found, given, ("sources", "base_model", "residual_weight", "parameters"), "slices", i)
        sources = given.get("sources")
        inputs = _read_inputs(found, sources, ("slices", i, "sources"))
        ranges = []
        for k, source in enumerate(sources if isinstance(sources, list) else []):
            layers = source.get("layer_range") if isinstance(source, Mapping) else None
            if not (isinstance(layers, list) and len(layers) == 2 and all(isinstance(n, int) for n in layers)):
                found.problem("expected `layer_range: [first, one after the last]`", "slices", i, "sources", k)
                continue
            ranges.append((int(layers[0]), int(layers[1])))
            if layers[0] != position:
                found.problem(
                    f"layers {layers[0]} to {layers[1] - 1} are put at {position}: layers that move, repeat or are "
                    "left out cannot be said, only those that stay where they are",
                    *("slices", i, "sources", k),
                )
        if ranges:
            position = ranges[0][1]
            found.slices.append(Slice(ranges[0], Scope(("slices", i), given.get("parameters") or {}), inputs))


def _read_rest(found: MergekitFile) -> None:
    tree = found.tree
    dtype = tree.get("out_dtype") or tree.get("dtype")
    if dtype is not None and str(dtype) not in _DTYPES:
        found.problem(f"a merge is stored in {', '.join(_DTYPES)}, not in {dtype}", "out_dtype", "dtype")
    else:
        found.dtype = None if dtype is None else str(dtype)
    first = found.base or (found.models[0] if found.models else None)
    tokenizer = tree.get("tokenizer")
    source = tokenizer.get("source") if isinstance(tokenizer, Mapping) else tree.get("tokenizer_source")
    if isinstance(tokenizer, Mapping) and set(tokenizer) - {"source"}:
        found.problem("a tokenizer with tokens of its own cannot be said: it is the template's", "tokenizer")
    if source not in (None, "base") and str(source) != str(first):
        found.problem(
            f"the tokenizer {source!r} cannot be said: it is that of the template, {first}",
            *(("tokenizer", "source") if tokenizer else ("tokenizer_source",)),
        )
    if tree.get("chat_template"):
        found.notes.append("chat_template is left out: what is merged here embeds text")


def _reference(found: MergekitFile, entry: Any, *keys: Key) -> Reference | None:
    """`path@revision+adapter`, or the same as a mapping."""
    if isinstance(entry, Mapping):
        inner = entry.get("model", entry)
        if isinstance(inner, Mapping):
            revision = inner.get("revision")
            inner = str(inner.get("path", "")) + (f"@{revision}" if revision else "")
        lora = entry.get("lora")
        entry = f"{inner}+{lora}" if lora else inner
    if not isinstance(entry, str) or not entry:
        found.problem(f"expected a model, found {entry!r}", *keys)
        return None
    model, _, lora = entry.partition("+")
    path, _, revision = model.partition("@")
    return Reference(path, revision or None, lora or None)


def number_at(values: Sequence[float | bool], t: float) -> float:
    """A gradient's value, piecewise linear in t from 0 to 1."""
    position = t * (len(values) - 1)
    below = min(int(position), len(values) - 1)
    above = min(below + 1, len(values) - 1)
    share = position - below
    return (1 - share) * values[below] + share * values[above]
