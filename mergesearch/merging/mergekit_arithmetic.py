"""Merges as mergekit 0.1.5 computes them, step by step and rounding by rounding, for the option `arithmetic: mergekit`.

Functions take whole tensors of one dtype, in the order in which the recipe lists the sources, the base, and the
method's coefficients and options under the kernel's names; they return a new tensor of that dtype. Every step is
rounded to it, and all task vectors of a tensor are held at once.

Results are equal to the bit to `mergekit.merge_methods.merge_state_dicts`, which the parity tests hold them to.
mergekit's sort is not stable: which of several equally large elements is kept follows from torch's version.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

Tensors = Sequence[torch.Tensor]


def linear(tensors: Tensors, weight: Sequence[float], normalize: bool) -> torch.Tensor:
    """Σ wᵢ xᵢ in float32, and then divided by Σ wᵢ."""
    factors = torch.tensor(weight, dtype=torch.float32, device=tensors[0].device)
    total = torch.zeros_like(tensors[0], dtype=torch.float32)
    for x, factor in zip(tensors, factors, strict=True):
        total.addcmul_(x, factor)
    if normalize:
        total /= factors.sum()
    return total.to(tensors[0].dtype)


def task_arithmetic(tensors: Tensors, base: torch.Tensor, weight: Sequence[float], lambda_: float) -> torch.Tensor:
    """The base plus λ Σ wᵢ δᵢ."""
    return base + _scaled(_weighted([x - base for x in tensors], weight)[0].sum(0), lambda_)


def ties(
    tensors: Tensors,
    base: torch.Tensor,
    weight: Sequence[float],
    density: Sequence[float],
    lambda_: float,
    normalize: bool,
) -> torch.Tensor:
    """Trimmed task vectors, exactly ⌊density·n⌋ elements of each, and the sign election."""
    trimmed = [_trimmed(x - base, d) for x, d in zip(tensors, density, strict=True)]
    return _elected(trimmed, base, weight, lambda_, normalize)


def breadcrumbs(
    tensors: Tensors,
    base: torch.Tensor,
    weight: Sequence[float],
    density: Sequence[float],
    gamma: Sequence[float],
    lambda_: float,
) -> torch.Tensor:
    """Task vectors without their ends, weighted and added."""
    crumbs = [_middle(x - base, d, g) for x, d, g in zip(tensors, density, gamma, strict=True)]
    return base + _scaled(_weighted(crumbs, weight)[0].sum(0), lambda_)


def breadcrumbs_ties(
    tensors: Tensors,
    base: torch.Tensor,
    weight: Sequence[float],
    density: Sequence[float],
    gamma: Sequence[float],
    lambda_: float,
    normalize: bool,
) -> torch.Tensor:
    """Task vectors without their ends, and the sign election."""
    crumbs = [_middle(x - base, d, g) for x, d, g in zip(tensors, density, gamma, strict=True)]
    return _elected(crumbs, base, weight, lambda_, normalize)


def sce(tensors: Tensors, base: torch.Tensor, select_topk: float) -> torch.Tensor:
    """Elements of the largest variance, sources by the squares of what was selected, and the sign election."""
    deltas = torch.stack([x - base for x in tensors])
    if select_topk < 1:
        variance = deltas.var(0, unbiased=False)
        selected = torch.zeros_like(base)
        n_selected = int(torch.count_nonzero(variance) * select_topk)
        selected.view(-1)[variance.view(-1).topk(n_selected).indices] = 1
        deltas = deltas * selected
    squares = deltas.square().view(len(tensors), -1).mean(1)
    total = squares.sum().item()
    shares = squares / total if total >= 1e-6 else torch.ones_like(squares) / len(tensors)
    kept = shares.view(-1, *[1] * base.dim()) * _agrees(deltas)
    return base + (deltas * kept).sum(0) / kept.sum(0).clamp(min=1e-6)


def _trimmed(delta: torch.Tensor, density: float) -> torch.Tensor:
    n = delta.numel()
    if density >= 1:
        return delta
    return _only(delta, lambda size: size.argsort(descending=True)[: max(1, int(density * n)) if density > 0 else 0])


def _middle(delta: torch.Tensor, density: float, gamma: float) -> torch.Tensor:
    n = delta.numel()
    if density >= 1:
        return delta
    kept = int(density * n)
    smaller = max(0, n - kept - int(gamma * n))
    return _only(delta, lambda size: size.sort().indices[smaller : smaller + kept])


def _only(delta: torch.Tensor, choose: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """The elements that `choose` names by their place in the flat magnitudes; mergekit sorts float32 on a CPU."""
    size = delta.abs().view(-1)
    mask = torch.zeros_like(size)
    mask[choose(size.float() if size.device.type == "cpu" else size)] = 1
    return delta * mask.view_as(delta)


def _weighted(deltas: Tensors, weight: Sequence[float]) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted task vectors as one tensor, and the weights in its dtype and number of dimensions."""
    stacked = torch.stack(list(deltas))
    weights = torch.tensor(weight, dtype=stacked.dtype, device=stacked.device)
    weights = weights.view(-1, *[1] * (stacked.dim() - 1))
    return stacked.mul_(weights), weights


def _agrees(deltas: torch.Tensor) -> torch.Tensor:
    """Where the sign is that of the sum over sources, of which 0 is positive; False where an element is 0."""
    return deltas.sign() == torch.where(deltas.sum(0) >= 0, 1.0, -1.0)


def _elected(
    deltas: Tensors, base: torch.Tensor, weight: Sequence[float], lambda_: float, normalize: bool
) -> torch.Tensor:
    weighted, weights = _weighted(deltas, weight)
    kept = _agrees(weighted)
    total = (weighted * kept).sum(0)
    if normalize:
        divisor = (weights * kept).sum(0)
        total /= torch.where(divisor == 0, 1, divisor)
    return base + _scaled(total, lambda_)


def _scaled(total: torch.Tensor, lambda_: float) -> torch.Tensor:
    return total if lambda_ == 1 else total * lambda_
