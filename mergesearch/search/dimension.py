"""One searched number: its range or its values, and the ways in which strategies see it."""

from __future__ import annotations

import bisect
import itertools
import json
import math
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

DIGITS = 12
"""Significant digits of a proposed number: enough for any merge, few enough to survive every database."""
SHOWN_CHARACTERS = 48
"""Of a text that is a choice."""


@dataclass(frozen=True)
class Dimension:
    """A searched number.

    Attributes:
        name: the parameter's name in the study, for example `weight.domain.segment_1`.
        low: smallest value.
        high: largest value.
        step: distance of neighbouring values; None when every number of the range may be taken. A whole
            number of steps fits the range.
        log: the range is searched on a logarithmic scale (never together with `step` or `values`).
        values: the values in ascending order, where they were listed one by one.
        names: of what the values number, from 0; people are shown these.
        ordered: False for choices whose numbers say nothing about what they have in common, such as prompts.
    """

    name: str
    low: float
    high: float
    step: float | None = None
    log: bool = False
    values: tuple[float, ...] | None = None
    names: tuple[str, ...] = ()
    ordered: bool = True

    def __post_init__(self) -> None:
        ordered = math.isfinite(self.low) and math.isfinite(self.high) and self.low <= self.high
        scale = not self.log or (self.low > 0 and self.step is None and self.values is None)
        stepped = self.step is None or (self.step > 0 and steps_fit(self.low, self.high, self.step))
        if not (ordered and scale and stepped):
            raise ValueError(f"not a dimension: {self}")

    @classmethod
    def of_values(cls, name: str, values: tuple[float, ...]) -> Dimension:
        """A dimension that takes the listed values, given in any order."""
        ordered = tuple(sorted(values))
        return cls(name, ordered[0], ordered[-1], values=ordered)

    @cached_property
    def _choices(self) -> tuple[float, ...] | None:
        if self.values is not None:
            return self.values
        if self.low == self.high:
            return (self.low,)
        if self.step is None:
            return None
        # Decimals give 0.3 where 0.1 + 2 × 0.1 gives 0.30000000000000004.
        low, step = Decimal(repr(self.low)), Decimal(repr(self.step))
        n = int((Decimal(repr(self.high)) - low) / step) + 1
        return tuple(float(low + k * step) for k in range(n))

    def choices(self) -> tuple[float, ...] | None:
        """All values in ascending order, or None where there is a continuum of them."""
        return self._choices

    @property
    def single(self) -> bool:
        """Whether there is only one value, so nothing to search."""
        return self._choices is not None and len(self._choices) == 1

    @cached_property
    def _even_step(self) -> float | None:
        """The common distance of listed values, where they have one exactly."""
        if self.values is None or len(self.values) < 2:
            return None
        exact = [Decimal(repr(v)) for v in self.values]
        gaps = {b - a for a, b in itertools.pairwise(exact)}
        return float(gaps.pop()) if len(gaps) == 1 else None

    def distribution(self) -> BaseDistribution:
        """How Optuna records the parameter: its real values, as numbers wherever Optuna can express them."""
        if self.single:
            return FloatDistribution(self.low, self.low)
        if self._by_rank or not self.ordered:
            return CategoricalDistribution(self.values or ())
        return FloatDistribution(self.low, self.high, log=self.log, step=self.step or self._even_step)

    @cached_property
    def _by_rank(self) -> bool:
        return self.values is not None and self._even_step is None and not self.single and self.ordered

    def sampling_distribution(self) -> BaseDistribution:
        """How samplers see it: uneven values by rank, because a categorical would forget an order that there is."""
        if self._by_rank:
            return IntDistribution(0, len(self.values or ()) - 1)
        return self.distribution()

    def to_sampling(self, value: float) -> float | int:
        """`value` in terms of `sampling_distribution`."""
        return self.index(value) if self._by_rank else self.snap(value)

    def from_sampling(self, value: Any) -> float:
        """The value that a sampler meant."""
        if self._by_rank and self.values is not None:
            return self.values[int(value)]
        return self.snap(float(value))

    def index(self, value: float) -> int:
        """Position of the choice closest to `value`."""
        choices = self._choices or ()
        after = bisect.bisect_left(choices, value)
        neighbours = range(max(after - 1, 0), min(after + 1, len(choices)))
        return min(neighbours, key=lambda k: abs(choices[k] - value))

    def snap(self, value: float) -> float:
        """The permitted value closest to `value`; continuous ones are rounded to `DIGITS` digits."""
        return self.nearest(float(f"{value:.{DIGITS}g}")) if self._choices is None else self.nearest(value)

    def nearest(self, value: float) -> float:
        """The permitted value closest to `value`, which is kept to its last digit where it is permitted."""
        if self._choices is not None:
            return self._choices[self.index(value)]
        return min(max(value, self.low), self.high)

    def contains(self, value: float) -> bool:
        """Whether `value` is permitted, up to rounding in its last digits."""
        return math.isfinite(value) and math.isclose(self.snap(value), value, rel_tol=1e-9, abs_tol=1e-12)

    def to_unit(self, value: float) -> float:
        """`value` as a position in [0, 1]: by rank for choices, on the log scale where the range has one."""
        if self._choices is not None:
            return self.index(value) / max(1, len(self._choices) - 1)
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def from_unit(self, position: float) -> float:
        """The permitted value at a position in [0, 1]; positions outside are moved to the nearest end."""
        position = min(max(position, 0.0), 1.0)
        if self._choices is not None:
            return self._choices[round(position * (len(self._choices) - 1))]
        if self.log:
            return self.snap(self.low * (self.high / self.low) ** position)
        return self.snap(self.low + position * (self.high - self.low))

    def evenly(self, points: int) -> tuple[float, ...]:
        """`points` (≥ 2) values from low to high, evenly spaced on the range's own scale."""
        return tuple(self.from_unit(k / (points - 1)) for k in range(points))

    def shown(self, value: float) -> str:
        """A value as people read it."""
        if not self.names:
            return f"{value:.4g}"
        name = self.names[round(value)]
        return name if self.ordered else _quoted(name, round(value))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        if self.values is not None:
            named = {} if self.ordered else {"choices": list(self.names)}
            return {"name": self.name, "values": list(self.values), **named}
        plain: dict[str, Any] = {"name": self.name, "low": self.low, "high": self.high}
        if self.step is not None:
            plain["step"] = self.step
        if self.log:
            plain["log"] = True
        return plain


def _quoted(text: str, number: int) -> str:
    """A text in quotes; of a long one the beginning, and its number, from 0, which tells it from others."""
    if len(text) <= SHOWN_CHARACTERS:
        return json.dumps(text, ensure_ascii=False)
    return f"{json.dumps(text[:SHOWN_CHARACTERS].rstrip() + '…', ensure_ascii=False)} (no. {number})"


def steps_fit(low: float, high: float, step: float) -> bool:
    """Whether a whole number of steps leads from low to high, judged by the numbers as they are written."""
    return (Decimal(repr(high)) - Decimal(repr(low))) % Decimal(repr(step)) == 0
