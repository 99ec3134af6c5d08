"""LM-Cocktail: sources weighted by their loss on a few examples (Xiao et al. 2023, https://arxiv.org/abs/2311.13534)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

import torch

from mergesearch.merging.registry import Doc, Measured, OneShot, PerSource, Range, Tensors, merge_method

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mergesearch.merging.declared import OptionValue


def _mixed(sources: Sequence[str], options: Mapping[str, OptionValue]) -> Sequence[str]:
    """The sources that are weighted by loss: all, or those beside the target; one alone needs no weighing."""
    mixed = sources[1:] if options["target"] else sources
    return mixed if len(mixed) > 1 else ()


@merge_method(
    title="LM-Cocktail (weights from losses)",
    paper="https://arxiv.org/abs/2311.13534",
    min_sources=2,
    properties=("linear_map",),
    one_shot=OneShot("the paper's α; τ of its authors' code"),
)
def cocktail(
    tensors: Tensors,
    out: torch.Tensor,
    loss: Annotated[PerSource, Measured("Loss of each mixed source on the examples, in nats.", _mixed)],
    temperature: Annotated[float, Range("τ: the smaller, the more the lowest loss counts.", low=1e-6, log=True)] = 5.0,
    alpha: Annotated[float, Range("Share of the target; without one it means nothing.", 0.0, 1.0)] = 0.5,
    target: Annotated[bool, Doc("The template is the target model; false mixes it with the others.")] = True,
) -> torch.Tensor:
    """α · target + (1 − α) Σ wᵢ xᵢ with w = softmax(−loss / τ) over the others; without a target, Σ wᵢ xᵢ over all."""
    mixed, shares = (tensors[1:], loss[1:]) if target else (tensors, loss)
    lowest = min(shares)
    likely = [math.exp((lowest - x) / temperature) for x in shares] if len(shares) > 1 else [1.0]
    rest = (1 - alpha if target else 1.0) / math.fsum(likely)
    torch.mul(tensors[0], alpha if target else 0.0, out=out)
    for x, share in zip(mixed, likely, strict=True):
        if rest * share:
            out.add_(x, alpha=rest * share)
    return out
