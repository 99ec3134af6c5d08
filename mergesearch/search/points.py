"""The search space: points of named numbers, and the coefficients that every point stands for.

`mergesearch.search.space.build_space` makes one from a study file.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from mergesearch.errors import Problem, StudyFileError, unknown
from mergesearch.recipe import CoefficientValue
from mergesearch.search.dimension import DIGITS, Dimension
from mergesearch.search.gradients import mix

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

GroupCoefficients = dict[str, CoefficientValue]
"""Coefficient name to its value, or to one value per source."""
Params = dict[str, float]
"""A point: dimension name to value."""
Point = tuple[float, ...]
"""A point as its values in the order of the dimensions, rounded: what equal points have in common."""


class Meaning(Protocol):
    """What one number means inside a group; a straight line in it."""

    def __call__(self, value: float) -> Mapping[str, CoefficientValue]:
        """The coefficients that `value` sets."""


@dataclass(frozen=True)
class Binding:
    """Dimensions, the groups they act on and what their values set there.

    Attributes:
        shares: dimension name to its share in the number that `meaning` is given; positive, with the sum 1. One
            dimension with share 1, or the two knots of a gradient that the groups lie between.
        groups: names of groups.
        meaning: from that number to coefficients.
    """

    shares: Mapping[str, float]
    groups: tuple[str, ...]
    meaning: Meaning


@dataclass(frozen=True)
class SearchSpace:
    """Points of named numbers, and the coefficients that every point stands for.

    Attributes:
        dimensions: what is searched; those of lower groups come first, so that a grid in this order repeats
            prefixes (the lowest layers change least often).
        groups: the merged parameter groups, in model order.
        constants: the coefficients of every group that are not searched.
        bindings: how values of dimensions become coefficients.
        defaults: coefficient name to the value it has where nothing is said.
        template: the point that is the template source alone, where the space holds it.
        unmerged: points that are a source alone, one of each source that the space holds alone.
    """

    dimensions: tuple[Dimension, ...]
    groups: tuple[str, ...]
    constants: Mapping[str, GroupCoefficients]
    bindings: tuple[Binding, ...]
    defaults: Mapping[str, float] = field(default_factory=dict)
    template: Mapping[str, float] | None = None
    unmerged: tuple[Mapping[str, float], ...] = ()
    _known: dict[tuple[tuple[str, Any], ...], Point | None] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @cached_property
    def by_name(self) -> dict[str, Dimension]:
        """Dimension name to dimension."""
        return {d.name: d for d in self.dimensions}

    @cached_property
    def free(self) -> tuple[Dimension, ...]:
        """The dimensions that have more than one value."""
        return tuple(d for d in self.dimensions if not d.single)

    def is_unmerged(self, params: Mapping[str, float]) -> bool:
        """Whether the merge at a point is a source alone; dimensions that no coefficient depends on have no say."""
        names = [d.name for d in self.dimensions if d.name in self._bound]
        here = {name: self.by_name[name].snap(params[name]) for name in names}
        return any(
            all(math.isclose(here[n], alone[n], rel_tol=1e-9, abs_tol=1e-12) for n in names) for alone in self.unmerged
        )

    @cached_property
    def _bound(self) -> frozenset[str]:
        """Names of the dimensions that coefficients depend on."""
        return frozenset(name for binding in self.bindings for name in binding.shares)

    def distributions(self) -> dict[str, BaseDistribution]:
        """What Optuna records for every parameter."""
        return {d.name: d.distribution() for d in self.dimensions}

    def size(self) -> int | None:
        """How many points there are; None for a continuum."""
        counts = [len(c) if (c := d.choices()) is not None else None for d in self.dimensions]
        known = [n for n in counts if n is not None]
        return math.prod(known) if len(known) == len(counts) else None

    def grid(self) -> Iterator[Params]:
        """All points of a finite space; the first dimensions vary slowest."""
        choices = [c for d in self.dimensions if (c := d.choices()) is not None]
        for values in itertools.product(*choices):
            yield {d.name: v for d, v in zip(self.dimensions, values, strict=True)}

    def snap(self, params: Mapping[str, Any]) -> Params:
        """The point of the space closest to `params`, which name every dimension."""
        return {d.name: d.snap(float(params[d.name])) for d in self.dimensions}

    def contains(self, params: Mapping[str, Any]) -> bool:
        """Whether `params` name every dimension and nothing else, with permitted values."""
        return params.keys() == self.by_name.keys() and all(
            isinstance(v, int | float) and self.by_name[k].contains(float(v)) for k, v in params.items()
        )

    def label(self, params: Mapping[str, float]) -> str:
        """A point in words, for people."""
        return ", ".join(f"{name}={self.by_name[name].shown(value)}" for name, value in params.items())

    def point(self, params: Mapping[str, float]) -> Point:
        """What equal points have in common, whatever a database did to their last digits."""
        return tuple(float(f"{d.snap(params[d.name]):.{DIGITS}g}") for d in self.dimensions)

    def find(self, params: Mapping[str, Any]) -> Point | None:
        """The identity of the point that a trial's parameters name; None when they are none of this space.

        Remembered, because strategies look at every trial whenever they are asked.
        """
        key = tuple(params.items())
        if key not in self._known:
            self._known[key] = self.point(params) if self.contains(params) else None
        return self._known[key]

    def coefficients(self, params: Mapping[str, float]) -> dict[str, GroupCoefficients]:
        """The coefficients of every merged group at a point.

        Raises:
            StudyFileError: when `params` is no point of this space, with every reason.
        """
        self._check(params)
        found: dict[str, GroupCoefficients] = {
            group: {k: dict(v) if isinstance(v, Mapping) else v for k, v in self.constants[group].items()}
            for group in self.groups
        }
        values = {d.name: d.nearest(params[d.name]) for d in self.dimensions}
        for binding in self.bindings:
            for name, value in binding.meaning(mix(values, binding.shares)).items():
                for group in binding.groups:
                    _set(found[group], name, value)
        return found

    def locate(self, coefficients: Mapping[str, Mapping[str, CoefficientValue]]) -> Params | None:
        """The point that gives exactly these coefficients, or None when the space has none.

        Coefficients that are not named count as having their default.
        """
        if coefficients.keys() != set(self.groups):
            return None
        wanted = {g: _flatten(c) for g, c in coefficients.items()}
        solved = self._solve(wanted)
        if not all(d.contains(solved[d.name]) for d in self.dimensions):
            return None
        params = {d.name: d.nearest(solved[d.name]) for d in self.dimensions}
        given = {g: _flatten(c) for g, c in self.coefficients(params).items()}
        same = all(self._equal(given[g], wanted[g]) for g in self.groups)
        return params if same else None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, for the study's record: equal for spaces with equal points and meanings."""
        ends = [{d.name: d.low for d in self.dimensions}, {d.name: d.high for d in self.dimensions}]
        plain: dict[str, Any] = {
            "dimensions": [d.to_dict() for d in self.dimensions],
            # What a value means is code; its effect at both ends of every range is data that can be compared.
            "coefficients_at_low": self.coefficients(ends[0]),
            "coefficients_at_high": self.coefficients(ends[1]),
        }
        if any(len(b.shares) > 1 for b in self.bindings):
            plain["shares"] = [[list(b.groups), dict(b.shares)] for b in self.bindings]
        return plain

    def _check(self, params: Mapping[str, float]) -> None:
        problems = [Problem(unknown("parameter", k, self.by_name)) for k in params if k not in self.by_name]
        for d in self.dimensions:
            if d.name not in params:
                problems.append(Problem("has no value", d.name))
            elif not d.contains(params[d.name]):
                nearest = f"{d.snap(params[d.name]):g}" if math.isfinite(params[d.name]) else f"{d.low:g}"
                problems.append(Problem(f"{params[d.name]:g} is not in the space; the closest is {nearest}", d.name))
        if problems:
            raise StudyFileError(problems)

    def _solve(self, wanted: Mapping[str, _Flat]) -> Params:
        """The only values that can give what is wanted; whether they do, and are permitted, is not looked at."""
        params = {d.name: d.low for d in self.dimensions if d.single}
        gradients: list[tuple[Mapping[str, float], float]] = []
        for binding in self.bindings:
            number = self._number(binding, wanted[binding.groups[0]])
            if number is not None and len(binding.shares) > 1:
                gradients.append((binding.shares, number))
            elif number is not None:
                (name,) = binding.shares
                params.setdefault(name, number)
        unknown_knots = list(dict.fromkeys(k for shares, _ in gradients for k in shares if k not in params))
        if unknown_knots:
            # Seen from one of the numbers, so that equal numbers give equal knots to the last digit.
            origin = gradients[0][1]
            seen = {**params, **dict.fromkeys(unknown_knots, origin)}
            matrix = [[shares.get(k, 0.0) for k in unknown_knots] for shares, _ in gradients]
            gaps = [number - mix(seen, shares) for shares, number in gradients]
            steps = np.linalg.lstsq(np.array(matrix), np.array(gaps), rcond=None)[0].tolist()
            for k, step in zip(unknown_knots, steps, strict=True):
                params[k] = float(f"{origin + step:.{DIGITS}g}") if step else origin
        return {d.name: params.get(d.name, d.low) for d in self.dimensions}

    def _number(self, binding: Binding, wanted: _Flat) -> float | None:
        """The number whose meaning is wanted, found from two others; None where none or every number may do."""
        low = min(self.by_name[k].low for k in binding.shares)
        high = max(self.by_name[k].high for k in binding.shares)
        at_low, at_high = _flatten(binding.meaning(low)), _flatten(binding.meaning(high))
        for key, start in at_low.items():
            if at_high[key] != start:
                target = self._wanted(wanted, key)
                return None if target is None else low + (target - start) / (at_high[key] - start) * (high - low)
        return None

    def _equal(self, ours: _Flat, theirs: _Flat) -> bool:
        names = {name for name, _ in ours}
        if not all(key in ours or (key[1] is None and key[0] in names) for key in theirs):
            return False
        return all(
            (other := self._wanted(theirs, key)) is not None and math.isclose(value, other, rel_tol=1e-9, abs_tol=1e-12)
            for key, value in ours.items()
        )

    def _wanted(self, theirs: _Flat, key: tuple[str, str | None]) -> float | None:
        """What `theirs` say about `key`; one number for a coefficient counts for each of its sources."""
        return theirs.get(key, theirs.get((key[0], None), self.defaults.get(key[0])))


_Flat = dict[tuple[str, str | None], float]


def _flatten(coefficients: Mapping[str, CoefficientValue]) -> _Flat:
    flat: _Flat = {}
    for name, value in coefficients.items():
        if isinstance(value, Mapping):
            flat.update({(name, source): float(v) for source, v in value.items()})
        else:
            flat[(name, None)] = float(value)
    return flat


def _set(group: GroupCoefficients, name: str, value: CoefficientValue) -> None:
    """Write a coefficient; values per source are added to those that are there."""
    before = group.get(name)
    if isinstance(value, Mapping) and isinstance(before, Mapping):
        group[name] = {**before, **value}
    else:
        group[name] = dict(value) if isinstance(value, Mapping) else value
