"""Arcee Fusion (Arcee AI 2025, https://github.com/arcee-ai/mergekit/blob/main/docs/merge_methods.md)."""

from __future__ import annotations

from typing import Annotated

import torch

from mergesearch.merging.kernel import Part
from mergesearch.merging.order_statistics import kth_largest
from mergesearch.merging.registry import OneShot, Range, Site, Tensors, Workspace, merge_method


def divergence(part: Part) -> torch.Tensor:
    """KL divergence of softmax(x) from softmax(base), row by row: float32.

    In float64: that of a fine-tuned row is a small sum of large terms that cancel. It is not negative but for
    rounding, even with the 1e-8 that mergekit adds to all probabilities.
    """
    assert part.base is not None
    p, q = (torch.softmax(x, dim=-1, dtype=torch.float64).add_(1e-8) for x in (part.tensors[0], part.base))
    return q.div_(p).log_().mul_(p).sum(dim=-1).neg_().clamp_(min=0).float()


def importance(
    x: torch.Tensor, base: torch.Tensor, start: int, divergences: torch.Tensor, out: torch.Tensor
) -> torch.Tensor:
    """|x − base| times the divergence of its row."""
    first = start // x.shape[-1]
    rows = divergences[first : first + x.shape[0]].to(x.device)
    return torch.sub(x, base, out=out).abs_().mul_(rows.unsqueeze(-1))


def threshold(site: Site, work: Workspace, fence: float) -> tuple[float, torch.Tensor]:
    """The median importance plus `fence` interquartile ranges (of exact quartiles), and all rows' divergences."""
    divergences = site.remember("softmax divergence", lambda: torch.cat([divergence(part) for part in site.parts()]))

    def values(part: Part) -> torch.Tensor:
        assert part.base is not None
        return importance(part.tensors[0], part.base, part.start, divergences, work.take(part.base))

    n = site.n_elements
    # Of the two neighbours of a quartile the smaller, as in mergekit.
    low, median, high = (kth_largest(site, work, "fusion importance", values, n - q * (n - 1) // 4) for q in (1, 2, 3))
    return median + fence * (high - low), divergences


@merge_method(
    title="Arcee Fusion",
    paper="https://github.com/arcee-ai/mergekit/blob/main/docs/merge_methods.md",
    by_rows=True,
    prepare=threshold,
    max_sources=1,
    properties=("symmetric", "zero_task_vectors"),
    parity="mergekit's float64 result, but for elements right at the threshold; mergekit's divergences are rounded to "
    "the stored dtype, and its quartiles those of a sample above 1M elements",
    one_shot=OneShot("mergekit's fence"),
)
def arcee_fusion(
    tensors: Tensors,
    base: torch.Tensor,
    out: torch.Tensor,
    work: Workspace,
    start: int,
    prepared: tuple[float, torch.Tensor],
    fence: Annotated[float, Range("Interquartile ranges above the median from which an element is taken.")] = 1.5,
) -> torch.Tensor:
    """The source's elements where their importance reaches the threshold, the base's elsewhere.

    mergekit's fence is 1.5, as of Tukey's box plots; here it is searched.
    """
    (x,) = tensors
    least, divergences = prepared
    taken = importance(x, base, start, divergences, work.take(out)) >= least
    return torch.where(taken, x, base, out=out)
