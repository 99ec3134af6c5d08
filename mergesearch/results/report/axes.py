"""Axes of figures: numbers or names to places, and ticks that people can read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

MARGIN = 0.04
"""Of the extent of the data, left free at both ends."""


def number(value: Any) -> bool:
    """Whether it is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def categories(values: Sequence[Any]) -> tuple[str, ...] | None:
    """The names on an axis in the order in which they come; None for an axis of numbers."""
    names = [v for v in values if isinstance(v, str)]
    return tuple(dict.fromkeys(names)) if names else None


@dataclass(frozen=True)
class Axis:
    """Values to places.

    Attributes:
        low, high: ends of the axis in its own terms: logarithms on a logarithmic one, positions of names from 0.
        ticks: (value, label).
        names: of a categorical axis.
        log: logarithmic.
        start, end: pixels of `low` and `high`.
    """

    low: float
    high: float
    ticks: tuple[tuple[Any, str], ...]
    names: tuple[str, ...] | None = None
    log: bool = False
    start: float = 0.0
    end: float = 1.0

    @classmethod
    def over(cls, values: Sequence[Any], *, wanted: int, log: bool = False, limits: Any = None) -> Axis:
        """An axis that holds all values, with about `wanted` ticks; or one with limits, as plotly's `range`."""
        names = categories(values)
        if names is not None:
            step = max(1, math.ceil(len(names) / max(wanted, 1))) if len(names) > 40 else 1
            ticks = tuple((name, name) for name in names[::step])
            return cls(-0.5, len(names) - 0.5, ticks, names=names)
        numbers = [float(v) for v in values if number(v) and (not log or v > 0)]
        ends = [math.log10(v) for v in numbers] if log else numbers
        limited = limits is not None and all(map(number, limits))
        if limited:
            ends = [float(v) for v in limits]  # plotly's ranges of logarithmic axes are exponents, too
        low, high = (min(ends), max(ends)) if ends else (0.0, 1.0)
        if high - low < 1e-12:
            room = abs(high) * 0.05 or 0.5
            low, high = low - room, high + room
        elif not limited:
            room = MARGIN * (high - low)
            low, high = (low if low == 0 else low - room), high + room
        return cls(low, high, _ticks(low, high, wanted, log), log=log)

    def placed(self, start: float, end: float) -> Axis:
        """The same axis between two pixels."""
        return replace(self, start=start, end=end)

    def ticked(self, ticks: Sequence[tuple[Any, str]]) -> Axis:
        """The same axis with ticks of one's own."""
        low, high = sorted((self.low, self.high))
        own = [(v, label) for v, label in ticks if self.names is not None or low <= v <= high]
        return replace(self, ticks=tuple(own))

    def __call__(self, value: Any) -> float:
        """The pixel of a value."""
        if self.names is not None:
            own = float(self.names.index(value)) if isinstance(value, str) else float(value)
        else:
            own = math.log10(max(value, 1e-300)) if self.log else float(value)
        return self.start + (own - self.low) / (self.high - self.low) * (self.end - self.start)

    def spacing(self, values: Sequence[Any]) -> float:
        """Pixels between neighbouring values."""
        places = sorted({self(v) for v in values if isinstance(v, str) or number(v)})
        gaps = [b - a for a, b in pairwise(places)]
        return min(gaps) if gaps else 0.4 * abs(self.end - self.start)


def _ticks(low: float, high: float, wanted: int, log: bool) -> tuple[tuple[float, str], ...]:
    if log and high - low >= 1:
        every = max(1, round((high - low) / wanted))
        return tuple((10.0**e, _power(e)) for e in range(math.ceil(low), math.floor(high) + 1, every))
    if log:
        return tuple((v, label) for v, label in _ticks(10**low, 10**high, wanted, log=False) if v > 0)
    rough = (high - low) / max(wanted, 1)
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(m * size for m in (1, 2, 2.5, 5, 10) if m * size >= rough * 0.999)
    decimals = max(0, -math.floor(math.log10(step)) + (1 if round(step / size, 6) == 2.5 else 0))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return tuple((k * step, _plain(k * step, decimals)) for k in range(first, last + 1))


def _plain(value: float, decimals: int) -> str:
    text = f"{value:,.{decimals}f}"
    return text.replace("-", "−") if float(value or 0) else text.replace("-", "")


def _power(exponent: int) -> str:
    return (
        f"{10**exponent:,}" if 0 <= exponent <= 4 else f"{10.0**exponent:g}" if -4 <= exponent < 0 else f"1e{exponent}"
    )
