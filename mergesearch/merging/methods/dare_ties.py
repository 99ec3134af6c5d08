"""DARE with the signs that TIES elects (Yu et al. 2024, https://arxiv.org/abs/2311.03099)."""

from __future__ import annotations

from typing import Annotated

import torch

from mergesearch.merging.consensus import add_elected
from mergesearch.merging.masks import Masks, dare_masks
from mergesearch.merging.registry import Doc, OneShot, PerSource, Range, Tensors, Workspace, merge_method


@merge_method(
    title="DARE, signs elected",
    paper="https://arxiv.org/abs/2311.03099",
    prepare=dare_masks,
    properties=("one_hot", "symmetric", "zero_task_vectors", "random"),
    dense="ties",
    parity="the same for the same mask, in float32 throughout; masks follow from the study's seed",
    one_shot=OneShot(
        "chosen here: nine of ten elements dropped, which the paper finds to cost little, then as TIES",
        {"weight": 1.0, "density": 0.1},
        {"normalize": True},
    ),
)
def dare_ties(
    tensors: Tensors,
    base: torch.Tensor,
    out: torch.Tensor,
    work: Workspace,
    start: int,
    prepared: Masks,
    weight: Annotated[PerSource, Range("Factor of each task vector; negative weights turn its votes.")],
    density: Annotated[PerSource, Range("Share of each task vector that is kept, at random.", 0.0, 1.0)] = 1.0,  # type: ignore[assignment]
    lambda_: Annotated[float, Range("Factor of the whole sum.")] = 1.0,
    normalize: Annotated[bool, Doc("Divide each element by the weights of the sources that it was kept from.")] = False,
    rescale: Annotated[bool, Doc("Restore each task vector's L1 norm, tensor by tensor.")] = True,
) -> torch.Tensor:
    """TIES with task vectors sᵢ mᵢ (xᵢ − base): random masks mᵢ, and scales sᵢ that restore L1 norms."""
    thinned = prepared.sparsify(start, work.take(out))
    return add_elected(tensors, base, out, work, weight, thinned, scale=lambda_, normalize=normalize)
