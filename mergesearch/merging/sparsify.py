"""Which elements of a task vector stay, by their magnitude among those of the whole tensor."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

import torch

from mergesearch.merging.order_statistics import kth_largest

if TYPE_CHECKING:
    from mergesearch.merging.kernel import Part, PerSource, Site, Workspace

Sparsify: TypeAlias = Callable[[torch.Tensor], object] | None
"""Sets elements of a part of a task vector to 0, in place; None leaves it as it is."""


def trim(site: Site, work: Workspace, weight: PerSource, density: PerSource) -> list[Sparsify]:
    """Per source, what keeps the max(1, ⌊density·n⌋) elements of largest magnitude, and all as large as the last.

    A density of 0 keeps nothing. Nothing is found out about sources of weight 0.
    """
    kept = [max(1, int(d * site.n_elements)) if d else 0 for d in density]
    return [_between(site, work, i, k, 0) if w else None for i, (w, k) in enumerate(zip(weight, kept, strict=True))]


def trim_both_ends(
    site: Site, work: Workspace, weight: PerSource, density: PerSource, gamma: PerSource
) -> list[Sparsify]:
    """Per source, what drops the ⌊γ·n⌋ elements of largest magnitude and keeps the ⌊density·n⌋ that follow.

    Elements as large as the first or the last that is kept are kept too. Fewer outliers are dropped where that
    many would not be left.
    """
    n = site.n_elements
    found: list[Sparsify] = []
    for i, (w, d, g) in enumerate(zip(weight, density, gamma, strict=True)):
        kept = int(d * n)
        found.append(_between(site, work, i, kept, min(int(g * n), n - kept)) if w else None)
    return found


def _between(site: Site, work: Workspace, i: int, kept: int, dropped: int) -> Sparsify:
    """What keeps `kept` elements of the i-th source after the `dropped` largest."""
    if kept == site.n_elements:
        return None
    if not kept:
        return torch.Tensor.zero_
    low = _magnitude(site, work, i, dropped + kept)
    high = _magnitude(site, work, i, dropped + 1) if dropped else math.inf
    below = float(torch.nextafter(torch.tensor(low), torch.tensor(-1.0)))

    def thin(delta: torch.Tensor) -> None:
        # hardshrink keeps what is strictly larger.
        if low > 0:
            torch.ops.aten.hardshrink.out(delta, below, out=delta)
        if high < math.inf:
            delta.sub_(torch.ops.aten.hardshrink.out(delta, high, out=work.take(delta)))

    return thin


def _magnitude(site: Site, work: Workspace, i: int, rank: int) -> float:
    """The `rank`-th largest |δ| (from 1) of the i-th source."""
    assert site.base is not None

    def magnitude(part: Part) -> torch.Tensor:
        assert part.base is not None
        return torch.sub(part.tensors[i], part.base, out=work.take(part.base)).abs_()

    return kth_largest(site, work, "task vector", magnitude, rank, of=(site.sources[i], site.base))
