"""Reinforced Agent Merging (Yuan et al. 2026, https://arxiv.org/abs/2601.13572)."""

from __future__ import annotations

from typing import Annotated

import torch

from mergesearch.merging.overlap import add_changes
from mergesearch.merging.registry import OneShot, Range, Tensors, Workspace, merge_method


@merge_method(
    title="RAM (Reinforced Agent Merging)",
    paper="https://arxiv.org/abs/2601.13572",
    properties=("symmetric", "zero_task_vectors"),
    parity="mergekit computes in the stored dtype, this in float32; equal but for rounding",
    one_shot=OneShot("mergekit's defaults"),
)
def ram(
    tensors: Tensors,
    base: torch.Tensor,
    out: torch.Tensor,
    work: Workspace,
    epsilon: Annotated[float, Range("Changes no larger than this do not count.", 0.0, log=True)] = 1e-5,
) -> torch.Tensor:
    """The base plus each change that one source alone made, and the mean of changes where several made one."""
    return add_changes(tensors, base, out, work, epsilon, [1.0] * len(tensors))
