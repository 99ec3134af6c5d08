"""DELLA: small elements are dropped more often, and signs are elected (Deep et al. 2024, https://arxiv.org/abs/2406.11617)."""

from __future__ import annotations

from typing import Annotated

import torch

from mergesearch.merging.consensus import add_elected
from mergesearch.merging.masks import Masks, della_masks
from mergesearch.merging.registry import Doc, OneShot, PerSource, Range, Tensors, Workspace, merge_method


@merge_method(
    title="DELLA",
    paper="https://arxiv.org/abs/2406.11617",
    by_rows=True,
    prepare=della_masks,
    properties=("one_hot", "symmetric", "zero_task_vectors", "random"),
    dense="ties",
    parity="the same for the same mask, in float32 throughout; masks follow from the study's seed, and ε is cut "
    "where mergekit refuses it",
    one_shot=OneShot("chosen here: density .3, else the defaults", {"weight": 1.0, "density": 0.3}),
)
def della(
    tensors: Tensors,
    base: torch.Tensor,
    out: torch.Tensor,
    work: Workspace,
    start: int,
    prepared: Masks,
    weight: Annotated[PerSource, Range("Factor of each task vector; negative weights turn its votes.")],
    density: Annotated[PerSource, Range("Mean share of each task vector that is kept.", 0.0, 1.0)] = 1.0,  # type: ignore[assignment]
    epsilon: Annotated[float, Range("Most that a row's largest is kept more often than its mean.", 0.0, 0.5)] = 0.15,
    lambda_: Annotated[float, Range("Factor of the whole sum.")] = 1.0,
    normalize: Annotated[bool, Doc("Divide each element by the weights of the sources that it was kept from.")] = True,
    rescale: Annotated[bool, Doc("Restore each task vector's L1 norm, tensor by tensor.")] = True,
) -> torch.Tensor:
    """TIES with task vectors sᵢ mᵢ (xᵢ − base): masks mᵢ drawn by rank, and scales sᵢ that restore L1 norms."""
    thinned = prepared.sparsify(start, work.take(out))
    return add_elected(tensors, base, out, work, weight, thinned, scale=lambda_, normalize=normalize)
