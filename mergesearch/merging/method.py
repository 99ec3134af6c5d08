"""`MergeMethod`: what a kernel's signature declares, and the checks and calls that follow from it."""

from __future__ import annotations

import keyword
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch

from mergesearch.errors import MergeError, unknown
from mergesearch.merging.kernel import Site, Tensors, Workspace
from mergesearch.recipe import CoefficientValue, MergeRecipe

Coefficients = Mapping[str, CoefficientValue]
OptionValue = bool | float | str

PROPERTIES: Mapping[str, str] = MappingProxyType(
    {
        "one_hot": "weight 1 for one source, 0 for the others and defaults else give that source exactly",
        "symmetric": "the order of the sources does not matter",
        "zero_task_vectors": "sources equal to the base give the base exactly, whatever the coefficients",
        "linear_map": "the result is Σ cᵢ·tensorᵢ with cᵢ that no tensor has a say in",
    }
)
"""What a method may claim about itself. The conformance suite tests every claim."""


@dataclass(frozen=True)
class Coefficient:
    """A number that is searched.

    Attributes:
        name: as in study files and recipes.
        per_source: one number per source (base left out) rather than one per group.
        low: smallest allowed value; may be -inf.
        high: largest allowed value; may be inf.
        default: used where a recipe does not name it; None if it must be given.
        log: whether it is best searched on a logarithmic scale.
        doc: one sentence.
    """

    name: str
    per_source: bool
    low: float
    high: float
    default: float | None
    log: bool
    doc: str

    def problems(self, value: float, source: str = "") -> list[str]:
        """What is wrong with a value, NaN and infinities included; empty if nothing is."""
        if math.isfinite(value) and self.low <= value <= self.high:
            return []
        where = f" of source {source!r}" if source else ""
        return [f"{self.name}{where} is {value}; it must be finite and lie in [{self.low}, {self.high}]."]


@dataclass(frozen=True)
class Option:
    """A setting that is fixed for a study: a bool, a number or a word."""

    name: str
    default: OptionValue
    type: type[bool] | type[float] | type[str]
    doc: str

    def accepts(self, setting: OptionValue) -> bool:
        """Whether `setting` is of this option's type; a whole number is a number, a bool is not."""
        if self.type is float:
            return isinstance(setting, int | float) and not isinstance(setting, bool)
        return isinstance(setting, self.type)


@dataclass(frozen=True)
class Shorthand:
    """One number that stands for the coefficients of exactly `n_sources` sources.

    Attributes:
        name: as in study files.
        n_sources: how many sources (base left out) there must be.
        low: smallest allowed value.
        high: largest allowed value.
        doc: one sentence.
        expand: (value, template, sources) to the coefficients that it stands for.
    """

    name: str
    n_sources: int
    low: float
    high: float
    doc: str
    expand: Callable[[float, str, Sequence[str]], dict[str, CoefficientValue]]


