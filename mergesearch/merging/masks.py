"""Random masks of task vectors, and the rescale that makes up for what they drop."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mergesearch.merging.kernel import Part, PerSource, Site, Workspace
    from mergesearch.merging.sparsify import Sparsify

KEPT_ELEMENTS = 1 << 26
"""Masks of so many elements, all sources together, are kept from the rescale to the merge: a byte for each element."""

SMALLEST_NORM = 1e-7
"""What is left of a task vector is not scaled up from less than this, an L1 norm; as in mergekit."""


@dataclass(frozen=True)
class Masks:
    """The masks of all sources at one tensor.

    The random numbers depend on no coefficient, so what a lower density keeps a higher one keeps too.

    Attributes:
        site: the tensor.
        density: expected share of each source's task vector that is kept.
        epsilon: how much more often than that the largest of a row is kept, and the smallest less often; of equals,
            the first ranks lowest. It is cut to what leaves probabilities in [0, 1].
        scales: what is kept of each source is multiplied with this.
        drawn: parts of masks, by source and by where they begin.
    """

    site: Site
    density: PerSource
    epsilon: float
    scales: list[float]
    drawn: dict[tuple[int, int], torch.Tensor] = field(default_factory=dict)

    def sparsify(self, start: int, scratch: torch.Tensor) -> list[Sparsify]:
        """Per source, what masks and scales the part of its task vector that begins at `start`, in place.

        Args:
            start: of the part.
            scratch: of the part's shape, to be overwritten.
        """
        return [None if share >= 1 else partial(self._thin, i, start, scratch) for i, share in enumerate(self.density)]

    def draw(self, i: int, delta: torch.Tensor, start: int, out: torch.Tensor) -> torch.Tensor:
        """1 where a part of the i-th task vector is kept and 0 elsewhere; whole rows, where ε is not 0."""
        density = self.density[i]
        self.site.uniform(self.site.sources[i], start, out)
        reach = min(self.epsilon, density, 1 - density)
        if reach == 0 or delta.shape[-1] == 1:
            return out.lt_(density)
        chances = torch.linspace(density - reach, density + reach, delta.shape[-1], dtype=torch.float64).to(delta)
        return out.lt_(torch.empty_like(delta).scatter_(-1, _by_magnitude(delta), chances.expand_as(delta)))

    def _thin(self, i: int, start: int, scratch: torch.Tensor, delta: torch.Tensor) -> None:
        drawn = self.drawn.pop((i, start), None)
        mask = self.draw(i, delta, start, scratch) if drawn is None else scratch.copy_(drawn)
        delta.mul_(mask).mul_(self.scales[i])


def della_masks(
    site: Site, work: Workspace, weight: PerSource, density: PerSource, epsilon: float, rescale: bool
) -> Masks:
    """Masks that keep larger elements of a row more often (Deep et al. 2024, https://arxiv.org/abs/2406.11617).

    With `rescale`, a source's scale restores the L1 norm of the whole tensor's task vector, or is 1 where next to
    nothing is left. That is mergekit's rule. The papers divide by the probability of being kept, the same in
    expectation.
    """
    masks = Masks(site, density, epsilon, [1.0] * len(density))
    thinned = [i for i, (w, share) in enumerate(zip(weight, density, strict=True)) if w and share < 1]
    if rescale and thinned:
        norms = torch.stack([_l1_norms(masks, thinned, part, work) for part in site.parts()])
        for i, (whole, kept) in zip(thinned, norms.sum(0).tolist(), strict=True):
            masks.scales[i] = whole / kept if kept > SMALLEST_NORM else 1.0
    return masks


def dare_masks(site: Site, work: Workspace, weight: PerSource, density: PerSource, rescale: bool) -> Masks:
    """Masks that keep every element with the same probability (Yu et al. 2024, https://arxiv.org/abs/2311.03099)."""
    return della_masks(site, work, weight, density, 0.0, rescale)


def _l1_norms(masks: Masks, chosen: Sequence[int], part: Part, work: Workspace) -> torch.Tensor:
    """L1 norms of the chosen sources' task vectors in one part, without and with masks: float64, (len(chosen), 2)."""
    assert part.base is not None
    delta, mask = work.take(part.base), work.take(part.base)
    norms = []
    for i in chosen:
        masks.draw(i, torch.sub(part.tensors[i], part.base, out=delta), part.start, mask)
        if len(chosen) * masks.site.n_elements <= KEPT_ELEMENTS:
            masks.drawn[i, part.start] = mask.bool()
        norms += [size.sum(dtype=torch.float64) for size in (delta.abs_(), mask.mul_(delta))]
    return torch.stack(norms).view(-1, 2)


def _by_magnitude(delta: torch.Tensor) -> torch.Tensor:
    """Positions in each row, from the smallest magnitude to the largest; of equals, the first is first."""
    positions = torch.arange(delta.shape[-1], device=delta.device)
    # The bits of floats that are not negative are in their order, and with the position below them no two are equal.
    keys = delta.abs().view(torch.int32).to(torch.int64).bitwise_left_shift_(32).bitwise_or_(positions)
    if keys.is_cuda:
        keys = keys.sort(dim=-1).values
    else:
        keys.numpy().sort()  # several times as fast as torch's
    return keys.bitwise_and_(0xFFFFFFFF)
