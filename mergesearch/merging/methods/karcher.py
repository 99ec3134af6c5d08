"""Weighted Karcher mean of directions on the unit sphere (Karcher 1977, https://doi.org/10.1002/cpa.3160300502)."""

from __future__ import annotations

import math
from typing import Annotated

import torch

from mergesearch.merging.combine import normalized, weighted_sum
from mergesearch.merging.gram import cosines, gram, norms
from mergesearch.merging.registry import Doc, OneShot, PerSource, Range, Tensors, merge_method


@merge_method(
    title="Karcher mean",
    paper="https://doi.org/10.1002/cpa.3160300502",
    prepare=gram,
    properties=("one_hot", "symmetric"),
    parity="to 2e-7 of the largest element in float64, 2e-6 in float32; mergekit has no weights",
    one_shot=OneShot("equal weights"),
)
def karcher(
    tensors: Tensors,
    out: torch.Tensor,
    prepared: torch.Tensor,
    weight: Annotated[PerSource, Range("Share of each source.", 0.0)] = 1.0,  # type: ignore[assignment]
    max_iter: Annotated[float, Doc("Most steps towards the mean.", 0.0, 1e6)] = 10.0,
    tol: Annotated[float, Doc("Steps, angles and lengths that count as zero.", 1e-15, 1.0)] = 1e-5,
) -> torch.Tensor:
    """Σ wᵢ|xᵢ| times the direction whose weighted squared angles to all xᵢ are smallest."""
    shares = torch.tensor(normalized(weight), dtype=torch.float64)
    length = norms(prepared)
    w = torch.where(length > tol, shares, 0.0)
    if not w.any():  # only zero vectors, which have no direction
        return weighted_sum(tensors, shares.tolist(), out)
    mean = mean_direction(cosines(prepared), w / w.sum(), int(max_iter), tol)
    return weighted_sum(tensors, (mean * (shares @ length) / length.clamp_min(tol)).tolist(), out)


def mean_direction(cosine: torch.Tensor, w: torch.Tensor, max_iter: int, tol: float) -> torch.Tensor:
    """The Karcher mean as a sum of unit vectors: their factors, float64 [N].

    Args:
        cosine: between the unit vectors, float64 [N, N].
        w: weights that sum to 1, float64 [N].
        max_iter: most steps.
        tol: steps and angles that count as zero.
    """

    def size(v: torch.Tensor) -> float:
        return float((v @ cosine @ v).clamp_min(0).sqrt())

    mean = w if size(w) >= tol else torch.eye(len(w), dtype=w.dtype)[w > 0][0]
    mean = mean / size(mean)
    for _ in range(max_iter):
        dots = (cosine @ mean).clamp(-1, 1)
        angle = torch.acos(dots)
        # No one way leads to a direction that is opposite, and none is left to one that is reached.
        pull = torch.where((angle < tol) | (angle > math.pi - tol), 0.0, w * angle / torch.sin(angle))
        step = pull - (pull @ dots) * mean
        distance = size(step)
        if distance < tol:
            break
        mean = math.cos(distance) * mean + math.sin(distance) / distance * step
        mean = mean / size(mean)
    return mean
