"""One source per group: which layers come from which model (one branch of Akiba et al. 2025, arXiv 2403.13187)."""

from __future__ import annotations

from typing import Annotated

import torch

from mergesearch.merging.registry import Choice, Range, Tensors, merge_method


@merge_method(
    title="Passthrough",
    paper="https://arxiv.org/abs/2403.13187",
    alone=lambda i, n: {"source": float(i)},  # noqa: ARG005
    properties=("one_hot", "linear_map"),
    parity="exact",
)
def passthrough(
    tensors: Tensors,
    out: torch.Tensor,
    source: Annotated[int, Choice("The source that is taken.")],
    scale: Annotated[float, Range("Factor of its weights.")] = 1.0,
) -> torch.Tensor:
    """The chosen source, scaled."""
    return torch.mul(tensors[source], scale, out=out)
