"""TIES: trim, elect a sign, merge what agrees (Yadav et al. 2023, https://arxiv.org/abs/2306.01708)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch

from mergesearch.merging import mergekit_arithmetic
from mergesearch.merging.consensus import add_elected
from mergesearch.merging.registry import Doc, OneShot, PerSource, Range, Tensors, Workspace, merge_method
from mergesearch.merging.sparsify import Sparsify, trim


@merge_method(
    title="TIES",
    paper="https://arxiv.org/abs/2306.01708",
    prepare=trim,
    properties=("one_hot", "symmetric", "zero_task_vectors"),
    mergekit=mergekit_arithmetic.ties,
    parity="float32, and ties at the threshold all kept; equal to the bit with `arithmetic: mergekit`",
    one_shot=OneShot("the paper without validation data: k = 20%, λ = 1", {"weight": 1.0, "density": 0.2}),
)
def ties(
    tensors: Tensors,
    base: torch.Tensor,
    out: torch.Tensor,
    work: Workspace,
    prepared: Sequence[Sparsify],
    weight: Annotated[PerSource, Range("Factor of each task vector; negative weights turn its votes.")],
    density: Annotated[PerSource, Range("Share of each task vector that is kept, by magnitude.", 0.0, 1.0)] = 1.0,  # type: ignore[assignment]
    lambda_: Annotated[float, Range("Factor of the whole sum.")] = 1.0,
    normalize: Annotated[bool, Doc("Divide each element by the weights of the sources that it was kept from.")] = True,
) -> torch.Tensor:
    """The base plus λ Σ wᵢ δᵢ / Σ wᵢ, element by element over those δᵢ that were elected.

    δᵢ is xᵢ − base, per tensor without all but its max(1, ⌊density·n⌋) elements of largest magnitude. Elected are
    the elements whose wᵢ δᵢ has the sign of Σ wᵢ δᵢ, where 0 counts as positive. The paper has equal weights and
    divides by how many are elected. mergekit rounds to the stored dtype after each step, and keeps an arbitrary
    choice of elements that are as large as the threshold, where this keeps them all. Weights that cancel are not
    divided by, in mergekit only if they do so exactly.
    """
    return add_elected(tensors, base, out, work, weight, prepared, scale=lambda_, normalize=normalize)
