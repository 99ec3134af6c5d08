"""The chosen merge as tables: coefficients as they were searched, and what each source comes to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mergesearch.errors import MergeError
from mergesearch.recipe import MergeRecipe
from mergesearch.results.coefficients import coefficient_values
from mergesearch.results.distance import factors
from mergesearch.sources.layout import span
from mergesearch.study import Study


@dataclass(frozen=True)
class Part:
    """One parameter group of a merge.

    Attributes:
        name: of the group.
        covers: its places in short.
        copied: the source that it is copied from; None where it is merged.
        coefficients: (name, value) as people read them.
        factors: what every source is multiplied with; empty where the method is no linear map.
    """

    name: str
    covers: str
    copied: str | None
    coefficients: tuple[tuple[str, str], ...]
    factors: Mapping[str, float]


def parts(study: Study, recipe: MergeRecipe) -> tuple[Part, ...]:
    """The groups of a recipe, in model order."""
    known: Mapping[str, Mapping[str, float]] = {}
    if "linear_map" in study.method.properties:
        try:
            known = factors(study.method, recipe)
        except MergeError:  # weights that sum to zero build no merge, and multiply nothing
            known = {}
    found = []
    for group in recipe.groups:
        values = coefficient_values(recipe, group)
        shown = tuple((f"{name} of {source}" if source else name, value) for name, source, value in values)
        multiplied = {source: factor for source, factor in known.get(group.name, {}).items() if source}
        found.append(Part(group.name, span(group.places), group.copy_from, shown, multiplied))
    return tuple(found)
