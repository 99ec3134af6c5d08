"""The sums that most methods end in: Σ cᵢ xᵢ, and base + Σ cᵢ (xᵢ − base)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import torch

from mergesearch.errors import MergeError
from mergesearch.merging.kernel import Tensors, Workspace

Factor: TypeAlias = float | torch.Tensor
"""A number, or a tensor that broadcasts: one number per row [R, 1] or per column [C]."""


def normalized(weight: Sequence[float]) -> list[float]:
    """Weights divided by their sum.

    Raises:
        MergeError: they cancel.
    """
    total = math.fsum(weight)
    if abs(total) <= 1e-6 * math.fsum(map(abs, weight)):
        raise MergeError(f"weights {list(weight)} sum to {total:.3g}, which cannot be normalized: change one.")
    return [w / total for w in weight]


def weighted_sum(tensors: Tensors, factors: Sequence[Factor], out: torch.Tensor) -> torch.Tensor:
    """Σ cᵢ xᵢ; exactly x where the factors are one-hot."""
    terms = _terms(tensors, factors, out)
    if not terms:
        return out.zero_()
    (first, factor), *others = terms
    torch.mul(first, factor, out=out)
    for x, c in others:
        _add(out, x, c)
    return out


def add_task_vectors(
    base: torch.Tensor, tensors: Tensors, factors: Sequence[Factor], out: torch.Tensor, work: Workspace
) -> torch.Tensor:
    """The base plus Σ cᵢ (xᵢ − base); exactly x where factors are one-hot, exactly the base where all xᵢ equal it."""
    terms = _terms(tensors, factors, out)
    if not terms:
        return out.copy_(base)
    (first, factor), *others = terms
    # A lerp is the first source itself, without rounding, where its factor is 1.
    torch.lerp(base, first, factor, out=out)
    delta = work.take(out)
    for x, c in others:
        _add(out, torch.sub(x, base, out=delta), c)
    return out


def _terms(tensors: Tensors, factors: Sequence[Factor], out: torch.Tensor) -> list[tuple[torch.Tensor, Factor]]:
    pairs = zip(tensors, factors, strict=True)
    return [(x, c.to(out) if isinstance(c, torch.Tensor) else c) for x, c in pairs if isinstance(c, torch.Tensor) or c]


def _add(out: torch.Tensor, x: torch.Tensor, factor: Factor) -> None:
    if isinstance(factor, torch.Tensor):
        out.addcmul_(x, factor)
    else:
        out.add_(x, alpha=factor)
