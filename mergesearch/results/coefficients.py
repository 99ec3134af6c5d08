"""Coefficients as people read them."""

from __future__ import annotations

from collections.abc import Mapping

from mergesearch.merging.registry import get_method
from mergesearch.recipe import GroupRecipe, MergeRecipe


def coefficient_values(recipe: MergeRecipe, group: GroupRecipe, digits: int = 4) -> list[tuple[str, str | None, str]]:
    """Each number of a group as (coefficient, source that it is of, value); a source's number becomes its name."""
    method, found = get_method(recipe.method), list[tuple[str, str | None, str]]()
    for name, value in group.coefficients.items():
        declared = method.coefficients.get(name)
        if isinstance(value, Mapping):
            found += [(name, source, f"{number:.{digits}g}") for source, number in value.items()]
        elif declared is not None and declared.names_sources:
            found.append((name, None, method.sources_of(recipe)[round(value)]))
        else:
            found.append((name, None, f"{value:.{digits}g}"))
    return found


def coefficient_words(recipe: MergeRecipe, group: GroupRecipe, digits: int = 4) -> list[str]:
    """Each coefficient of a group in a line, or where the group is copied from."""
    lines: dict[str, list[str]] = {}
    for name, source, value in coefficient_values(recipe, group, digits):
        lines.setdefault(name, []).append(f"{name}[{source}] = {value}" if source else f"{name} = {value}")
    copied = [f"copied from {group.copy_from}"] if group.copy_from is not None else []
    return copied + [", ".join(line) for line in lines.values()]
