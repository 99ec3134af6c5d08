"""From a study file's `merge.coefficients` to a `SearchSpace`.

Every coefficient of every merged group gets a number or a dimension. What may be written:

```yaml
coefficients:
  alpha: {values: [0, .25, .5, .75, 1]}     # a shorthand: one dimension per group, `alpha.segment_1`, …
  weight:                                   # a coefficient per source
    retriever: 1.0                          # a constant
    domain: {low: 0, high: 1, step: .05}    # one dimension per group: `weight.domain.segment_1`, …
    expert: {segment_1: {low: 0, high: 1}, segment_2: .5}
  t: {attention: {low: 0, high: 1, knots: 3}, mlp: .5, norms: .5}     # by component, where `groups.components` is set
  lambda: {low: .1, high: 2, log: true, tie: groups}      # one value for all groups: `lambda`
  density: {low: .2, high: 1, knots: 3}     # a gradient over depth: `density.knot_1`, `density.knot_2`, …
  gamma: [0, .01, .1]                       # a gradient that is not searched
  source: {values: [retriever, domain]}     # a choice of sources, by name; as a parameter it is a source's number
```

A component stands for its groups, one of which may have an entry of its own beside it: it makes one dimension per
group, or with `knots` or `tie: groups` its own (`t.attention.knot_1`). A range or number directly under a coefficient
per source stands for every source. `tie` makes one dimension of several: `groups`, `sources` or `all`. A gradient's
numbers are spread evenly from the first layer to the last; a group has what straight lines between them give at its
middle layer (`mergesearch.search.gradients`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from mergesearch.errors import Problem, StudyFileError, unknown
from mergesearch.search.dimension import Dimension
from mergesearch.search.gradients import knot_shares, knots_told_apart, mix, tidy
from mergesearch.search.points import Binding, GroupCoefficients, Meaning, SearchSpace
from mergesearch.search.prompts import around
from mergesearch.search.ranges import Bounds, Range, is_range, read_range

if TYPE_CHECKING:
    from mergesearch.recipe import CoefficientValue
    from mergesearch.search.declarations import MethodDeclaration, ShorthandDeclaration

__all__ = ["Dimension", "SearchSpace", "build_space"]


def build_space(
    method: MethodDeclaration,
    *,
    sources: Sequence[str],
    groups: Mapping[str, float],
    template: str,
    config: Mapping[str, Any],
    base: str | None = None,
    prompts: Sequence[Dimension] = (),
    searched: bool = True,
) -> SearchSpace:
    """The space that `merge.coefficients` of a study file describes.

    Args:
        method: what the merge method declares.
        sources: the sources that have coefficients (the base left out).
        groups: the merged parameter groups, in model order, and their depths from 0 (first layer) to 1 (last).
        template: the source that a shorthand's value belongs to.
        config: plain Python values, as read from YAML.
        base: the source that task vectors are taken from.
        prompts: dimensions that have no say in coefficients.
        searched: there has to be something to search; else it may be one point.

    Raises:
        StudyFileError: with every problem; places are relative to `merge.coefficients`.
    """
    builder = _Builder(method, tuple(sources), groups, template)
    builder.read(config)
    space = builder.finish(prompts, searched=searched)
    named = dict.fromkeys([*sources, *([] if base is None else [base])])
    alone = {s: method.coefficients_for_source(s, list(sources), base, template) for s in named}
    points = {s: space.locate(dict.fromkeys(groups, c)) for s, c in alone.items() if c is not None}
    unmerged = tuple(p for p in points.values() if p is not None)
    return replace(space, template=points.get(template), unmerged=unmerged)


_COMPONENT = re.compile(r"(?:decoder_)?(?:segment|layer)_\d+_(\w+)")
_Entry = float | tuple[float, ...] | Range
"""A constant, the constants of a gradient, or what is searched."""
_Shares = tuple[tuple[str, float], ...]
"""Names of dimensions with their shares, as in `Binding`."""


@dataclass(frozen=True)
class _Meaning:
    """What a dimension's value sets: a coefficient, for one source, for several, or for the group."""

    coefficient: str
    sources: tuple[str, ...] | None

    def __call__(self, value: float) -> Mapping[str, CoefficientValue]:
        return {self.coefficient: value if self.sources is None else dict.fromkeys(self.sources, value)}


