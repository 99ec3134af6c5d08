"""What search needs to know of a merge method: protocols that `mergesearch.merging.registry` satisfies.

Search and merging know each other only through these, so either can be read and tested alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from mergesearch.recipe import CoefficientValue


class CoefficientDeclaration(Protocol):
    """What a merge method declares about a coefficient."""

    @property
    def per_source(self) -> bool:
        """One number per source rather than per group."""

    @property
    def low(self) -> float:
        """Smallest allowed value; may be -inf."""

    @property
    def high(self) -> float:
        """Largest allowed value; may be inf."""

    @property
    def default(self) -> float | None:
        """Used where none is given; None if one must be."""

    @property
    def log(self) -> bool:
        """Whether ranges are searched on a logarithmic scale unless they say otherwise."""

    @property
    def names_sources(self) -> bool:
        """Whether it is the number of a source, from 0 in the order of `MethodDeclaration.merged_sources`."""


class ShorthandDeclaration(Protocol):
    """One number that stands for the coefficients of a fixed number of sources."""

    @property
    def n_sources(self) -> int:
        """How many sources there must be."""

    @property
    def low(self) -> float:
        """Smallest allowed value."""

    @property
    def high(self) -> float:
        """Largest allowed value."""

    @property
    def expand(self) -> Callable[[float, str, Sequence[str]], dict[str, CoefficientValue]]:
        """(value, template, sources) to coefficients; a straight line in `value`."""


class MethodDeclaration(Protocol):
    """What search needs to know of a merge method; `mergesearch.merging.registry.MergeMethod` is one."""

    @property
    def name(self) -> str:
        """As in study files."""

    @property
    def coefficients(self) -> Mapping[str, CoefficientDeclaration]:
        """By name."""

    @property
    def shorthands(self) -> Mapping[str, ShorthandDeclaration]:
        """By name."""

    def merged_sources(self, sources: Iterable[str], base: str | None, template: str | None) -> tuple[str, ...]:
        """The sources that have coefficients, in the order that they are counted in."""

    def coefficients_for_source(
        self, source: str, sources: Sequence[str], base: str | None = None, template: str | None = None
    ) -> Mapping[str, CoefficientValue] | None:
        """Coefficients whose merge is `source` alone, or None."""
