"""What a merge method declares about itself, and what its coefficients become when they are bound to a group."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from mergesearch.recipe import CoefficientValue

Coefficients = Mapping[str, CoefficientValue]
OptionValue = bool | float | str

PROPERTIES: Mapping[str, str] = MappingProxyType(
    {
        "one_hot": "weight 1 for one source, 0 for the others and defaults else give that source exactly",
        "symmetric": "the order of the sources does not matter",
        "zero_task_vectors": "sources equal to the base give the base exactly, whatever the coefficients",
        "random": "the seed decides what is kept of each source, by the source's name and the tensor's",
        "linear_map": "the result is Σ cᵢ·tensorᵢ with cᵢ that no tensor has a say in",
    }
)
"""What a method may claim about itself. The conformance suite tests every claim."""


def is_number(value: object) -> bool:
    """Whether it is a finite number that a float can hold; a bool is none."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


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
        names_sources: it is the number of a source, from 0 in the order of `MergeMethod.merged_sources`.
    """

    name: str
    per_source: bool
    low: float
    high: float
    default: float | None
    log: bool
    doc: str
    names_sources: bool = False

    def problems(self, value: float, source: str = "") -> list[str]:
        """What is wrong with a value, NaN and infinities included; empty if nothing is."""
        if is_number(value) and self.low <= value <= self.high and not (self.names_sources and value % 1):
            return []
        where = f" of source {source!r}" if source else ""
        kind = "a whole number" if self.names_sources else "finite"
        return [f"{self.name}{where} is {value}; it must be {kind} and lie in [{self.low}, {self.high}]."]


@dataclass(frozen=True)
class Option:
    """A setting that is fixed for a study: a bool, a number or a word; one of `choices`, if there are any."""

    name: str
    default: OptionValue
    type: type[bool] | type[float] | type[str]
    doc: str
    choices: tuple[str, ...] = ()
    low: float = -math.inf
    high: float = math.inf

    def accepts(self, setting: OptionValue) -> bool:
        """Whether `setting` is of this option's type and in its range; a whole number is a number, a bool is not."""
        if self.type is float:
            return is_number(setting) and self.low <= float(setting) <= self.high
        return isinstance(setting, self.type) and (not self.choices or setting in self.choices)

    @property
    def wanted(self) -> str:
        """What is accepted, for messages."""
        if self.type is float:
            return f"a number of [{self.low:g}, {self.high:g}]"
        return f"one of {', '.join(self.choices)}" if self.choices else f"of type {self.type.__name__}"


ARITHMETIC = Option(
    "arithmetic",
    "float32",
    str,
    "`float32`, or `mergekit`: whole tensors, in the stored dtype, with mergekit's order of operations.",
    ("float32", "mergekit"),
)
"""The option of methods that can also compute as mergekit does."""


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


EQUAL = "1/n"
"""In a `OneShot`: equal weights that sum to 1."""


@dataclass(frozen=True)
class OneShot:
    """What to merge with where nothing is searched.

    Attributes:
        origin: who merges so, in a few words: a paper and its setting, or that it was chosen here.
        coefficients: by name, a number or `EQUAL`; what is missing has the kernel's own default.
        options: those that differ from their defaults.
    """

    origin: str
    coefficients: Mapping[str, float | str] = field(default_factory=dict)
    options: Mapping[str, OptionValue] = field(default_factory=dict)


@dataclass(frozen=True)
class Bound:
    """Coefficients and options of one group as a kernel takes them, tried out on a few numbers.

    Attributes:
        arguments: the kernel's keyword arguments.
        as_mergekit: compute as mergekit does.
        factors: what a linear map multiplies each source with, the base last; None for other methods.
        n_buffers: workspace buffers that the kernel took.
    """

    arguments: Mapping[str, Any]
    as_mergekit: bool
    factors: tuple[float, ...] | None
    n_buffers: int

    @property
    def growth(self) -> float:
        """No element of a result is larger than this many times the largest of the inputs; inf if not known."""
        return math.inf if self.factors is None else math.fsum(map(abs, self.factors))

    @property
    def interpolation(self) -> tuple[int, int, float] | None:
        """(i, j, t) where the result is xᵢ + t·(xⱼ − xᵢ), of the inputs with the base last; None where it is more."""
        if self.factors is None:
            return None
        *others, base = range(len(self.factors))
        used = [i for i in (base, *others) if self.factors[i]]
        if len(used) != 2:
            return None
        i, j = used
        share, t = self.factors[i], self.factors[j]
        return (i, j, t) if abs(share - (1 - t)) <= 2**-22 * abs(share) else None
