"""DARE: task vectors with random elements dropped (Yu et al. 2024, https://arxiv.org/abs/2311.03099)."""

from __future__ import annotations

from typing import Annotated

import torch

from mergesearch.merging.combine import add_task_vectors
from mergesearch.merging.masks import Masks, dare_masks
from mergesearch.merging.registry import Doc, OneShot, PerSource, Range, Tensors, Workspace, merge_method


@merge_method(
    title="DARE, linear",
    paper="https://arxiv.org/abs/2311.03099",
    prepare=dare_masks,
    properties=("one_hot", "symmetric", "zero_task_vectors", "random"),
    dense="task_arithmetic",
    parity="the same for the same mask, in float32 throughout; masks follow from the study's seed",
    one_shot=OneShot(
        "chosen here: nine of ten elements dropped, which the paper finds to cost little",
        {"weight": 1.0, "density": 0.1},
    ),
)
def dare_linear(
    tensors: Tensors,
    base: torch.Tensor,
    out: torch.Tensor,
    work: Workspace,
    start: int,
    prepared: Masks,
    weight: Annotated[PerSource, Range("Factor of each task vector; negative weights forget a task.")],
    density: Annotated[PerSource, Range("Share of each task vector that is kept, at random.", 0.0, 1.0)] = 1.0,  # type: ignore[assignment]
    lambda_: Annotated[float, Range("Factor of the whole sum.")] = 1.0,
    rescale: Annotated[bool, Doc("Restore each task vector's L1 norm, tensor by tensor.")] = True,
) -> torch.Tensor:
    """The base plus λ Σ wᵢ sᵢ mᵢ (xᵢ − base), with random masks mᵢ and scales sᵢ that restore L1 norms."""
    factors = [lambda_ * w for w in weight]
    return add_task_vectors(base, tensors, factors, out, work, prepared.sparsify(start, work.take(out)))
