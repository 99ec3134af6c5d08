"""Task vectors told apart by how many sources changed an element (Yuan et al. 2026, https://arxiv.org/abs/2601.13572)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mergesearch.merging.kernel import Tensors, Workspace


def change(x: torch.Tensor, base: torch.Tensor, epsilon: float, out: torch.Tensor) -> torch.Tensor:
    """The task vector x − base where it is larger than ε by magnitude, else 0."""
    return torch.hardshrink(torch.sub(x, base, out=out), epsilon, out=out)


def n_changed(
    tensors: Tensors, base: torch.Tensor, epsilon: float, out: torch.Tensor, scratch: torch.Tensor
) -> torch.Tensor:
    """For every element, how many sources changed it by more than ε."""
    out.zero_()
    for x in tensors:
        out.add_(change(x, base, epsilon, scratch).ne_(0))
    return out


def add_changes(
    tensors: Tensors,
    base: torch.Tensor,
    out: torch.Tensor,
    work: Workspace,
    epsilon: float,
    scales: Sequence[float],
) -> torch.Tensor:
    """The base plus a change times its source's scale where one source made it, the mean change where several did."""
    count, delta = work.take(out), work.take(out)
    alone = n_changed(tensors, base, epsilon, count, delta) == 1
    out.zero_()
    for x, scale in zip(tensors, scales, strict=True):
        change(x, base, epsilon, delta)
        if scale != 1:
            torch.where(alone, delta * scale, delta, out=delta)
        out.add_(delta)
    return out.div_(count.clamp_(min=1)).add_(base)
