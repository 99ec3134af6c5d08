"""Sums of task vectors that agree on the sign of every element (TIES, https://arxiv.org/abs/2306.01708)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from mergesearch.merging.combine import add_task_vectors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mergesearch.merging.kernel import Tensors, Workspace
    from mergesearch.merging.sparsify import Sparsify

TINY = 1e-30
"""Makes 0/0 a 0, and is lost in the rounding of sums of weights above 1e-22."""


def add_elected(
    tensors: Tensors,
    base: torch.Tensor,
    out: torch.Tensor,
    work: Workspace,
    weight: Sequence[float],
    sparsify: Sequence[Sparsify] | None = None,
    *,
    scale: float,
    normalize: bool,
    weigh_votes: bool = True,
) -> torch.Tensor:
    """The base plus `scale` times the weighted task vectors, of every element those with the sign of its sum.

    A sum of zero counts as positive. With `normalize`, each element is divided by the weights of those that were
    kept, unless these cancel.

    Args:
        tensors: the sources xᵢ.
        base: what task vectors are taken from.
        out: of their shape.
        work: scratch memory.
        weight: wᵢ.
        sparsify: applied to xᵢ − base, before the weight.
        scale: λ.
        normalize: divide by the weights of what was kept.
        weigh_votes: elect signs after weighting; otherwise the signs of plain sums, for weights that are not negative.
    """
    voters = [(x, w, thin) for x, w, thin in zip(tensors, weight, sparsify or [None] * len(weight), strict=True) if w]
    if len(voters) < 2:
        # Nobody disagrees, and a normalized weight cancels.
        factors = [scale * (1.0 if normalize and w else w) for w in weight]
        return add_task_vectors(base, tensors, factors, out, work, sparsify)
    deltas = []
    for x, w, thin in voters:
        delta = torch.sub(x, base, out=work.take(base))
        if thin is not None:
            thin(delta)
        deltas.append(delta.mul_(w) if weigh_votes else delta)
    sign = torch.add(deltas[0], deltas[1], out=work.take(base))
    for delta in deltas[2:]:
        sign.add_(delta)
    # ±½ for ±: one pass less, and no less exact. Comparisons write float32, which is faster than bool masks are.
    sign.ge_(0).sub_(0.5)
    total, divisor = out.zero_(), work.take(base).fill_(TINY)
    for delta, (_, w, _) in zip(deltas, voters, strict=True):
        total.add_(delta.mul_(sign).clamp_(min=0), alpha=1 if weigh_votes else w)
        if normalize:
            divisor.add_(delta.gt_(0), alpha=w)
    if normalize:
        if min(weight) < 0 < max(weight):
            cancelled = torch.abs(divisor, out=deltas[0]).le_(1e-6 * sum(map(abs, weight)))
            divisor.add_(cancelled)
        total.div_(divisor)
    return torch.addcmul(base, total, sign, value=4 * scale, out=out)
