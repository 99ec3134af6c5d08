"""How much memory a resident merge takes, from shapes and dtypes alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from mergesearch.merging.resident import CHUNK_ELEMENTS, most_buffers

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mergesearch.merging.method import MergeMethod


MERGEKIT_BYTES = 24
"""Per source and element, about: copies, magnitudes, masks and the indexes of a sort."""


class TensorShape(Protocol):
    """What is known of a tensor from its file's header; a tensor on the meta device does as well."""

    @property
    def shape(self) -> Sequence[int]:
        """Sizes of the dimensions."""

    @property
    def dtype(self) -> torch.dtype:
        """Type it is stored in."""


@dataclass(frozen=True)
class ResidentBytes:
    """Bytes that a `ResidentMerger` and its model hold.

    Attributes:
        sources: the sources' tensors, in the dtype they are stored in.
        model: the one model that is overwritten.
        workspace: float32 scratch memory, and parts of sources that lie elsewhere in the dtype they are stored in.
    """

    sources: int
    model: int
    workspace: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.sources + self.model + self.workspace


def resident_bytes(
    method: MergeMethod,
    target: Mapping[str, TensorShape],
    sources: Mapping[str, Mapping[str, TensorShape]],
    *,
    base: str | None = None,
    chunk_elements: int = CHUNK_ELEMENTS,
    transferred: bool = False,
    as_mergekit: bool = False,
) -> ResidentBytes:
    """The most that a resident merge holds, when no row is longer than a chunk.

    Args:
        method: the merge method.
        target: the model's parameters by canonical name, in the dtype that is evaluated.
        sources: source name to the tensors that are read from it.
        base: the source that task vectors are taken from.
        chunk_elements: as given to `ResidentMerger`.
        as_mergekit: whether the option `arithmetic: mergekit` is set, which copies whole tensors.
        transferred: whether sources lie elsewhere than the model and come to its device part by part.
    """
    buffers, parts = 0, 0
    for name, tensor in target.items():
        inputs = [tensors[name].dtype for tensors in sources.values() if name in tensors]
        if inputs:
            buffers = max(buffers, sum(dtype != torch.float32 for dtype in [tensor.dtype, *inputs]))
            parts = max(parts, sum(dtype.itemsize for dtype in inputs))
    names = method.merged_sources(sources, base, None)
    uniform = method.uniform(tuple(sources), base)
    if uniform is not None and method.prepare is None:
        buffers += method.bind(uniform, names, {}).n_buffers
    else:  # how many such a method takes depends on its coefficients
        buffers = most_buffers(len(sources))
    whole = max(math.prod(tensor.shape) for tensor in target.values()) if as_mergekit else 0
    return ResidentBytes(
        sources=sum(_n_bytes(tensors) for tensors in sources.values()),
        model=_n_bytes(target),
        workspace=chunk_elements * (4 * buffers + parts * transferred) + MERGEKIT_BYTES * len(sources) * whole,
    )


def _n_bytes(tensors: Mapping[str, TensorShape]) -> int:
    return sum(math.prod(tensor.shape) * tensor.dtype.itemsize for tensor in tensors.values())
