"""How far a merge is from being one of its sources, judged by coefficients alone: no weights are read."""

from __future__ import annotations

import math
from collections.abc import Mapping

from mergesearch.merging.method import MergeMethod
from mergesearch.recipe import CoefficientValue, MergeRecipe
from mergesearch.study import Study
from mergesearch.study_recipes import Coefficients

DECIMALS = 6
"""Kernels compute in float32: distances that differ by less are one distance, and ties are broken otherwise."""


class Distances:
    """Distance of recipes to the unmerged sources of a study.

    A merge whose tensors are Σ cᵢ·xᵢ is described by these cᵢ, found by calling the kernel on unit vectors, so that
    weights 2 and 2 are an average like .5 and .5, λ = .5 halves every weight, and the base is a source like the
    others. The distance to source s is √(½ Σᵢ (cᵢ − [i = s])²), averaged over groups as a mean square in which a
    group counts by its number of parameters: 0 is the source itself, 1 is another source, and α of the one with
    1 − α of the other lies 1 − α from the one. Other methods are compared by the coefficients that give each source
    alone, as root mean square. Groups that are copied from a source do not count: they are the same in every trial.
    """

    def __init__(self, study: Study) -> None:
        self._method = study.method
        self._sources = list(study.folders)
        self._alone = study.sources_alone()
        self._parameters: dict[str, int] = {}
        for parameter in study.layout.parameters.values():
            n = math.prod(parameter.shape)
            self._parameters[parameter.place] = self._parameters.get(parameter.place, 0) + n

    def nearest(self, recipe: MergeRecipe) -> tuple[float, str | None]:
        """The smallest distance and the source it is to; (inf, None) for methods that give no source alone."""
        if "linear_map" in self._method.properties:
            weights = factors(self._method, recipe)
            found = {s: {g: _from_one_hot(w, s) for g, w in weights.items()} for s in self._sources}
        else:
            groups = {g.name: g.coefficients for g in recipe.groups if g.copy_from is None}
            found = {s: _from_coefficients(groups, alone) for s, alone in self._alone.items()}
        sizes = {g.name: sum(self._parameters.get(p, 0) for p in g.places) for g in recipe.groups}
        best: tuple[float, str | None] = (math.inf, None)
        for source, squares in found.items():
            total = sum(sizes[g] for g in squares) or 1
            square = math.fsum(sizes[g] / total * square for g, square in squares.items())
            distance = round(math.sqrt(square), DECIMALS)
            if distance < best[0]:
                best = (distance, source)
        return best


def factors(method: MergeMethod, recipe: MergeRecipe) -> dict[str, dict[str, float]]:
    """What every merged group multiplies each source (the base included) with, for a method that is a linear map.

    Raises:
        MergeError: no merge can be built from the recipe.
    """
    names = method.sources_of(recipe)
    return {
        group: dict(zip([*names, recipe.base or ""], bound.factors or (), strict=True))
        for group, bound in method.check(recipe).items()
    }


def _from_one_hot(weights: Mapping[str, float], source: str) -> float:
    return math.fsum((weight - (name == source)) ** 2 for name, weight in weights.items()) / 2


def _from_coefficients(groups: Coefficients, alone: Coefficients) -> dict[str, float]:
    """Mean square difference of coefficients, by group."""
    squares = {}
    for name, coefficients in groups.items():
        mine, theirs = _flat(coefficients), _flat(alone[name])
        squares[name] = math.fsum((v - theirs.get(k, 0.0)) ** 2 for k, v in mine.items()) / max(1, len(mine))
    return squares


def _flat(coefficients: Mapping[str, CoefficientValue]) -> dict[tuple[str, str], float]:
    flat = {}
    for name, value in coefficients.items():
        for source, number in value.items() if isinstance(value, Mapping) else [("", value)]:
            flat[name, source] = float(number)
    return flat
