"""The words a merge kernel is written in: what it is given, and how its signature declares what is searched.

A kernel is a plain function on parts of tensors that knows no device, file or configuration. Its parameters
say what it needs, by name and by annotation:

    tensors: Tensors                          the sources, base left out
    base: torch.Tensor                        source of the task vectors; `| None = None` if it may be absent
    out: torch.Tensor                         where the result may be written
    work: Workspace                           scratch memory that is used again for every part
    site: Site                                which tensor of which model this is a part of
    start: int                                where in the flat tensor the part begins
    prepared: ...                             what the method's `prepare` found out about the whole tensor
    weight: Annotated[PerSource, Range(...)]  a coefficient: one number per source, in the order of `tensors`
    t: Annotated[float, Range(...)]           a coefficient: one number per group
    source: Annotated[int, Choice(...)]       a coefficient: one of the sources per group, its place in `tensors`
    normalize: Annotated[bool, Doc(...)]      an option, which is fixed and not searched
    loss: Annotated[PerSource, Measured(...)] one number per source that is measured on examples, and not searched

The caller guarantees that all tensors are float32, finite, of one shape, on one device, and that `out` shares
no memory with any of them. A kernel returns a float32 tensor of that shape: `out`, or one that it owns. It
leaves its inputs as they are. Parts are flat, or blocks of whole rows for a method that is declared `by_rows`.

What a kernel must know of a whole tensor (a norm, a threshold) its method's `prepare` function finds out
beforehand. It takes `site`, from which it reads the tensor part by part, `work` if it needs scratch memory for a
part, and those of the kernel's coefficients and options that it names. So no merge needs a copy of a tensor,
however large that is.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch

from mergesearch.merging.statistics import Statistics

Tensors: TypeAlias = Sequence[torch.Tensor]
PerSource: TypeAlias = Sequence[float]


@dataclass(frozen=True)
class Doc:
    """Marks an option in a kernel's signature: what it does and, for a number, its range, ends included."""

    text: str
    low: float = -math.inf
    high: float = math.inf


@dataclass(frozen=True)
class Range:
    """Marks a coefficient: values that make sense, ends included, and whether its logarithm is searched."""

    doc: str
    low: float = -math.inf
    high: float = math.inf
    log: bool = False


@dataclass(frozen=True)
class Measured:
    """Marks what is measured of every source before the search: its loss on the study's examples.

    Attributes:
        doc: one sentence.
        of: (sources in the kernel's order, all options) to the sources whose number matters; the kernel sees NaN
            for the others.
    """

    doc: str
    of: Callable[[Sequence[str], Mapping[str, bool | float | str]], Sequence[str]]


@dataclass(frozen=True)
class Choice:
    """Marks a coefficient that is the number of a source, from 0 in the order of `tensors`; study files write names."""

    doc: str


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
        self.device = device
        self._buffers: list[torch.Tensor] = []
        self._taken = 0

    def take(self, like: torch.Tensor) -> torch.Tensor:
        """An uninitialised float32 tensor of the shape of `like`, valid until `release`."""
        if like.numel() > self._chunk_elements:
            return torch.empty(like.shape, dtype=torch.float32, device=self.device)
        if self._taken == len(self._buffers):
            self._buffers.append(torch.empty(self._chunk_elements, dtype=torch.float32, device=self.device))
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
class Part:
    """A piece of one tensor in all sources: flat, or a block of whole rows; float32.

    Attributes:
        tensors: the sources, base left out.
        base: the base, if there is one.
        start: where in the flat tensor the piece begins.
    """

    tensors: Tensors
    base: torch.Tensor | None
    start: int


@dataclass(frozen=True)
class Site:
    """One tensor of the model, for statistics of the whole and for random masks.

    Attributes:
        tensor: canonical name of the tensor.
        shape: its shape.
        sources: names of the sources, in the order of the kernel's `tensors`.
        base: name of the base, or None.
        seed: the recipe's seed.
        parts: gives the whole tensor, part by part; a part is valid until the next one is asked for.
        statistics: what `remember` fills.
        content: source name to the hash of what it holds.
    """

    tensor: str
    shape: tuple[int, ...]
    sources: tuple[str, ...]
    base: str | None
    seed: int
    parts: Callable[[], Iterator[Part]]
    statistics: Statistics
    content: Mapping[str, str]

    @property
    def n_elements(self) -> int:
        """Elements of the tensor."""
        return math.prod(self.shape)

    def remember(
        self, key: str, build: Callable[[], torch.Tensor], *, of: Sequence[str] | None = None, lasting: bool = True
    ) -> torch.Tensor:
        """`build()` the first time, its result ever after, in this process and where statistics are kept on disk.

        Args:
            key: what it is: the kind of the statistic and every number that decides it.
            build: makes a small tensor, which lands on the CPU.
            of: names of the sources, base included, that it is a statistic of; all by default.
            lasting: False for what follows from a coefficient, of which a search makes one after the other: only
                the latest of those are kept, and in memory.
        """
        everything = (*self.sources, self.base) if self.base is not None else self.sources
        owners = tuple(self.content[name] for name in (everything if of is None else of))
        return self.statistics.recall((key, self.tensor, *owners), build, lasting=lasting)

    def uniform(self, source: str, start: int, out: torch.Tensor) -> torch.Tensor:
        """Fill `out` with uniform random numbers of [0, 1), multiples of 2⁻²⁴.

        They are a hash of seed, source, tensor and position: worker, device, order and the size of parts have no
        say in them. Method and coefficients are left out on purpose: trials that differ in density only then
        share their draws, and their scores differ by the density and not by the luck of the draw.

        Args:
            source: whose mask it is.
            start: position of the first element in the flat tensor.
            out: float32.
        """
        key = hashlib.sha256("\0".join((str(self.seed), source, self.tensor)).encode()).digest()
        first, second = (int.from_bytes(key[i : i + 4], "little", signed=True) for i in (0, 4))
        bits = torch.arange(start, start + out.numel(), dtype=torch.int64, device=out.device).to(torch.int32)
        for salt in (first, second):
            _mix(bits.bitwise_xor_(salt))
        return out.view(-1).copy_(_shifted(bits, 8)).mul_(2.0**-24).view(out.shape)


def _shifted(bits: torch.Tensor, n: int) -> torch.Tensor:
    """Shift to the right without copies of the sign, which int32 has."""
    return torch.bitwise_right_shift(bits, n).bitwise_and_((1 << (32 - n)) - 1)


def _mix(bits: torch.Tensor) -> None:
    """In place, an invertible hash of 32 bits: shifts and odd factors of https://github.com/skeeto/hash-prospector."""
    for shift, factor in ((16, 0x7FEB352D), (15, -0x7B935975)):  # the second is 0x846CA68B as an int32
        bits.bitwise_xor_(_shifted(bits, shift)).mul_(factor)
    bits.bitwise_xor_(_shifted(bits, 16))
