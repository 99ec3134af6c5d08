"""Weighted average of the sources: model soups (Wortsman et al. 2022, https://arxiv.org/abs/2203.05482)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import torch

from mergesearch.merging import mergekit_arithmetic
from mergesearch.merging.combine import normalized, weighted_sum
from mergesearch.merging.registry import EQUAL, Doc, OneShot, PerSource, Range, Shorthand, Tensors, merge_method

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
    one_shot=OneShot("the paper's uniform soup", {"weight": EQUAL}),
)
def linear(
    tensors: Tensors,
    out: torch.Tensor,
    weight: Annotated[PerSource, Range("Share of each source; negative weights extrapolate.")],
    normalize: Annotated[bool, Doc("Divide the weights by their sum.")] = True,
) -> torch.Tensor:
    """Σ wᵢ xᵢ, with weights divided by Σ wᵢ beforehand, so that one-hot weights copy exactly."""
    shares = normalized(weight) if normalize else weight
    used = [(x, share) for x, share in zip(tensors, shares, strict=True) if share]
    if normalize and len(used) == 2:
        # One pass over memory instead of two.
        (first, _), (second, share) = used
        return torch.lerp(first, second, share, out=out)
    return weighted_sum(tensors, shares, out)