@dataclass(frozen=True)
class Bound:
    """Coefficients and options of one group as a kernel takes them, tried out on a few numbers.

    Attributes:
        arguments: the kernel's keyword arguments.
        growth: no element of a result is larger than `growth` times the largest element of the inputs; inf if
            that cannot be known.
        n_buffers: workspace buffers that the kernel took.
    """

    arguments: Mapping[str, Any]
    growth: float
    n_buffers: int


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
        needs_base: a base must be named.
        takes_base: a base may be named.
        min_sources: fewest sources, base left out.
        max_sources: most sources, base left out; None for any number.
        elementwise: the kernel may be called on flat chunks.
        properties: the claims of `PROPERTIES` that hold.
        shorthands: ways to write the coefficients as one number.
        kernel: the function itself.
        wants: which of `tensors`, `base`, `out`, `work` and `site` the kernel asks for.
    """

    name: str
    title: str
    paper: str
    doc: str
    coefficients: Mapping[str, Coefficient]
    options: Mapping[str, Option]
    needs_base: bool
    takes_base: bool
    min_sources: int
    max_sources: int | None
    elementwise: bool
    properties: frozenset[str]
    shorthands: Mapping[str, Shorthand]
    kernel: Callable[..., torch.Tensor]
    wants: frozenset[str]

    def merged_sources(self, sources: Iterable[str], base: str | None) -> tuple[str, ...]:
        """The sources that have coefficients, in the order the kernel sees them.

        Symmetric methods see them by name: floating-point sums depend on their order, and a study file whose
        sources are listed differently should still give the same weights to the bit.
        """
        names = [name for name in sources if name != base]
        return tuple(sorted(names) if "symmetric" in self.properties else names)

    def coefficients_for_source(
        self, source: str, sources: Sequence[str], base: str | None = None
    ) -> dict[str, CoefficientValue] | None:
        """Coefficients whose merge is `source` alone, or None if the method has none.

        Args:
            source: one of `sources`.
            sources: all of them; the base may be among them.
            base: what task vectors are taken from.
        """
        if "one_hot" not in self.properties or (source == base and "zero_task_vectors" not in self.properties):
            return None
        return self._with_weights({name: float(name == source) for name in self.merged_sources(sources, base)})

    def uniform(self, sources: Sequence[str], base: str | None = None) -> dict[str, CoefficientValue] | None:
        """Equal weights that sum to 1 and defaults for the rest, or None if the method has no weights."""
        names = self.merged_sources(sources, base)
        return self._with_weights({name: 1 / len(names) for name in names})

    def _with_weights(self, weights: Mapping[str, float]) -> dict[str, CoefficientValue] | None:
        others = [c for c in self.coefficients.values() if c.name != "weight"]
        if "weight" not in self.coefficients or any(c.default is None for c in others):
            return None
        rest: dict[str, CoefficientValue] = {c.name: c.default for c in others if c.default is not None}
        return {"weight": dict(weights), **rest}

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
        names = self.merged_sources([source.name for source in recipe.sources], recipe.base)
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
            sources: names of the sources, in the order of `merged_sources`.
            options: options that differ from their defaults.

        Raises:
            MergeError: listing unknown and missing names, values out of range and options of another type; or
                what the kernel itself has against these coefficients.
        """
        problems = [
            *(
                unknown(f"coefficient of {self.name}", n, self.coefficients)
                for n in coefficients
                if n not in self.coefficients
            ),
            *(unknown(f"option of {self.name}", n, self.options) for n in options if n not in self.options),
        ]
        arguments: dict[str, Any] = {}
        for name, coefficient in self.coefficients.items():
            value = coefficients.get(name, coefficient.default)
            if value is None:
                problems.append(f"{self.name} needs the coefficient {name!r}: {coefficient.doc}")
            elif coefficient.per_source:
                by_source = value if isinstance(value, Mapping) else dict.fromkeys(sources, value)
                problems += _per_source_problems(coefficient, by_source, sources)
                arguments[kernel_parameter(name)] = [float(by_source.get(source, math.nan)) for source in sources]
            elif isinstance(value, Mapping):
                problems.append(f"{name} is one number per group, not one per source as in {dict(value)}.")
            else:
                problems += coefficient.problems(value)
                arguments[kernel_parameter(name)] = float(value)
        for name, option in self.options.items():
            setting = options.get(name, option.default)
            if not option.accepts(setting):
                problems.append(f"option {name} is a {option.type.__name__}, not {setting!r}: {option.doc}")
            arguments[kernel_parameter(name)] = setting
        if problems:
            raise MergeError("\n".join(problems))
        return self._rehearse(arguments, len(sources))

    def _rehearse(self, arguments: Mapping[str, Any], n_sources: int) -> Bound:
        """Call the kernel on unit vectors: it sees every coefficient, and nothing is overwritten yet.

        For a linear map the result holds the factor of every input, so that their absolute sum bounds what
        the merge can make of finite inputs, and merged weights need not be read again to know them finite.
        """
        *tensors, base = torch.eye(n_sources + 1).unbind()
        work = Workspace(n_sources + 1, torch.device("cpu"))
        site = Site(self.name, "rehearsal", tuple(str(i) for i in range(n_sources)), 0, {})
        result = self.call(arguments, tensors, base, torch.empty(n_sources + 1), work, site)
        growth = result.double().abs().sum().item() if "linear_map" in self.properties else math.inf
        return Bound(arguments, growth, work.n_buffers)

    def call(
        self,
        arguments: Mapping[str, Any],
        tensors: Tensors,
        base: torch.Tensor | None,
        out: torch.Tensor,
        work: Workspace,
        site: Site,
    ) -> torch.Tensor:
        """Call the kernel with what its signature asks for; the contract is that of `merging/kernel.py`."""
        given = {"tensors": tensors, "base": base, "out": out, "work": work, "site": site}
        return self.kernel(**{name: given[name] for name in self.wants}, **arguments)


def kernel_parameter(name: str) -> str:
    """What a coefficient or option is called in the kernel: `lambda` is no Python name, `lambda_` is."""
    return f"{name}_" if keyword.iskeyword(name) else name


def _per_source_problems(coefficient: Coefficient, by_source: Mapping[str, float], sources: Sequence[str]) -> list[str]:
    problems = [f"{coefficient.name} has no value for source {n!r}." for n in sources if n not in by_source]
    for name, value in by_source.items():
        if name in sources:
            problems += coefficient.problems(value, name)
        else:
            problems.append(unknown(f"source in {coefficient.name}", name, sources))
    return problems