@dataclass(frozen=True)
class _Expansion:
    """What a shorthand's value sets."""

    shorthand: ShorthandDeclaration
    template: str
    sources: tuple[str, ...]

    def __call__(self, value: float) -> Mapping[str, CoefficientValue]:
        expanded = self.shorthand.expand(value, self.template, self.sources)
        return {
            k: {s: tidy(x) for s, x in v.items()} if isinstance(v, Mapping) else tidy(v) for k, v in expanded.items()
        }


@dataclass
class _Use:
    """A dimension and its place among the others: first group, coefficient, source, knot."""

    dimension: Dimension
    rank: tuple[int, int, int, int]


class _Builder:
    """Reads the mapping once, collecting cells and problems."""

    def __init__(
        self, method: MethodDeclaration, sources: tuple[str, ...], groups: Mapping[str, float], template: str
    ) -> None:
        self._method, self._sources, self._template = method, sources, template
        self._groups, self._depths = tuple(groups), groups
        self._components: dict[str, list[str]] = {}
        for group in groups:
            if found := _COMPONENT.fullmatch(group):
                self._components.setdefault(found[1], []).append(group)
        self._problems: list[Problem] = []
        self._uses: dict[str, _Use] = {}
        # By group, coefficient and the shares of dimensions there: the sources that have the value.
        self._cells: dict[tuple[str, str, _Shares], list[str | None]] = {}
        self._constants: dict[tuple[str, str | None, str], float] = {}
        self._covered: set[str] = set()

    def read(self, config: Mapping[str, Any]) -> None:
        method = self._method
        if not isinstance(config, Mapping):
            raise StudyFileError([f"expected a mapping of coefficients, found {config!r}"])
        for name in sorted({*self._groups, *self._components}.intersection(self._sources)):
            self._problem("is the name of a source and of a parameter group: rename the source", name)
        shorthands = [name for name in config if name in method.shorthands]
        for name, entry in config.items():
            if name in shorthands:
                self._read_shorthand(name, entry)
            elif name in method.coefficients:
                self._read_coefficient(name, entry)
            else:
                self._problem(
                    unknown(f"coefficient of {method.name}", name, [*method.coefficients, *method.shorthands]),
                    name,
                )
        for name, declared in method.coefficients.items():
            if name in self._covered:
                if name in config:
                    self._problem(f"is already given by {', '.join(shorthands)}; keep one of them", name)
            elif name not in config and declared.default is None:
                instead = [s for s in method.shorthands if method.shorthands[s].n_sources == len(self._sources)]
                hint = f", or write {' or '.join(instead)}" if instead else ""
                self._problem(f"{method.name} needs it: give a number or a range{hint}", name)

    def finish(self, prompts: Sequence[Dimension], *, searched: bool) -> SearchSpace:
        if searched and not self._uses and not prompts and not self._problems:
            self._problem("there is nothing to search: give at least one {values: […]} or {low: …, high: …}")
        if self._problems:
            raise StudyFileError(self._problems)
        defaults = {n: c.default for n, c in self._method.coefficients.items() if c.default is not None}
        constants: dict[str, GroupCoefficients] = {group: {} for group in self._groups}
        for group in self._groups:
            for name, default in defaults.items():
                if name not in self._covered:
                    per_source = self._method.coefficients[name].per_source
                    constants[group][name] = dict.fromkeys(self._sources, default) if per_source else default
        for (name, source, group), value in self._constants.items():
            if name in self._method.shorthands:
                constants[group].update(self._expansion(name)(value))
            elif source is None:
                constants[group][name] = value
            else:
                before = cast("Mapping[str, float]", constants[group].get(name, {}))
                constants[group][name] = {**before, source: value}
        bindings = [
            Binding(dict(shares), (group,), self._meaning(coefficient, tuple(s for s in named if s is not None)))
            for (group, coefficient, shares), named in self._cells.items()
        ]
        dimensions = (use.dimension for use in sorted(self._uses.values(), key=lambda use: use.rank))
        return SearchSpace(around(prompts, dimensions), self._groups, constants, tuple(bindings), defaults)

    def _meaning(self, coefficient: str, sources: tuple[str, ...]) -> Meaning:
        if coefficient in self._method.shorthands:
            return self._expansion(coefficient)
        return _Meaning(coefficient, sources or None)

    def _expansion(self, shorthand: str) -> _Expansion:
        return _Expansion(self._method.shorthands[shorthand], self._template, self._sources)

    def _problem(self, message: str, *keys: str) -> None:
        self._problems.append(Problem(message, ".".join(keys)))

    def _read_shorthand(self, name: str, entry: object) -> None:
        shorthand = self._method.shorthands[name]
        if len(self._sources) != shorthand.n_sources:
            found = ", ".join(self._sources)
            self._problem(f"stands for the coefficients of {shorthand.n_sources} sources, and there are "
                          f"{len(self._sources)} ({found}): write out the coefficients", name)  # fmt: skip
            return
        try:
            covered = set(self._expansion(name)(shorthand.low if math.isfinite(shorthand.low) else 0.0))
        except ValueError as error:
            self._problem(str(error), name)
            return
        if covered & self._covered:
            self._problem("two shorthands for the same coefficients: keep one of them", name)
        self._covered |= covered
        self._read_groups(name, entry, Bounds(shorthand.low, shorthand.high, log=False), None, (name,))

    def _read_coefficient(self, name: str, entry: object) -> None:
        declared = self._method.coefficients[name]
        names = self._method.merged_sources(self._sources, None, self._template) if declared.names_sources else ()
        bounds = Bounds(declared.low, declared.high, declared.log, names)
        if not declared.per_source:
            self._read_groups(name, entry, bounds, None, (name,))
        elif not isinstance(entry, Mapping) or is_range(entry) or entry.keys() & set(self._named()):
            self._read_groups(name, entry, bounds, self._sources, (name,))
        else:
            for source, inner in entry.items():
                if source in self._sources:
                    self._read_groups(name, inner, bounds, (source,), (name, source))
                else:
                    known = [*self._sources, *self._named()]
                    self._problem(unknown("source or group", source, known), name, source)
            for source in self._sources:
                if source not in entry and declared.default is None:
                    self._problem(f"has no value for source {source!r}", name)

    def _read_groups(
        self,
        name: str,
        entry: object,
        bounds: Bounds,
        sources: tuple[str, ...] | None,
        keys: tuple[str, ...],
    ) -> None:
        """An entry for all groups, or a mapping of groups; `sources` None for one number per group."""
        if not isinstance(entry, Mapping) or is_range(entry):
            spec = self._read_entry(entry, bounds, keys)
            for group in self._groups:
                self._fill(name, spec, sources, group, keys)
            return
        for group, inner in entry.items():
            if group not in self._named():
                self._problem(unknown("group", group, self._named()), *keys, group)
                continue
            spec = self._read_entry(inner, bounds, (*keys, group))
            if group in self._components:
                for member in self._components[group]:
                    if member not in entry:
                        self._fill(name, spec, sources, member, (*keys, group), component=group)
                continue
            if isinstance(spec, Range) and spec.tie in ("groups", "all"):
                self._problem("cannot be tied over groups: write the range above the groups", *keys, group, "tie")
            elif isinstance(spec, tuple) or (isinstance(spec, Range) and spec.knots):
                self._problem(
                    "a gradient runs over all groups: write it in place of the groups, or give every group a number or "
                    "a range without knots",
                    *(*keys, group),
                )
            self._fill(name, spec, sources, group, keys)
        declared = self._method.coefficients.get(name)
        given = {member for key in entry for member in self._components.get(key, [key])}
        for group in self._groups:
            if group not in given and (declared is None or declared.default is None):
                self._problem(f"has no value for group {group!r}", *keys)

    def _fill(
        self,
        name: str,
        spec: _Entry | None,
        sources: tuple[str, ...] | None,
        group: str,
        keys: tuple[str, ...],
        component: str | None = None,
    ) -> None:
        """Note what a group has; of an entry for a whole component, dimensions are named after that."""
        if spec is None:
            return
        depth = self._depths[group]
        if isinstance(spec, tuple):
            spec = mix(dict(enumerate(spec)), knot_shares(depth, len(spec)))
        if isinstance(spec, float):
            self._constants |= {(name, source, group): spec for source in sources or (None,)}
            return
        # "all" of a coefficient that is one number per group can only mean its groups.
        over_sources = spec.tie == "sources" or (spec.tie == "all" and sources is not None)
        if over_sources and sources != self._sources:
            self._problem("`tie: sources` belongs directly under a coefficient per source", *keys, "tie")
            return
        order = list(self._method.coefficients) + list(self._method.shorthands)
        for index, source in enumerate(sources or (None,)):
            parts = [name]
            if source is not None and spec.tie not in ("sources", "all"):
                parts.append(source)
            shares = {0: 1.0} if spec.knots is None else knot_shares(depth, spec.knots)
            named = []
            for knot, share in shares.items():
                over_groups = spec.tie in ("groups", "all")
                last = [] if over_groups else [group if spec.knots is None else f"knot_{knot + 1}"]
                first = [component] if component is not None and (over_groups or spec.knots is not None) else []
                label = ".".join([*parts, *first, *last])
                rank = (
                    self._groups.index(group),
                    order.index(name),
                    index if source is None else self._sources.index(source),
                    knot,
                )
                self._uses.setdefault(label, _Use(spec.named(label), rank))
                named.append((label, share))
            self._cells.setdefault((group, name, tuple(named)), []).append(source)

    def _read_entry(self, entry: object, bounds: Bounds, keys: tuple[str, ...]) -> _Entry | None:
        """A number, a list of them, or a range; None when it is none of these, which is then among the problems."""
        if isinstance(entry, Mapping):
            return self._read_range(entry, bounds, keys)
        if isinstance(entry, list | tuple) and not bounds.names:
            values = [self._read_number(inner, bounds, keys) for inner in entry]
            if len(values) < 2:
                self._problem(f"a gradient has two or more numbers, found {entry!r}", *keys)
                return None
            return None if None in values else tuple(value for value in values if value is not None)
        return self._read_number(entry, bounds, keys)

    def _read_number(self, entry: object, bounds: Bounds, keys: tuple[str, ...]) -> float | None:
        value = bounds.value(entry)
        if value is None:
            ranges = " or {values: […]}" if bounds.names else ", {values: […]} or {low: …, high: …}"
            self._problem(bounds.not_a_value(entry, ranges), *keys)
        elif outside := bounds.outside(value):
            self._problem(outside, *keys)
        return value

    def _named(self) -> tuple[str, ...]:
        """What entries by group may be called."""
        return (*self._groups, *self._components)

    def _read_range(self, entry: Mapping[str, Any], bounds: Bounds, keys: tuple[str, ...]) -> Range | None:
        beside = [key for key in entry if key in self._named()]
        for group in beside:
            self._problem("a range for all groups and one for this group: list every group, or none", *keys, group)
        spec, found = read_range({k: v for k, v in entry.items() if k not in beside}, bounds)
        for key, message in found:
            self._problem(message, *keys, *([key] if key else []))
        if spec is not None and bounds.names:
            spec = replace(spec, shape=replace(spec.shape, names=bounds.names))
        if spec is not None and spec.knots is not None:
            known = knots_told_apart(set(self._depths.values()), spec.knots)
            if known < spec.knots:
                advice = f"take {known} knots" if known > 1 else "leave out `knots`"
                self._problem(
                    f"the depths of the groups tell only {known} of {spec.knots} knots apart: {advice}, or divide the "
                    "model into more segments (`per_layer: true` makes the most)",
                    *(*keys, "knots"),
                )
        return spec
