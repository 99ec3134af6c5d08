"""Inner products of the sources, which are all that merges on spheres must know of a whole tensor.

Such a merge lies in the span of its sources. Its factors follow from the N × N matrix of their inner products,
however large the tensors are, so a trial is one weighted sum. Products and sums are float64: what depends on the
size of parts, or on their order, is far below a unit of float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from mergesearch.merging.kernel import Site, Tensors

BLOCK_ELEMENTS = 1 << 16
"""Elements of each source that are float64 at once."""


def gram(site: Site) -> torch.Tensor:
    """Inner products of whole tensors; of task vectors where there is a base. Float64 [N, N], on the CPU."""

    def build() -> torch.Tensor:
        blocks = (block for part in site.parts() for block in _blocks(part.tensors, part.base, rows=False))
        return torch.stack([block @ block.T for block in blocks]).sum(0)

    return site.remember("gram" if site.base is None else "gram of task vectors", build)


def column_gram(site: Site) -> torch.Tensor:
    """Inner products by column, float64 [N, N, C]; parts are blocks of whole rows."""
    total = None
    for part in site.parts():
        for block in _blocks(part.tensors, part.base, rows=True):
            products = torch.einsum("irc,jrc->ijc", block, block)
            total = products if total is None else total.add_(products)
    assert total is not None, "tensors have elements"
    return total


def row_gram(tensors: Tensors, base: torch.Tensor | None) -> torch.Tensor:
    """Inner products by row, float64 [N, N, R, 1]; tensors are blocks of whole rows."""
    found = [torch.einsum("irc,jrc->ijr", block, block) for block in _blocks(tensors, base, rows=True)]
    return torch.cat(found, dim=-1).unsqueeze(-1)


def norms(gram: torch.Tensor) -> torch.Tensor:
    """Lengths of the sources, [N, …], from their inner products [N, N, …]."""
    return torch.einsum("ii...->i...", gram).clamp_min(0).sqrt()


def cosines(gram: torch.Tensor) -> torch.Tensor:
    """Cosines between the sources, [N, N, …]; a zero vector is perpendicular to everything."""
    length = norms(gram)
    product = length[:, None] * length[None]
    return torch.where(product > 0, gram / product, 0.0).clamp(-1, 1)


def arc(cosine: torch.Tensor, t: float, straight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors of both ends of an arc for the point at `t`, and of the chord where `straight` (Shoemake 1985).

    Args:
        cosine: of the angle between the ends.
        t: 0 is the first end, 1 the second; exactly so.
        straight: bool, of the shape of `cosine`.
    """
    angle = torch.acos(torch.where(straight, 0.0, cosine))
    first, second = (torch.sin(share * angle) / torch.sin(angle) for share in (1 - t, t))
    return torch.where(straight, 1 - t, first), torch.where(straight, t, second)


def _blocks(tensors: Tensors, base: torch.Tensor | None, *, rows: bool) -> Iterator[torch.Tensor]:
    """Sources, or their task vectors, along a new first dimension, in float64: flat pieces or some rows at a time."""
    everything = tensors if base is None else (*tensors, base)
    if not rows:
        everything = [tensor.view(-1) for tensor in everything]
    size = max(1, BLOCK_ELEMENTS // tensors[0].shape[-1]) if rows else BLOCK_ELEMENTS
    # Apple's GPUs have no float64.
    device = "cpu" if tensors[0].device.type == "mps" else tensors[0].device
    for pieces in zip(*(torch.split(tensor, size) for tensor in everything), strict=True):
        block = torch.stack(pieces).to(device, torch.float64)
        yield block if base is None else block[:-1] - block[-1]
