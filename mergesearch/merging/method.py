"""`MergeMethod`: what a kernel's signature declares, and the checks and calls that follow from it."""

from __future__ import annotations

import keyword
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from mergesearch.errors import MergeError, unknown
from mergesearch.merging.declared import (
    ARITHMETIC,
    EQUAL,
    Bound,
    Coefficient,
    Coefficients,
    OneShot,
    Option,
    OptionValue,
    Shorthand,
)
from mergesearch.merging.kernel import Measured, Part, Site, Workspace
from mergesearch.merging.statistics import Statistics
from mergesearch.recipe import CoefficientValue, MergeRecipe


@dataclass(frozen=True)
class MergeMethod:
    """A merge method: its kernel, and everything that the kernel's signature declares.

    Attributes:
        name: as in study files and recipes.
        title: for people.
        paper: URL.
        doc: the kernel's docstring.
        coefficients: what is searched, by name.
        options: what is fixed, by name.
        measured: what is measured of the sources, by name.
        needs_base: a base must be named.
        takes_base: a base may be named.
        min_sources: fewest sources, base left out.
        max_sources: most sources, base left out; None for any number.
        by_rows: parts are blocks of whole rows, not flat.
        properties: the claims of `PROPERTIES` that hold.
        dense: the method, this one aside, that it equals at density 1; "" if it has no density or no such method.
        parity: how its results compare to mergekit's, in a sentence; "" if mergekit has no such method.
        shorthands: ways to write the coefficients as one number.
        one_shot: what to merge with where nothing is searched; None where a coefficient has to be given.
        kernel: the function itself.
        mergekit: the same from whole tensors in their stored dtype, as mergekit computes it; None if it does not.
        prepare: finds out what the kernel must know of a whole tensor.
        alone: (index of a source, number of sources) to coefficients that give that source exactly.
        wants: which of the given words (see `merging/kernel.py`) the kernel asks for.
        prepare_wants: `site`, `work`, coefficients and options that `prepare` asks for.
    """

    name: str
    title: str
    paper: str
    doc: str
    coefficients: Mapping[str, Coefficient]
    options: Mapping[str, Option]
    measured: Mapping[str, Measured]
    needs_base: bool
    takes_base: bool
    min_sources: int
    max_sources: int | None
    by_rows: bool
    properties: frozenset[str]
    dense: str
    parity: str
    shorthands: Mapping[str, Shorthand]
    one_shot: OneShot | None
    kernel: Callable[..., torch.Tensor]
    mergekit: Callable[..., torch.Tensor] | None
    prepare: Callable[..., Any] | None
    alone: Callable[[int, int], dict[str, CoefficientValue]] | None
    wants: frozenset[str]
    prepare_wants: frozenset[str]

    def merged_sources(self, sources: Iterable[str], base: str | None, template: str | None) -> tuple[str, ...]:
        """The sources that have coefficients, in the order the kernel sees them.

        Symmetric methods see them by name: floating-point sums depend on their order, and a study file whose
        sources are listed differently should still give the same weights to the bit. The others see the
        template first, and then the rest as listed.
        """
        names = [name for name in sources if name != base]
        if "symmetric" in self.properties:
            return tuple(sorted(names))
        return tuple(sorted(names, key=lambda name: name != template))

    def sources_of(self, recipe: MergeRecipe) -> tuple[str, ...]:
        """The sources of a recipe that have coefficients, in the order in which they are merged.

        mergekit sees them as they are listed, and so does its arithmetic here.
        """
        names = [source.name for source in recipe.sources]
        if _as_mergekit(recipe.options):
            return tuple(name for name in names if name != recipe.base)
        return self.merged_sources(names, recipe.base, recipe.template)

    def coefficients_for_source(
        self, source: str, sources: Sequence[str], base: str | None = None, template: str | None = None
    ) -> dict[str, CoefficientValue] | None:
        """Coefficients whose merge is `source` alone, or None if the method has none.

        Args:
            source: one of `sources`.
            sources: all of them; the base may be among them.
            base: what task vectors are taken from.
            template: the source that methods which are not symmetric see first.
        """
        if self.alone is not None and source != base:
            names = self.merged_sources(sources, base, template)
            return self._with_defaults(self.alone(names.index(source), len(names)))
        if "one_hot" not in self.properties or (source == base and "zero_task_vectors" not in self.properties):
            return None
        return self._with_weights({name: float(name == source) for name in sources if name != base})

    def uniform(self, sources: Sequence[str], base: str | None = None) -> dict[str, CoefficientValue] | None:
        """Equal weights that sum to 1 and defaults for the rest, or None if the method has no weights."""
        names = [name for name in sources if name != base]
        return self._with_weights({name: 1 / len(names) for name in names})

    def one_shot_value(self, name: str, n_sources: int) -> float | None:
        """What a coefficient is where nothing is searched; None where it has to be given.

        Args:
            name: of a coefficient, or of a shorthand for equal weights.
            n_sources: how many are merged, base left out.
        """
        declared = {} if self.one_shot is None else self.one_shot.coefficients
        if name in self.shorthands:
            return 1 / n_sources if declared.get("weight") == EQUAL else None
        value = declared.get(name, self.coefficients[name].default)
        return 1 / n_sources if value == EQUAL else None if value is None else float(value)

    def _with_weights(self, weights: Mapping[str, float]) -> dict[str, CoefficientValue] | None:
        return self._with_defaults({"weight": dict(weights)}) if "weight" in self.coefficients else None

    def _with_defaults(self, given: Mapping[str, CoefficientValue]) -> dict[str, CoefficientValue] | None:
        others = [c for c in self.coefficients.values() if c.name not in given]
        if any(c.default is None for c in others):
            return None
        return {**given, **{c.name: c.default for c in others if c.default is not None}}

    def measured_sources(
        self, name: str, sources: Sequence[str], options: Mapping[str, OptionValue]
    ) -> tuple[str, ...]:
        """The sources whose measurement `name` matters.

        Args:
            name: of a measurement.
            sources: names in the order of `merged_sources`.
            options: options that differ from their defaults.
        """
        defaults = {option.name: option.default for option in self.options.values()}
        return tuple(self.measured[name].of(sources, {**defaults, **options}))

    def validate(
        self,
        coefficients: Coefficients,
        *,
        sources: Sequence[str] | None = None,
        options: Mapping[str, OptionValue] | None = None,
    ) -> None:
        """Refuse coefficients that no merge can be built from.

        Args:
            coefficients: of one group.
            sources: names of the sources, base left out; None to take them from `coefficients`.
            options: options that differ from their defaults.

        Raises:
            MergeError: listing everything that is wrong.
        """
        if sources is None:
            per_source = [value for value in coefficients.values() if isinstance(value, Mapping)]
            sources = (
                sorted(set().union(*per_source)) if per_source else [f"source {i}" for i in range(self.min_sources)]
            )
        self.bind(coefficients, sources, options or {})

    def check(self, recipe: MergeRecipe) -> dict[str, Bound]:
        """Refuse a recipe of this method that cannot be followed, before anything is overwritten.

        Returns:
            Group name to what its kernel calls take, for the groups that are merged.

        Raises:
            MergeError: listing everything that is wrong, by group.
        """
        names = self.sources_of(recipe)
        bound: dict[str, Bound] = {}
        problems: list[str] = []
        if self.needs_base and recipe.base is None:
            problems.append(f"{self.name} takes task vectors from a base, and none is named: set `base`.")
        elif recipe.base is not None and not self.takes_base:
            problems.append(f"{self.name} takes no base, but {recipe.base!r} is named as one: leave `base` out.")
        elif recipe.base is not None and all(source.name != recipe.base for source in recipe.sources):
            problems.append(unknown("base", recipe.base, [source.name for source in recipe.sources]))
        if len(names) < self.min_sources or (self.max_sources is not None and len(names) > self.max_sources):
            most = "more" if self.max_sources is None else f"at most {self.max_sources}"
            found = ", ".join(names) or "none"
            problems.append(f"{self.name} merges {self.min_sources} or {most} sources (base left out); found {found}.")
        if not problems:  # what follows would only repeat them
            for group in recipe.groups:
                if group.copy_from is None:
                    try:
                        bound[group.name] = self.bind(group.coefficients, names, recipe.options)
                    except MergeError as error:
                        problems.append(f"group {group.name!r}: {error}")
        if problems:
            raise MergeError("\n".join(problems))
        return bound

    def bind(self, coefficients: Coefficients, sources: Sequence[str], options: Mapping[str, OptionValue]) -> Bound:
        """Turn a group's coefficients into the kernel's arguments and try them out.

        Args:
            coefficients: of one group.
            sources: names of the sources, in the order in which they are merged.
            options: options that differ from their defaults.

        Raises:
            MergeError: listing unknown and missing names, values out of range and options of another type; or
                what the kernel itself has against these coefficients.
        """
        known = (*self.coefficients, *self.measured)
        problems = [
            *(unknown(f"coefficient of {self.name}", n, known) for n in coefficients if n not in known),
            *(unknown(f"option of {self.name}", n, self.options) for n in options if n not in self.options),
        ]
        arguments: dict[str, Any] = {}
        for name, coefficient in self.coefficients.items():
            value = coefficients.get(name, coefficient.default)
            if value is None:
                problems.append(f"{self.name} needs the coefficient {name!r}: {coefficient.doc}")
            elif coefficient.per_source:
                by_source = value if isinstance(value, Mapping) else dict.fromkeys(sources, value)
                problems += _per_source_problems(coefficient, by_source, sources, sources)
                arguments[kernel_parameter(name)] = [float(by_source.get(source, math.nan)) for source in sources]
            elif isinstance(value, Mapping):
                problems.append(f"{name} is one number per group, not one per source as in {dict(value)}.")
            elif coefficient.names_sources:
                wrong = replace(coefficient, high=len(sources) - 1).problems(value)
                problems += wrong
                arguments[kernel_parameter(name)] = 0 if wrong else int(value)
            else:
                problems += coefficient.problems(value)
                arguments[kernel_parameter(name)] = float(value)
        for name, measured in self.measured.items():
            number = Coefficient(name, True, -math.inf, math.inf, None, False, measured.doc)
            needed = self.measured_sources(name, sources, options)
            value = coefficients.get(name, {})
            by_source = value if isinstance(value, Mapping) else dict.fromkeys(needed, value)
            problems += _per_source_problems(number, by_source, needed, sources)
            arguments[kernel_parameter(name)] = [float(by_source.get(source, math.nan)) for source in sources]
        for name, option in self.options.items():
            setting = options.get(name, option.default)
            if not option.accepts(setting):
                problems.append(f"option {name} is {option.wanted}, not {setting!r}: {option.doc}")
            arguments[kernel_parameter(name)] = setting
        if problems:
            raise MergeError("\n".join(problems))
        if self.mergekit is not None:
            del arguments[ARITHMETIC.name]
        return self._rehearse(arguments, len(sources), _as_mergekit(options))

    def _rehearse(self, arguments: Mapping[str, Any], n_sources: int, as_mergekit: bool) -> Bound:
        """Call the kernel on unit vectors: it sees every coefficient, and nothing is overwritten yet.

        For a linear map the result holds the factor of every input. Their absolute sum bounds what the merge can
        make of finite inputs, so that merged weights need not be read again to know them finite.
        """
        shape = (1, n_sources + 1) if self.by_rows else (n_sources + 1,)
        *tensors, base = torch.eye(n_sources + 1).view(-1, *shape).unbind()
        part = Part(tensors, base, 0)
        work = Workspace(n_sources + 1, torch.device("cpu"))
        names = tuple(str(i) for i in range(n_sources))
        content = {name: name for name in (*names, "base")}
        site = Site("rehearsal", shape, names, "base", 0, lambda: iter([part]), Statistics(), content)
        prepared = self.prepare_for(site, arguments, work)
        result = self.call(arguments, part, torch.empty(shape), work, site, prepared)
        factors = tuple(result.view(-1).tolist()) if "linear_map" in self.properties else None
        return Bound(arguments, as_mergekit, factors, work.n_buffers)

    def prepare_for(self, site: Site, arguments: Mapping[str, Any], work: Workspace) -> Any:
        """What the kernel must know of the whole tensor at `site`; None for methods that need nothing."""
        if self.prepare is None:
            return None
        given = {"site": site, "work": work, **arguments}
        return self.prepare(**{name: given[name] for name in self.prepare_wants})

    def call(
        self, arguments: Mapping[str, Any], part: Part, out: torch.Tensor, work: Workspace, site: Site, prepared: Any
    ) -> torch.Tensor:
        """Call the kernel with what its signature asks for; the contract is that of `merging/kernel.py`."""
        given = {
            "tensors": part.tensors, "base": part.base, "start": part.start,
            "out": out, "work": work, "site": site, "prepared": prepared,
        }  # fmt: skip
        return self.kernel(**{name: given[name] for name in self.wants}, **arguments)


def _as_mergekit(options: Mapping[str, OptionValue]) -> bool:
    return options.get(ARITHMETIC.name) == "mergekit"


def kernel_parameter(name: str) -> str:
    """What a coefficient or option is called in the kernel: `lambda` is no Python name, `lambda_` is."""
    return f"{name}_" if keyword.iskeyword(name) else name


def _per_source_problems(
    coefficient: Coefficient, by_source: Mapping[str, float], needed: Sequence[str], sources: Sequence[str]
) -> list[str]:
    problems = [f"{coefficient.name} has no value for source {n!r}." for n in needed if n not in by_source]
    for name, value in by_source.items():
        if name in sources:
            problems += coefficient.problems(value, name)
        else:
            problems.append(unknown(f"source in {coefficient.name}", name, sources))
    return problems
