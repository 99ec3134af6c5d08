"""Base plus weighted task vectors (Ilharco et al. 2023, https://arxiv.org/abs/2212.04089)."""

from __future__ import annotations

from typing import Annotated

import torch

from mergesearch.merging import mergekit_arithmetic
from mergesearch.merging.combine import add_task_vectors
from mergesearch.merging.registry import OneShot, PerSource, Range, Tensors, Workspace, merge_method


@merge_method(
    title="Task arithmetic",
    paper="https://arxiv.org/abs/2212.04089",
    properties=("one_hot", "symmetric", "zero_task_vectors", "linear_map"),
    mergekit=mergekit_arithmetic.task_arithmetic,
    parity="mergekit computes in the stored dtype, this in float32; equal but for rounding",
    one_shot=OneShot("zero-shot retrieval (SIGIR 2025): α = 1", {"weight": 1.0}),
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
    return add_task_vectors(base, tensors, [lambda_ * w for w in weight], out, work)
