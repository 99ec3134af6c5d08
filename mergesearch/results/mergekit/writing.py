"""A recipe as a mergekit configuration, where it can be said exactly; else why not.

"Exactly" is: to the bit where both round alike (`arithmetic: mergekit`), and otherwise but for the rounding of float32
arithmetic. What mergekit chooses otherwise (random masks, which of equal elements are trimmed) is not exact.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from mergesearch.merging.registry import get_method
from mergesearch.recipe import CoefficientValue, GroupRecipe, MergeRecipe
from mergesearch.results.mergekit.filters import write_filters
from mergesearch.sources.adapter import AdaptedCheckpoint
from mergesearch.sources.alignment import align
from mergesearch.sources.checkpoint import Checkpoint
from mergesearch.sources.layout import Layout
from mergesearch.sources.locate import commit_of, hub_id

CONFIG_FILE = "mergekit_config.yml"
VERSION = "0.1.5"
"""Of mergekit, with which this is tested."""

TO_THE_BIT = "to the bit"
ROUNDED = "but for the rounding of float32 sums"
_ANGLES = "to 2e-6 of the largest element of each tensor"
_FLOAT32 = {
    "slerp": _ANGLES,
    "nuslerp": _ANGLES,
    "multislerp": _ANGLES,
    "karcher": _ANGLES,
    "model_stock": _ANGLES,
    "nearswap": ROUNDED,
    "ram": ROUNDED,
    "ramplus_tl": ROUNDED,
}
"""Methods that compute in float32 what mergekit computes in it, and how near the two are. Linear maps are all said as
`linear`."""
_BASE_ALONE: Mapping[str, dict[str, CoefficientValue]] = {"nearswap": {"t": 0.0}, "sce": {"select_topk": 0.0}}
"""Coefficients that give the base, of methods that cannot give every source."""
_RENAMED = {("nuslerp", "flatten"): "nuslerp_flatten", ("nuslerp", "row_wise"): "nuslerp_row_wise"}
_TEMPLATE_AS_BASE = frozenset({"linear", "slerp", "karcher"})
"""For slerp it is where t is 0; the others take no notice of a base, but its config and tokenizer are copied."""
_BROKEN_TABLES = frozenset({"BertModel", "RobertaModel", "DistilBertModel"})
_INFERRED = "XLMRobertaModel"
"""mergekit's tables of tensor names for the bare encoders above do not fit their checkpoints. It infers the names where
it has no table, as for any class of this name."""


@dataclass(frozen=True)
class Configuration:
    """A configuration of mergekit and how near its weights are; or why there is none."""

    text: str = ""
    tolerance: str = ""
    why_not: str = ""

    def to_dict(self) -> dict[str, Any]:
        """What provenance keeps of it, plain JSON types."""
        return {
            "file": CONFIG_FILE if self.text else None,
            "version": VERSION,
            "tolerance": self.tolerance or None,
            "why_not": self.why_not or None,
        }


class _CannotBeSaidError(Exception):
    """With the reason."""


def mergekit_config(
    recipe: MergeRecipe, layout: Layout, checkpoints: Mapping[str, Checkpoint], located: Mapping[str, Path]
) -> Configuration:
    """Say a recipe in mergekit's language.

    Args:
        recipe: the merge.
        layout: of the template.
        checkpoints: the sources, opened.
        located: the folder of every source; hub models are named by id and commit, others by folder.
    """
    try:
        prefix = _common_prefix(recipe, layout, checkpoints)
        method, tolerance, options, per_place = _settings(recipe)
        dtype = "float32" if tolerance != TO_THE_BIT else _one_dtype(checkpoints)
    except _CannotBeSaidError as reason:
        return Configuration(why_not=str(reason))
    if recipe.dtype != "float32" and tolerance != TO_THE_BIT:
        tolerance += f", and then one rounding to {recipe.dtype}"
    names = {prefix + name: p.place for name, p in layout.parameters.items()}

    def said(values: Mapping[str, float]) -> object:
        by_tensor = {name: values[place] for name, place in names.items()}
        filters = write_filters(by_tensor)
        if len(filters) == 1:
            return filters[0][1]
        return [_flow({"value": v} if part is None else {"filter": part, "value": v}) for part, v in filters]

    architectures = checkpoints[recipe.template].config.get("architectures") or [""]
    inferred = _INFERRED if architectures[0] in _BROKEN_TABLES else None
    references = {source: _reference(located[source], inferred) for source in checkpoints}
    base = recipe.base if method == recipe.method else None
    if base is None and method in _TEMPLATE_AS_BASE:
        base = recipe.template
    content: dict[str, Any] = {"merge_method": method}
    if base is not None:
        content["base_model"] = references[base]
    content["models"] = []
    for ref in recipe.sources:
        own = {name: said(v) for (name, source), v in per_place.items() if source == ref.name}
        content["models"].append({"model": references[ref.name], **({"parameters": own} if own else {})})
    shared = {name: said(v) for (name, source), v in per_place.items() if source is None} | options
    if shared:
        content["parameters"] = shared
    content |= {"dtype": dtype, "out_dtype": recipe.dtype}
    text = _HEAD.format(fingerprint=recipe.fingerprint, version=VERSION, tolerance=tolerance) + _dump(content)
    return Configuration(text, tolerance)


_HEAD = """\
# The merge of mergesearch.json (recipe {fingerprint}) for mergekit {version}:
#     mergekit-yaml mergekit_config.yml FOLDER
# Its weights are equal {tolerance}.
# It makes weights alone: take config.json, tokenizer, pooling and prompts from the folder that this file lies in.
"""

_Settings = dict[tuple[str, str | None], dict[str, float]]
"""(parameter, source or None for all together) to its value at every place."""


def _settings(recipe: MergeRecipe) -> tuple[str, str, dict[str, Any], _Settings]:
    """The method for mergekit, how near its weights are, its options, and its parameters at every place."""
    method = get_method(recipe.method)
    options = {name: option.default for name, option in method.options.items()} | dict(recipe.options)
    if options.pop("arithmetic", "") == "mergekit":
        copied = {g.copy_from for g in recipe.groups if g.copy_from}
        if method.name != "linear" and not copied <= {recipe.base}:
            raise _CannotBeSaidError(
                f"mergekit's {method.name} leaves parts as they are in the base alone, not in the template"
            )
        return method.name, TO_THE_BIT, options, _named(recipe)
    if "linear_map" in method.properties:
        return "linear", ROUNDED, {"normalize": False}, _factors(recipe)
    if method.name not in _FLOAT32:
        raise _CannotBeSaidError(_why_not(recipe))
    if method.name == "karcher":
        _refuse_unequal_weights(recipe)
    tolerance = "to 4e-5 of the largest element of each tensor" if options.get("row_wise") else _FLOAT32[method.name]
    renamed = {_RENAMED.get((method.name, name), name): value for name, value in options.items()}
    if "max_iter" in renamed:
        renamed["max_iter"] = int(renamed["max_iter"])
    return method.name, tolerance, renamed, _named(recipe)


def _why_not(recipe: MergeRecipe) -> str:
    method = get_method(recipe.method)
    if "random" in method.properties:
        return f"{method.name} draws random masks, and mergekit would draw others"
    if not method.parity:
        return f"mergekit has no {method.name}"
    if method.mergekit is not None:
        return (
            f"{method.name} in float32 keeps all elements that tie at a threshold, and mergekit an arbitrary choice of "
            "them (the option `arithmetic: mergekit` does as mergekit does)"
        )
    return f"{method.name} here and in mergekit are not the same near thresholds"


def _factors(recipe: MergeRecipe) -> _Settings:
    """What every source is multiplied with, of a linear map."""
    method = get_method(recipe.method)
    bound = method.check(recipe)
    order = [*method.sources_of(recipe), *([recipe.base] if recipe.base else [])]  # the base's factor is the last
    found: _Settings = {("weight", ref.name): {} for ref in recipe.sources}
    for group in recipe.groups:
        if group.copy_from is None:
            factors = dict(zip(order, bound[group.name].factors or (), strict=False))
        else:
            factors = {name: float(name == group.copy_from) for name in order}
        for (_, source), values in found.items():
            values.update(dict.fromkeys(group.places, factors[str(source)]))
    return found


def _named(recipe: MergeRecipe) -> _Settings:
    """The method's own coefficients under their names, which are mergekit's."""
    found: _Settings = {}
    merged = [ref.name for ref in recipe.sources if ref.name != recipe.base]
    for group in recipe.groups:
        for name, value in _coefficients(recipe, group).items():
            values = value if isinstance(value, Mapping) else dict.fromkeys(merged, value)
            if get_method(recipe.method).coefficients[name].per_source:
                for source, number in values.items():
                    found.setdefault((name, source), {}).update(dict.fromkeys(group.places, number))
            elif not isinstance(value, Mapping):
                found.setdefault((name, None), {}).update(dict.fromkeys(group.places, value))
    if recipe.method == "karcher":
        return {}
    scale = found.pop(("lambda", None), {}) if recipe.method == "model_stock" else {}
    if any(value != 1 for value in scale.values()):
        raise _CannotBeSaidError("mergekit's model_stock has no λ, and λ is not 1 here")
    small = [v for v in found.get(("t", None), {}).values() if recipe.method == "nearswap" and 0 < v < 1e-6]
    if small:
        raise _CannotBeSaidError("mergekit's nearswap knows no t below 1e-6")
    return found


def _coefficients(recipe: MergeRecipe, group: GroupRecipe) -> Mapping[str, CoefficientValue]:
    """A group's coefficients with all defaults, or those that give the source that it is copied from."""
    method = get_method(recipe.method)
    defaults = {n: c.default for n, c in method.coefficients.items() if c.default is not None}
    if group.copy_from is None:
        return defaults | dict(group.coefficients)
    sources = [ref.name for ref in recipe.sources]
    found = method.coefficients_for_source(group.copy_from, sources, recipe.base, recipe.template)
    if found is None and group.copy_from == recipe.base:
        found = _BASE_ALONE.get(recipe.method)
    if found is None:
        raise _CannotBeSaidError(f"{recipe.method} cannot leave a part ({group.name}) as it is in {group.copy_from}")
    return found


