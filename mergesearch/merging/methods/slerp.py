"""Spherical linear interpolation (Shoemake 1985, https://doi.org/10.1145/325334.325242) of two whole tensors."""

from __future__ import annotations

from typing import Annotated

import torch

from mergesearch.merging.combine import weighted_sum
from mergesearch.merging.gram import arc, cosines, gram
from mergesearch.merging.registry import OneShot, Range, Tensors, merge_method

STRAIGHT = 0.9995
"""Above this |cosine| the chord is taken for the arc."""


@merge_method(
    title="SLERP",
    paper="https://doi.org/10.1145/325334.325242",
    prepare=gram,
    alone=lambda i, n: {"t": float(i)},  # noqa: ARG005
    min_sources=2,
    max_sources=2,
    properties=("one_hot",),
    parity="to 2e-7 of the largest element in float64; float32 norms of large tensors differ to 1e-5",
    one_shot=OneShot("halfway", {"t": 0.5}),
)
def slerp(
    tensors: Tensors,
    out: torch.Tensor,
    prepared: torch.Tensor,
    t: Annotated[float, Range("Where on the arc: 0 is the template, 1 the other source.", 0.0, 1.0)],
) -> torch.Tensor:
    """(sin((1 − t)θ) x₀ + sin(tθ) x₁) / sin θ, with θ the angle between the tensors; a lerp where |cos θ| > 0.9995."""
    cosine = cosines(prepared)[0, 1]
    return weighted_sum(tensors, [float(c) for c in arc(cosine, t, cosine.abs() > STRAIGHT)], out)
