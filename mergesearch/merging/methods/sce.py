"""SCE: select, calculate, erase (FuseChat, Wan et al. 2024, https://arxiv.org/abs/2408.07990)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch

from mergesearch.merging import mergekit_arithmetic
from mergesearch.merging.consensus import add_elected
from mergesearch.merging.kernel import Part, Site
from mergesearch.merging.order_statistics import kth_largest
from mergesearch.merging.registry import OneShot, Range, Tensors, Workspace, merge_method
from mergesearch.merging.sparsify import Sparsify


@dataclass(frozen=True)
class Selection:
    """What is merged of one tensor.

    Attributes:
        variance: the smallest variance among sources that an element is selected with; None to select all.
        shares: of the sources; they sum to 1.
    """

    variance: float | None
    shares: list[float]


def select(site: Site, work: Workspace, select_topk: float) -> Selection | None:
    """The elements of largest variance, and shares from the squares of what was selected; None if nothing is."""
    threshold = None
    if select_topk < 1:

        def vary(part: Part) -> torch.Tensor:
            return variance(part, work)

        def count() -> torch.Tensor:
            return torch.stack([vary(part).count_nonzero() for part in site.parts()]).sum()

        k = int(select_topk * int(site.remember("variances above 0", count)))
        if not k:
            return None
        threshold = kth_largest(site, work, "variance", vary, k)

    def squares() -> torch.Tensor:
        sums = [_squares(part, work, threshold) for part in site.parts()]
        return torch.stack(sums).sum(0)

    found = site.remember(f"squares where the variance is {threshold}", squares, lasting=threshold is None)
    total = float(found.sum())
    n = len(site.sources)
    return Selection(threshold, (found / total).tolist() if total else [1 / n] * n)


def variance(part: Part, work: Workspace) -> torch.Tensor:
    """Of each element of the task vectors among sources, divided by their number."""
    assert part.base is not None
    delta, mean, found = (work.take(part.base) for _ in range(3))
    mean.zero_()
    for x in part.tensors:
        mean.add_(torch.sub(x, part.base, out=delta))
    mean.div_(len(part.tensors))
    found.zero_()
    for x in part.tensors:
        torch.sub(x, part.base, out=delta).sub_(mean)
        found.addcmul_(delta, delta)
    return found.div_(len(part.tensors))


def _squares(part: Part, work: Workspace, threshold: float | None) -> torch.Tensor:
    """Sum of squares of each task vector where the variance is at least `threshold`: float64 [sources]."""
    assert part.base is not None
    mask = None if threshold is None else variance(part, work).ge_(threshold)
    delta = work.take(part.base)
    sums = []
    for x in part.tensors:
        torch.sub(x, part.base, out=delta)
        if mask is not None:
            delta.mul_(mask)
        sums.append(delta.square_().sum(dtype=torch.float64))
    return torch.stack(sums)


@merge_method(
    title="SCE (select, calculate, erase)",
    paper="https://arxiv.org/abs/2408.07990",
    prepare=select,
    min_sources=2,
    properties=("symmetric", "zero_task_vectors"),
    parity="float32, ties at the threshold all kept and no constants; equal to the bit with `arithmetic: mergekit`",
    mergekit=mergekit_arithmetic.sce,
    one_shot=OneShot("all elements, as mergekit's default"),
)
def sce(
    tensors: Tensors,
    base: torch.Tensor,
    out: torch.Tensor,
    work: Workspace,
    prepared: Selection | None,
    select_topk: Annotated[float, Range("Share that is merged, by variance among sources.", 0.0, 1.0)] = 1.0,
) -> torch.Tensor:
    """The base plus Σ sᵢ δᵢ / Σ sᵢ over the selected elements whose δᵢ has the sign of Σ δᵢ.

    Per tensor, selected are the ⌊select_topk·m⌋ elements that vary most among the m that vary at all, and the share
    sᵢ of a source is its part in the squares of all that is selected. mergekit gives equal shares where the mean
    squares sum to less than 1e-6, which is common for fine-tuned models, and divides by no less than 1e-6; this
    does neither. mergekit rounds to the stored dtype after each step, and keeps an arbitrary choice of elements
    that vary as much as the threshold, where this keeps them all.
    """
    if prepared is None:
        return out.copy_(base)
    keep: Sparsify = None
    if prepared.variance is not None:
        mask = variance(Part(tensors, base, 0), work).ge_(prepared.variance)

        def keep(delta: torch.Tensor) -> None:
            delta.mul_(mask)

    thin = [keep] * len(tensors)
    return add_elected(tensors, base, out, work, prepared.shares, thin, scale=1.0, normalize=True, weigh_votes=False)