def _refuse_unequal_weights(recipe: MergeRecipe) -> None:
    for group in recipe.groups:
        weights = _coefficients(recipe, group).get("weight", 1.0)
        if isinstance(weights, Mapping) and len(set(weights.values())) > 1:
            raise _CannotBeSaidError("mergekit's karcher has no weights, and they differ here")


def _common_prefix(recipe: MergeRecipe, layout: Layout, checkpoints: Mapping[str, Checkpoint]) -> str:
    """What stands before canonical names in all sources, which have to be stored alike."""
    if layout.head is not None or not {p for g in recipe.groups for p in g.places} <= {*layout.places}:
        raise _CannotBeSaidError("re-rankers are merged with their heads, and configurations are of models without one")
    expected = None
    for ref in recipe.sources:
        checkpoint = checkpoints[ref.name]
        if isinstance(checkpoint, AdaptedCheckpoint):
            raise _CannotBeSaidError(f"{ref.name} is an adapter, which mergekit merges into its base in another way")
        names = align(checkpoint, layout)
        first, raw = next(iter(names.items()))
        prefix = raw.removesuffix(first)
        whole = names.keys() == layout.parameters.keys() and all(r == prefix + n for n, r in names.items())
        shapes = all(tuple(checkpoint.tensors[r].shape) == tuple(layout.parameters[n].shape) for n, r in names.items())
        if not (whole and shapes) or ref.content_hash != checkpoint.content_hash:
            raise _CannotBeSaidError(f"{ref.name} does not have all tensors of the template under their own names")
        architectures = checkpoint.config.get("architectures") or ["none"]
        if len(architectures) != 1 or not architectures[0].endswith(("Model", "ForCausalLM")):
            raise _CannotBeSaidError(f"{ref.name} is stored as {', '.join(architectures)}, not as a bare encoder")
        if expected not in (None, (prefix, architectures[0])):
            raise _CannotBeSaidError(f"{ref.name} is stored as {architectures[0]}, and other sources otherwise")
        expected = (prefix, architectures[0])
    assert expected is not None
    return expected[0]


