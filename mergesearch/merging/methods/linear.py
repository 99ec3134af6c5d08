"""Weighted average of the sources: model soups (Wortsman et al. 2022, https://arxiv.org/abs/2203.05482)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

import torch

from mergesearch.errors import MergeError
from mergesearch.merging import mergekit_arithmetic
from mergesearch.merging.registry import Doc, PerSource, Range, Shorthand, Tensors, merge_method

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mergesearch.recipe import CoefficientValue


def alpha_weights(alpha: float, template: str, sources: Sequence[str]) -> dict[str, CoefficientValue]:
    """α for the template, 1 − α for the other source."""
    return {"weight": {name: alpha if name == template else 1 - alpha for name in sources}}


@merge_method(
    title="Linear (weighted average)",
    paper="https://arxiv.org/abs/2203.05482",
    min_sources=2,
    properties=("one_hot", "symmetric", "linear_map"),
    mergekit=mergekit_arithmetic.linear,
    parity="float32 as mergekit's; weights are divided by their sum first, which is a last unit or two",
    shorthands=[Shorthand("alpha", 2, 0.0, 1.0, "Weight of the template; the other has 1 − α.", alpha_weights)],
)
def linear(
    tensors: Tensors,
    out: torch.Tensor,
    weight: Annotated[PerSource, Range("Share of each source; negative weights extrapolate.")],
    normalize: Annotated[bool, Doc("Divide the weights by their sum.")] = True,
) -> torch.Tensor:
    """Σ wᵢ xᵢ, with weights divided by Σ wᵢ beforehand, so that one-hot weights copy exactly."""
    total = math.fsum(weight) if normalize else 1.0
    if normalize and abs(total) <= 1e-6 * math.fsum(map(abs, weight)):
        raise MergeError(f"weights {list(weight)} sum to {total:.3g}, which cannot be normalized: change one.")
    weighted = [(x, w / total) for x, w in zip(tensors, weight, strict=True) if w]
    if not weighted:
        return out.zero_()
    (first, share), *others = weighted
    if normalize and len(others) == 1:
        # One pass over memory instead of two.
        return torch.lerp(first, *others[0], out=out)
    torch.mul(first, share, out=out)
    for x, w in others:
        out.add_(x, alpha=w)
    return out
