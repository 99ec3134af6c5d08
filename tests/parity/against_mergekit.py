"""Our side of comparisons with mergekit's in-memory API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from mergesearch.merging import ResidentMerger
from mergesearch.recipe import GroupRecipe, MergeRecipe, SourceRef

Model = dict[str, torch.Tensor]


def ours(
    models: Mapping[str, Model], method: str, coefficients: Mapping[str, Any], base: str | None, **options: Any
) -> Model:
    """The models merged by the resident merger; the first of them is the template."""
    template = next(iter(models.values()))
    target = {name: torch.empty_like(tensor) for name, tensor in template.items()}
    dtype = next(iter(template.values())).dtype
    recipe = MergeRecipe(
        method=method,
        sources=tuple(SourceRef(name, name, name) for name in models),
        template=next(iter(models)),
        groups=(GroupRecipe("all", ("all",), coefficients=coefficients),),
        base=base,
        options=options,
        dtype=str(dtype).removeprefix("torch."),
    )
    ResidentMerger(target, models, dict.fromkeys(target, "all")).apply(recipe)
    return target


def in_dtype(models: Mapping[str, Model], names: list[str], dtype: torch.dtype) -> dict[str, Model]:
    """The named models, converted."""
    return {name: {n: t.to(dtype) for n, t in models[name].items()} for name in names}
