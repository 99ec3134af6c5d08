"""Multi-SLERP: a weighted mean of directions times a weighted mean of lengths, for any number of sources.

https://goddard.blog/posts/multislerp-wow-what-a-cool-idea, as in mergekit: unit vectors are averaged, the mean is
made a unit vector, and an average is taken in the tangent space there and mapped back to the sphere. That last step
is zero: the weighted mean of the projections onto the plane perpendicular to the weighted mean vanishes. So the
result is the mean direction itself.
"""

from __future__ import annotations

from typing import Annotated

import torch

from mergesearch.merging.combine import add_task_vectors, normalized, weighted_sum
from mergesearch.merging.gram import gram, norms
from mergesearch.merging.registry import EQUAL, Doc, OneShot, PerSource, Range, Tensors, Workspace, merge_method

CANCELLED = 1e-6
"""Weights in float32 cannot say the direction of a mean of unit vectors that is shorter."""


@merge_method(
    title="Multi-SLERP",
    paper="https://goddard.blog/posts/multislerp-wow-what-a-cool-idea",
    prepare=gram,
    properties=("one_hot", "symmetric"),
    parity="to 2e-7 of the largest element in float64, 2e-6 in float32",
    one_shot=OneShot("equal weights", {"weight": EQUAL}),
)
def multislerp(
    tensors: Tensors,
    out: torch.Tensor,
    work: Workspace,
    prepared: torch.Tensor,
    weight: Annotated[PerSource, Range("Share of each source; negative weights turn away from it.")],
    normalize_weights: Annotated[bool, Doc("Divide the weights by their sum.")] = True,
    eps: Annotated[float, Doc("Added to lengths that are divided by.", 0.0, 1.0)] = 1e-8,
    base: torch.Tensor | None = None,
) -> torch.Tensor:
    """Σ wᵢ|xᵢ| times the direction of Σ wᵢ xᵢ/|xᵢ|, of task vectors where there is a base.

    Where directions cancel, so that none is left, it is Σ wᵢ xᵢ.
    """
    shares = normalized(weight) if normalize_weights else list(weight)
    w = torch.tensor(shares, dtype=torch.float64)
    length = norms(prepared)
    direction = w / (length + eps)
    size = float((direction @ prepared @ direction).clamp_min(0).sqrt())
    factors = shares if size <= CANCELLED * w.abs().sum() else (direction * (w @ length / size)).tolist()
    if base is None:
        return weighted_sum(tensors, factors, out)
    return add_task_vectors(base, tensors, factors, out, work)
