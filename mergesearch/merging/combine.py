"""The sums that most methods end in: Σ cᵢ xᵢ, and base + Σ cᵢ (xᵢ − base), whose task vectors may be made sparse."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import torch

from mergesearch.errors import MergeError
from mergesearch.merging.kernel import Tensors, Workspace
from mergesearch.merging.sparsify import Sparsify

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
    terms = [(x, _on(out, c)) for x, c in zip(tensors, factors, strict=True) if isinstance(c, torch.Tensor) or c]
    if not terms:
        return out.zero_()
    (first, factor), *others = terms
    torch.mul(first, factor, out=out)
    for x, c in others:
        _add(out, x, c)
    return out


def add_task_vectors(
    base: torch.Tensor,
    tensors: Tensors,
    factors: Sequence[Factor],
    out: torch.Tensor,
    work: Workspace,
    sparsify: Sequence[Sparsify] | None = None,
) -> torch.Tensor:
    """The base plus Σ cᵢ·sᵢ(xᵢ − base).

    Where nothing is made sparse it is exactly x if factors are one-hot, and exactly the base if all xᵢ equal it.

    Args:
        base: what task vectors are taken from.
        tensors: the sources xᵢ.
        factors: cᵢ.
        out: of their shape.
        work: scratch memory.
        sparsify: sᵢ, in place.
    """
    every = zip(tensors, factors, sparsify or [None] * len(factors), strict=True)
    terms = [(x, _on(out, c), thin) for x, c, thin in every if isinstance(c, torch.Tensor) or c]
    whole = next((i for i, (_, _, thin) in enumerate(terms) if thin is None), None)
    if whole is None:
        out.copy_(base)
    else:
        # A lerp is the source itself, without rounding, where its factor is 1.
        x, factor, _ = terms.pop(whole)
        torch.lerp(base, x, factor, out=out)
    delta = work.take(out)
    for x, factor, thin in terms:
        torch.sub(x, base, out=delta)
        if thin is not None:
            thin(delta)
        _add(out, delta, factor)
    return out


def _on(out: torch.Tensor, factor: Factor) -> Factor:
    return factor.to(out) if isinstance(factor, torch.Tensor) else factor


def _add(out: torch.Tensor, x: torch.Tensor, factor: Factor) -> None:
    if isinstance(factor, torch.Tensor):
        out.addcmul_(x, factor)
    else:
        out.add_(x, alpha=factor)
