"""The words a merge kernel is written in: what it is given, and how its signature declares what is searched.

A kernel is a plain function on tensors that knows no device, file or configuration. Its parameters say what
it needs, by name and by annotation:

    tensors: Tensors                          the sources, base left out
    base: torch.Tensor                        source of the task vectors; `| None = None` if it may be absent
    out: torch.Tensor                         where the result may be written
    work: Workspace                           scratch memory that is used again for every chunk
    site: Site                                which tensor of which model this is (whole-tensor kernels only)
    weight: Annotated[PerSource, Range(...)]  a coefficient: one number per source, in the order of `tensors`
    t: Annotated[float, Range(...)]           a coefficient: one number per group
    normalize: Annotated[bool, Doc(...)]      an option, which is fixed and not searched

The caller guarantees that all tensors are float32, finite, of one shape, on one device, and that `out` shares
no memory with any of them. A kernel returns a float32 tensor of that shape: `out`, or one that it owns. It
leaves its inputs as they are. Elementwise kernels see flat chunks; the others see whole tensors, shaped as
they are in the model.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Hashable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

Tensors: TypeAlias = Sequence[torch.Tensor]
PerSource: TypeAlias = Sequence[float]


@dataclass(frozen=True)
class Doc:
    """Marks an option in a kernel's signature and says what it does."""

    text: str


@dataclass(frozen=True)
class Range:
    """Marks a coefficient: values that make sense, ends included, and whether its logarithm is searched."""

    doc: str
    low: float = -math.inf
    high: float = math.inf
    log: bool = False


class Workspace:
    """Float32 scratch memory on one device, kept between calls.

    Fresh tensors of several MiB cost a page fault for every 4 KiB that is touched, which takes longer than
    the arithmetic on them; used again, they stay in the cache.

    Args:
        chunk_elements: size of one buffer. Larger requests get memory of their own that is not kept.
        device: where the buffers lie.
    """

    def __init__(self, chunk_elements: int, device: torch.device) -> None:
        self._chunk_elements = chunk_elements
        self._device = device
        self._buffers: list[torch.Tensor] = []
        self._taken = 0

    def take(self, like: torch.Tensor) -> torch.Tensor:
        """An uninitialised float32 tensor of the shape of `like`, valid until `release`."""
        if like.numel() > self._chunk_elements:
            return torch.empty(like.shape, dtype=torch.float32, device=self._device)
        if self._taken == len(self._buffers):
            self._buffers.append(torch.empty(self._chunk_elements, dtype=torch.float32, device=self._device))
        self._taken += 1
        return self._buffers[self._taken - 1][: like.numel()].view(like.shape)

    def release(self) -> None:
        """Take back everything that was handed out."""
        self._taken = 0

    @property
    def n_buffers(self) -> int:
        """The most buffers that were ever in use at once."""
        return len(self._buffers)

    @property
    def n_bytes(self) -> int:
        """Memory that is kept."""
        return 4 * self._chunk_elements * len(self._buffers)


@dataclass(frozen=True)
class Site:
    """Which tensor a kernel works on, for random masks and for statistics that outlive a trial.

    Attributes:
        method: name of the merge method.
        tensor: canonical name of the tensor.
        sources: names of the sources, in the order of the kernel's `tensors`.
        seed: the recipe's seed.
        memory: what `remember` fills; it lives as long as the sources do.
    """

    method: str
    tensor: str
    sources: tuple[str, ...]
    seed: int
    memory: MutableMapping[Hashable, Any]

    def generator(self, source: str) -> torch.Generator:
        """A fresh CPU generator that seed, method, source and tensor decide; worker, device and order do not.

        Coefficients are left out on purpose: trials that differ in density only then share their uniform
        draws, and their scores differ by the density and not by the luck of the draw.
        """
        key = "\0".join((str(self.seed), self.method, source, self.tensor))
        digest = hashlib.sha256(key.encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)

    def remember(self, key: Hashable, build: Callable[[], Any]) -> Any:
        """`build()` the first time, its result ever after. For what only the sources and `key` decide."""
        key = (self.method, self.tensor, key)
        if key not in self.memory:
            self.memory[key] = build()
        return self.memory[key]
