"""Exact order statistics of whole tensors that are only ever seen part by part.

The bits of a float32 that is not negative, read as an integer, are in the order of the numbers. So a radix
select over two digits of 16 bits finds the k-th largest: the counts of all high digits, which are made once and
kept, say in which of them it lies, and one more pass counts the low digits there. Nothing is sorted, and memory
beyond one part is some counts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch

from mergesearch.merging.kernel import Part, Site, Workspace

Values: TypeAlias = Callable[[Part], torch.Tensor]
"""From a part to the numbers whose order is asked for: float32, none negative (nor −0)."""

DIGIT = 1 << 16

ROW = 32

SMALL = 1 << 14
"""Tensors of up to so many elements are sorted once, and every k is looked up."""


def kth_largest(
    site: Site, work: Workspace, what: str, values: Values, k: int, *, of: tuple[str, ...] | None = None
) -> float:
    """The k-th largest (from 1) of the tensor's values, exactly.

    Args:
        site: which tensor.
        work: scratch memory.
        what: name of the values, for what is remembered of them.
        values: makes them of a part.
        k: between 1 and the number of elements.
        of: the sources that decide the values; all by default.
    """
    if site.n_elements <= SMALL:

        def everything() -> torch.Tensor:
            return torch.cat([values(part).view(-1).clone() for part in site.parts()]).sort(descending=True).values

        return float(site.remember(f"{what}, sorted", everything, of=of)[k - 1])

    counted = site.remember(f"{what}, high digits", lambda: _high_digits(site, work, values), of=of)
    digits, counts = counted.unbind()
    up_to = counts.cumsum(0)  # the largest digit comes first
    i = int(torch.searchsorted(up_to, k))
    digit, rest = int(digits[i]), k - int(up_to[i] - counts[i])

    def select() -> torch.Tensor:
        low_digits = _low_digits(site, work, values, digit).flip(0).cumsum(0).cpu()
        low = DIGIT - 1 - int(torch.searchsorted(low_digits, rest))
        return torch.tensor(digit * DIGIT + low, dtype=torch.int32).view(torch.float32)

    return float(site.remember(f"{what}, {k}-th largest", select, of=of, lasting=False))


def _high_digits(site: Site, work: Workspace, values: Values) -> torch.Tensor:
    """Digits that occur, from the largest, and how often: int64 [2, number of digits]."""
    counts = sum(torch.bincount(_split(values(part), work)[1], minlength=DIGIT // 2) for part in site.parts())
    assert isinstance(counts, torch.Tensor)
    digits = counts.nonzero().view(-1).flip(0)
    return torch.stack([digits, counts[digits]])


def _low_digits(site: Site, work: Workspace, values: Values, digit: int) -> torch.Tensor:
    """How often each low digit occurs below this high digit: int64 [DIGIT]."""

    def count(part: Part) -> torch.Tensor:
        bits, high = _split(values(part), work)
        # A digit occurs in few rows, and looking for those first takes a third of the time.
        here = torch.eq(high, digit, out=high)
        n_rows = bits.numel() // ROW
        rows = here[: n_rows * ROW].view(n_rows, ROW).amax(1).nonzero().view(-1)
        near = torch.cat([bits[: n_rows * ROW].view(n_rows, ROW)[rows].view(-1), bits[n_rows * ROW :]])
        return torch.bincount(near[near >> 16 == digit] % DIGIT, minlength=DIGIT)

    counts = sum(count(part) for part in site.parts())
    assert isinstance(counts, torch.Tensor)
    return counts


def _split(values: torch.Tensor, work: Workspace) -> tuple[torch.Tensor, torch.Tensor]:
    """The bits of the values and their high digits, as flat int32."""
    bits = values.view(-1).view(torch.int32)
    return bits, torch.bitwise_right_shift(bits, 16, out=work.take(values).view(-1).view(torch.int32))