def _one_dtype(checkpoints: Mapping[str, Checkpoint]) -> str:
    """What all tensors are stored in, which mergekit's arithmetic then rounds to."""
    dtypes = {str(t.dtype).removeprefix("torch.") for c in checkpoints.values() for t in c.tensors.values()}
    floats = {d for d in dtypes if "float" in d}
    if len(floats) != 1:
        raise _CannotBeSaidError(f"the sources are stored in several dtypes ({', '.join(sorted(floats))})")
    return floats.pop()


def _reference(folder: Path, architecture: str | None) -> Any:
    """How mergekit names a model: by hub id and commit, or by folder."""
    hub, commit = hub_id(folder), commit_of(folder)
    path = hub or str(folder)
    if architecture is None:
        return f"{path}@{commit}" if hub else path
    model = {"path": path, **({"revision": commit} if hub else {})}
    return {"model": model, "override_architecture": architecture}


def _flow(content: dict[str, Any]) -> CommentedMap:
    written = CommentedMap(content)
    written.fa.set_flow_style()
    return written


def _dump(content: dict[str, Any]) -> str:
    yaml = YAML()
    yaml.width = 4096
    yaml.representer.ignore_aliases = lambda _: True
    out = io.StringIO()
    yaml.dump(content, out)
    return out.getvalue()
