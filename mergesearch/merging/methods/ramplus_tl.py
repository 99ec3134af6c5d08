"""RAM+, which amplifies what one source alone changed (Yuan et al. 2026, https://arxiv.org/abs/2601.13572)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch

from mergesearch.merging.kernel import Part
from mergesearch.merging.overlap import add_changes, change, n_changed
from mergesearch.merging.registry import OneShot, Range, Site, Tensors, Workspace, merge_method


def scales(site: Site, work: Workspace, epsilon: float, r: float, alpha: float) -> list[float]:
    """1 + r·min(ρ, α) for each source, where ρ is shared changes per unique change in this tensor."""
    counts = torch.stack([_shared_and_unique(part, work, epsilon) for part in site.parts()]).sum(0)
    return [1 + r * min(shared / max(unique, 1), alpha) for shared, unique in counts.tolist()]


def _shared_and_unique(part: Part, work: Workspace, epsilon: float) -> torch.Tensor:
    """How many changes of each source others made too, and how many it made alone: int64, (sources, 2)."""
    assert part.base is not None
    count, delta = work.take(part.base), work.take(part.base)
    n_changed(part.tensors, part.base, epsilon, count, delta)
    shared, unique = count > 1, count == 1
    changes = (change(x, part.base, epsilon, delta) != 0 for x in part.tensors)
    return torch.stack([torch.stack([(kind & made).sum() for kind in (shared, unique)]) for made in changes])


@merge_method(
    title="RAM+, tensor by tensor",
    paper="https://arxiv.org/abs/2601.13572",
    prepare=scales,
    properties=("symmetric", "zero_task_vectors"),
    parity="mergekit computes in the stored dtype, this in float32; equal but for rounding",
    one_shot=OneShot("mergekit's defaults"),
)
def ramplus_tl(
    tensors: Tensors,
    base: torch.Tensor,
    out: torch.Tensor,
    work: Workspace,
    prepared: Sequence[float],
    r: Annotated[float, Range("How much unique changes are amplified.", 0.0)] = 0.1,
    alpha: Annotated[float, Range("Most shared changes per unique one that count.", 0.0)] = 0.2,
    epsilon: Annotated[float, Range("Changes no larger than this do not count.", 0.0, log=True)] = 1e-5,
) -> torch.Tensor:
    """RAM, with each source's unique changes times 1 + r·min(ρ, α), ρ its shared changes per unique one.

    The paper counts over the whole model; this counts in each tensor.
    """
    return add_changes(tensors, base, out, work, epsilon, prepared)
