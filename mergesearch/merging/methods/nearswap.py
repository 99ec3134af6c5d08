"""NearSwap (alchemonaut 2024, https://huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001)."""

from __future__ import annotations

from typing import Annotated

import torch

from mergesearch.merging.registry import OneShot, Range, Tensors, Workspace, merge_method


@merge_method(
    title="NearSwap",
    paper="https://huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001",
    max_sources=1,
    properties=("symmetric", "zero_task_vectors"),
    parity="mergekit computes in the stored dtype, this in float32; equal but for rounding where t ≥ 1e-6",
    one_shot=OneShot("the model that the method comes from", {"t": 1e-4}),
)
def nearswap(
    tensors: Tensors,
    base: torch.Tensor,
    out: torch.Tensor,
    work: Workspace,
    t: Annotated[float, Range("Distance within which the source's element is taken.", 0.0, log=True)],
) -> torch.Tensor:
    """The base moved towards the source by at most t: a lerp with weight min(1, t / |x − base|)."""
    (x,) = tensors
    distance = torch.sub(x, base, out=work.take(out)).abs_().clamp_(min=torch.finfo(torch.float32).tiny)
    return torch.lerp(base, x, torch.div(t, distance, out=distance).clamp_(max=1), out=out)
