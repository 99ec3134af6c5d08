"""Tiny models and recipes for tests of merging."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence

import torch

from mergesearch.errors import MergeError
from mergesearch.merging import MergeMethod, ResidentMerger
from mergesearch.recipe import CoefficientValue, GroupRecipe, MergeRecipe, SourceRef

Tensors = dict[str, torch.Tensor]

SHAPES: Mapping[str, tuple[int, ...]] = {
    "embed.weight": (11, 8),
    **{f"layer.{i}.weight": (8, 8) for i in range(4)},
    **{f"layer.{i}.bias": (8,) for i in range(4)},
    "norm.weight": (8,),
    "norm.scale": (),
}
PLACES = {name: name.rsplit(".", 1)[0] if name.startswith("layer") else name.split(".")[0] for name in SHAPES}
ALL_PLACES = tuple(dict.fromkeys(PLACES.values()))


def make_source(seed: int, dtype: torch.dtype = torch.float32) -> Tensors:
    """A model of well-spread numbers."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in SHAPES.items()}


def make_sources(names: Sequence[str], dtype: torch.dtype = torch.float32) -> dict[str, Tensors]:
    """A model for every name."""
    return {name: make_source(1 + i, dtype) for i, name in enumerate(names)}


def source_names(method: MergeMethod, n_sources: int) -> tuple[list[str], str | None]:
    """As many sources as the method allows, up to `n_sources`, and a base if it needs one."""
    n = max(method.min_sources, min(n_sources, method.max_sources or n_sources))
    names = [f"source_{i}" for i in range(n)]
    return (["base", *names], "base") if method.needs_base else (names, None)


def make_merger(sources: Mapping[str, Tensors], dtype: torch.dtype, chunk_elements: int = 16) -> ResidentMerger:
    """A merger whose target holds the first source; chunks are small, so that tensors take several."""
    template = next(iter(sources.values()))
    target = {name: tensor.to(dtype, copy=True) for name, tensor in template.items()}
    return ResidentMerger(target, sources, PLACES, chunk_elements=chunk_elements)


def make_recipe(
    method: str,
    sources: Sequence[str],
    groups: Mapping[tuple[str, ...], Mapping[str, CoefficientValue] | str],
    *,
    base: str | None = None,
    dtype: torch.dtype = torch.float32,
    **rest: object,
) -> MergeRecipe:
    """A recipe from places to coefficients, or to the source they are copied from."""
    return MergeRecipe(
        method=method,
        sources=tuple(SourceRef(n, n, hashlib.sha256(n.encode()).hexdigest()) for n in sources),
        template=sources[0],
        groups=tuple(
            GroupRecipe("+".join(places), places, copy_from=value)
            if isinstance(value, str)
            else GroupRecipe("+".join(places), places, coefficients=value)
            for places, value in groups.items()
        ),
        base=base,
        dtype=str(dtype).removeprefix("torch."),
        **rest,  # type: ignore[arg-type]
    )


def merge(
    method: str,
    sources: Mapping[str, Tensors],
    coefficients: Mapping[str, CoefficientValue],
    *,
    base: str | None = None,
    dtype: torch.dtype = torch.float32,
    chunk_elements: int = 16,
    **rest: object,
) -> Tensors:
    """The whole model merged as one group."""
    template = next(iter(sources.values()))
    target = {name: tensor.to(dtype, copy=True) for name, tensor in template.items()}
    merger = ResidentMerger(target, sources, PLACES, chunk_elements=chunk_elements)
    merger.apply(make_recipe(method, list(sources), {ALL_PLACES: coefficients}, base=base, dtype=dtype, **rest))
    return target


def typical(method: MergeMethod, names: Sequence[str]) -> dict[str, CoefficientValue]:
    """Coefficients a third of the way through their ranges, or defaults where a method refuses those."""
    drawn: dict[str, CoefficientValue] = {}
    for name, c in method.coefficients.items():
        third = c.low + (c.high - c.low) / 3 if math.isfinite(c.high - c.low) else max(c.low, 0.4)
        drawn[name] = 0.0 if c.names_sources else dict.fromkeys(names, third) if c.per_source else third
    measured = {m: {name: 1 + i / 3 for i, name in enumerate(names)} for m in method.measured}
    try:
        method.validate(drawn | measured, sources=names)
    except MergeError:
        drawn |= {n: c.default for n, c in method.coefficients.items() if c.default is not None}
    return drawn | measured
