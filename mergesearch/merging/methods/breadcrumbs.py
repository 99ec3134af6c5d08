"""Model Breadcrumbs: task vectors without outliers and small change (Davari & Belilovsky 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch

from mergesearch.merging import mergekit_arithmetic
from mergesearch.merging.combine import add_task_vectors
from mergesearch.merging.registry import EQUAL, OneShot, PerSource, Range, Tensors, Workspace, merge_method
from mergesearch.merging.sparsify import Sparsify, trim_both_ends


@merge_method(
    title="Model Breadcrumbs",
    paper="https://arxiv.org/abs/2312.06795",
    prepare=trim_both_ends,
    properties=("one_hot", "symmetric", "zero_task_vectors"),
    dense="task_arithmetic",
    mergekit=mergekit_arithmetic.breadcrumbs,
    parity="float32, and ties at the thresholds all kept; equal to the bit with `arithmetic: mergekit`",
    one_shot=OneShot("chosen here: the largest 1% and the smallest 89% dropped", {"weight": EQUAL, "density": 0.1}),
)
def breadcrumbs(
    tensors: Tensors,
    base: torch.Tensor,
    out: torch.Tensor,
    work: Workspace,
    prepared: Sequence[Sparsify],
    weight: Annotated[PerSource, Range("Factor of each task vector; negative weights forget a task.")],
    density: Annotated[PerSource, Range("Share of elements that is kept.", 0.0, 1.0)] = 1.0,  # type: ignore[assignment]
    gamma: Annotated[PerSource, Range("Share of the largest elements that is dropped.", 0.0, 1.0)] = 0.01,  # type: ignore[assignment]
    lambda_: Annotated[float, Range("Factor of the whole sum.")] = 1.0,
) -> torch.Tensor:
    """The base plus λ Σ wᵢ bᵢ, where bᵢ is xᵢ − base without its largest and its smallest elements.

    Per tensor, the ⌊γn⌋ largest by magnitude are dropped, the ⌊density·n⌋ that follow kept, and the rest dropped;
    where fewer are left, fewer of the largest are dropped, so that density 1 is task arithmetic. mergekit rounds to
    the stored dtype after each step, and keeps an arbitrary choice of elements that are as large as a threshold,
    where this keeps them all. Its `normalize`, a factor 1/Σ wᵢ, is left to λ.
    """
    return add_task_vectors(base, tensors, [lambda_ * w for w in weight], out, work, prepared)
