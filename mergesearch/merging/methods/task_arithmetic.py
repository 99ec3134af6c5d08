"""Base plus weighted task vectors (Ilharco et al. 2023, https://arxiv.org/abs/2212.04089)."""

from __future__ import annotations

from typing import Annotated

import torch

from mergesearch.merging import mergekit_arithmetic
from mergesearch.merging.registry import PerSource, Range, Tensors, Workspace, merge_method


@merge_method(
    title="Task arithmetic",
    paper="https://arxiv.org/abs/2212.04089",
    properties=("one_hot", "symmetric", "zero_task_vectors", "linear_map"),
    mergekit=mergekit_arithmetic.task_arithmetic,
    parity="mergekit computes in the stored dtype, this in float32; equal but for rounding",
)
def task_arithmetic(
    tensors: Tensors,
    base: torch.Tensor,
    out: torch.Tensor,
    work: Workspace,
    weight: Annotated[PerSource, Range("Factor of each task vector; negative weights forget a task.")],
    lambda_: Annotated[float, Range("Factor of the whole sum.")] = 1.0,
) -> torch.Tensor:
    """The base plus λ Σ wᵢ (xᵢ − base). Weights are not normalized, as in the paper."""
    scaled = [(x, lambda_ * w) for x, w in zip(tensors, weight, strict=True) if lambda_ * w]
    if not scaled:
        return out.copy_(base)
    (first, share), *others = scaled
    # A lerp is the first source itself, without rounding, where λw = 1.
    torch.lerp(base, first, share, out=out)
    delta = work.take(out)
    for x, w in others:
        out.add_(torch.sub(x, base, out=delta), alpha=w)
    return out
