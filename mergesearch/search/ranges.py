"""Numbers and ranges as a study file writes them, checked against what the method allows."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from mergesearch.errors import unknown
from mergesearch.search.dimension import Dimension, steps_fit

if TYPE_CHECKING:
    from collections.abc import Mapping

MOST_CHOICES = 100_000
"""Values that one dimension may list; beyond that a continuous range says the same."""

RANGE_KEYS = ("values", "low", "high", "step", "log", "tie", "knots")
MOST_KNOTS = 100
_TIES = ("groups", "sources", "all")


@dataclass(frozen=True)
class Range:
    """A searched number as it was written, already checked.

    Attributes:
        shape: the range, still without a name.
        tie: what shares the number.
        knots: how many such numbers make a gradient; None where the groups have a number each.
    """

    shape: Dimension
    tie: Literal["groups", "sources", "all"] | None
    knots: int | None = None

    def named(self, name: str) -> Dimension:
        """The range as a dimension of the space."""
        return replace(self.shape, name=name)


class Found(NamedTuple):
    """Something wrong with a range: under which of its keys ("" for the whole), and what."""

    key: str
    message: str


def is_range(entry: Mapping[Any, Any]) -> bool:
    """Whether a mapping is a range rather than a mapping of sources or groups."""
    return any(key in RANGE_KEYS for key in entry)


def number(value: object) -> float | None:
    """`value` as a float; None when it is no finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # an integer that no float can hold
        return None


@dataclass(frozen=True)
class Bounds:
    """What the method allows, and the scale it suggests."""

    low: float
    high: float
    log: bool
    names: tuple[str, ...] = ()
    """The sources whose numbers, from 0, are the values; empty where values are just numbers."""

    def value(self, written: object) -> float | None:
        """What was written as a float, a source's name as its number; None when it is neither."""
        return float(self.names.index(written)) if written in self.names else number(written)

    def not_a_value(self, written: object, or_else: str = "") -> str:
        """Says that `written` is neither."""
        if self.names and isinstance(written, str):
            return unknown("source", written, self.names)
        return f"expected {'the name of a source' if self.names else 'a number'}{or_else}, found {written!r}"

    def outside(self, value: float) -> str | None:
        """What is wrong with `value`, or None."""
        if self.names and value not in range(len(self.names)):
            return f"{value:g} is the number of no source: write a name ({', '.join(self.names)})"
        if self.low <= value <= self.high:
            return None
        return f"{value:g} is outside of what the method allows, {self.low:g} to {self.high:g}"


def read_range(entry: Mapping[str, Any], bounds: Bounds) -> tuple[Range | None, list[Found]]:
    """A range as it was written, or everything that is wrong with it."""
    if bounds.names and ("values" not in entry or not entry.keys() <= {"values", "tie"}):
        return None, [Found("", f"sources are listed by name: {{values: [{', '.join(bounds.names)}]}}")]
    found = [Found(str(k), unknown("key", str(k), RANGE_KEYS)) for k in entry if k not in RANGE_KEYS]
    if entry.get("tie") not in (None, *_TIES):
        found.append(Found("tie", unknown("tie", str(entry["tie"]), _TIES)))
    knots = entry.get("knots")
    if knots is not None:
        if isinstance(knots, bool) or not isinstance(knots, int) or not 2 <= knots <= MOST_KNOTS:
            found.append(Found("knots", f"expected a whole number from 2 to {MOST_KNOTS}, found {knots!r}"))
        if entry.get("tie") in ("groups", "all"):
            found.append(Found("tie", "one value for all groups is no gradient: leave out `tie` or `knots`"))
    shape = _listed(entry, bounds, found) if "values" in entry else _from_to(entry, bounds, found)
    return (None if found or shape is None else Range(shape, entry.get("tie"), knots)), found


def _from_to(entry: Mapping[str, Any], bounds: Bounds, found: list[Found]) -> Dimension | None:
    low, high = (_required(entry, key, found) for key in ("low", "high"))
    step, log = _step(entry, found), _log(entry, found)
    if low is None or high is None:
        return None
    found += [Found(key, m) for key, value in (("low", low), ("high", high)) if (m := bounds.outside(value))]
    if low > high:
        found.append(Found("", f"low {low:g} is above high {high:g}"))
    elif log and low <= 0:
        found.append(Found("low", f"a logarithmic range starts above 0, found {low:g}"))
    elif log and step is not None:
        found.append(Found("step", "a logarithmic range has no step: list `values`, or leave out one of the two"))
    elif step is not None and not steps_fit(low, high, step):
        last = float(
            Decimal(repr(low)) + (Decimal(repr(high)) - Decimal(repr(low))) // Decimal(repr(step)) * Decimal(repr(step))
        )
        found.append(Found("step", f"steps of {step:g} from {low:g} do not end at {high:g}: the last is {last:g}"))
    elif step is not None and (high - low) / step >= MOST_CHOICES:
        found.append(Found("step", f"gives more than {MOST_CHOICES:,} values; leave it out to search the whole range"))
    if found:
        return None
    if low == high:
        return Dimension("", low, high)
    natural = bounds.log and low > 0 and step is None
    return Dimension("", low, high, step, natural if log is None else log)


def _required(entry: Mapping[str, Any], key: str, found: list[Found]) -> float | None:
    value = number(entry.get(key))
    if value is None:
        found.append(Found(key, f"expected a number, found {entry[key]!r}" if key in entry else "is required"))
    return value


def _step(entry: Mapping[str, Any], found: list[Found]) -> float | None:
    written = entry.get("step")
    step = number(written)
    if written is not None and (step is None or step <= 0):
        found.append(Found("step", f"expected a number above 0, found {written!r}"))
        return None
    return step


def _log(entry: Mapping[str, Any], found: list[Found]) -> bool | None:
    written = entry.get("log")
    if isinstance(written, bool | None):
        return written
    found.append(Found("log", f"expected true or false, found {written!r}"))
    return None


def _listed(entry: Mapping[str, Any], bounds: Bounds, found: list[Found]) -> Dimension | None:
    beside = [k for k in ("low", "high", "step", "log") if k in entry]
    if beside:
        found.append(Found("values", f"cannot stand beside {', '.join(beside)}"))
    listed = entry["values"]
    if not isinstance(listed, list | tuple) or not 0 < len(listed) <= MOST_CHOICES:
        found.append(Found("values", f"expected a list of numbers, found {str(listed)[:80]}"))
        return None
    numbers = [bounds.value(v) for v in listed]
    known = [n for n in numbers if n is not None]
    wrong = [bounds.not_a_value(v) for v, n in zip(listed, numbers, strict=True) if n is None]
    wrong += [message for n in known if (message := bounds.outside(n))]
    wrong += [f"{n:g} is listed twice" for n, times in Counter(known).items() if times > 1]
    found += [Found("values", message) for message in wrong]
    return None if found else Dimension.of_values("", tuple(known))
