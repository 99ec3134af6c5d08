"""DELLA without elected signs (Deep et al. 2024, https://arxiv.org/abs/2406.11617)."""

from __future__ import annotations

from typing import Annotated

import torch

from mergesearch.merging.combine import add_task_vectors
from mergesearch.merging.masks import Masks, della_masks
from mergesearch.merging.registry import EQUAL, Doc, OneShot, PerSource, Range, Tensors, Workspace, merge_method


@merge_method(
    title="DELLA, linear",
    paper="https://arxiv.org/abs/2406.11617",
    by_rows=True,
    prepare=della_masks,
    properties=("one_hot", "symmetric", "zero_task_vectors", "random"),
    dense="task_arithmetic",
    parity="the same for the same mask, in float32 throughout; masks follow from the study's seed, and ε is cut "
    "where mergekit refuses it",
    one_shot=OneShot("chosen here: density .3, else the defaults", {"weight": EQUAL, "density": 0.3}),
)
def della_linear(
    tensors: Tensors,
    base: torch.Tensor,
    out: torch.Tensor,
    work: Workspace,
    start: int,
    prepared: Masks,
    weight: Annotated[PerSource, Range("Factor of each task vector; negative weights forget a task.")],
    density: Annotated[PerSource, Range("Mean share of each task vector that is kept.", 0.0, 1.0)] = 1.0,  # type: ignore[assignment]
    epsilon: Annotated[float, Range("Most that a row's largest is kept more often than its mean.", 0.0, 0.5)] = 0.15,
    lambda_: Annotated[float, Range("Factor of the whole sum.")] = 1.0,
    rescale: Annotated[bool, Doc("Restore each task vector's L1 norm, tensor by tensor.")] = True,
) -> torch.Tensor:
    """The base plus λ Σ wᵢ sᵢ mᵢ (xᵢ − base), with masks mᵢ drawn by rank and scales sᵢ that restore L1 norms."""
    factors = [lambda_ * w for w in weight]
    return add_task_vectors(base, tensors, factors, out, work, prepared.sparsify(start, work.take(out)))
