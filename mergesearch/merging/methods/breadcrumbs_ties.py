"""Model Breadcrumbs (https://arxiv.org/abs/2312.06795) with the sign election of TIES (https://arxiv.org/abs/2306.01708)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch

from mergesearch.merging import mergekit_arithmetic
from mergesearch.merging.consensus import add_elected
from mergesearch.merging.registry import Doc, OneShot, PerSource, Range, Tensors, Workspace, merge_method
from mergesearch.merging.sparsify import Sparsify, trim_both_ends


@merge_method(
    title="Model Breadcrumbs with TIES",
    paper="https://arxiv.org/abs/2312.06795",
    prepare=trim_both_ends,
    properties=("one_hot", "symmetric", "zero_task_vectors"),
    dense="ties",
    mergekit=mergekit_arithmetic.breadcrumbs_ties,
    parity="float32, and ties at the thresholds all kept; equal to the bit with `arithmetic: mergekit`",
    one_shot=OneShot(
        "chosen here: the largest 1% and the smallest 89% dropped, then as TIES",
        {"weight": 1.0, "density": 0.1},
        {"normalize": True},
    ),
)
def breadcrumbs_ties(
    tensors: Tensors,
    base: torch.Tensor,
    out: torch.Tensor,
    work: Workspace,
    prepared: Sequence[Sparsify],
    weight: Annotated[PerSource, Range("Factor of each task vector; negative weights turn its votes.")],
    density: Annotated[PerSource, Range("Share of elements that is kept.", 0.0, 1.0)] = 1.0,  # type: ignore[assignment]
    gamma: Annotated[PerSource, Range("Share of the largest elements that is dropped.", 0.0, 1.0)] = 0.01,  # type: ignore[assignment]
    lambda_: Annotated[float, Range("Factor of the whole sum.")] = 1.0,
    normalize: Annotated[bool, Doc("Divide each element by the weights of the sources that it was kept from.")] = False,
) -> torch.Tensor:
    """As `breadcrumbs`, and then as `ties`: of the elements that are kept, those with the sign of their sum.

    mergekit rounds to the stored dtype after each step, and keeps an arbitrary choice of elements that are as large
    as a threshold, where this keeps them all. Weights that cancel where they are normalized count as 1 in both;
    here, also where only rounding keeps their sum from 0.
    """
    return add_elected(tensors, base, out, work, weight, prepared, scale=lambda_, normalize=normalize)
