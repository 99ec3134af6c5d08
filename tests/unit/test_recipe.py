"""The fingerprint names the merged weights: it changes with what determines them and with nothing else."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from mergesearch.recipe import GroupRecipe, MergeRecipe, SourceRef

RECIPE = MergeRecipe(
    method="linear",
    sources=(SourceRef("a", "org/a", "hash-a", "main"), SourceRef("b", "./b", "hash-b")),
    template="a",
    groups=(
        GroupRecipe("embeddings", ("embeddings",), copy_from="a"),
        GroupRecipe("segment_1", ("layer.0", "layer.1"), coefficients={"weight": {"a": 0.25, "b": 0.75}}),
    ),
)


def with_weight(value: float) -> MergeRecipe:
    group = replace(RECIPE.groups[1], coefficients={"weight": {"a": value, "b": 0.75}})
    return replace(RECIPE, groups=(RECIPE.groups[0], group))


def test_json_gives_the_recipe_back() -> None:
    assert MergeRecipe.from_dict(json.loads(json.dumps(RECIPE.to_dict()))) == RECIPE


def test_where_a_source_lay_does_not_matter() -> None:
    moved = tuple(replace(s, location="elsewhere", revision="other") for s in RECIPE.sources)
    assert replace(RECIPE, sources=moved).fingerprint == RECIPE.fingerprint


@pytest.mark.parametrize(
    "changed",
    [
        replace(RECIPE, method="task_arithmetic"),
        replace(RECIPE, template="b"),
        replace(RECIPE, base="b"),
        replace(RECIPE, options={"normalize": False}),
        replace(RECIPE, dtype="bfloat16"),
        replace(RECIPE, seed=1),
        replace(RECIPE, sources=(RECIPE.sources[0], replace(RECIPE.sources[1], content_hash="other"))),
        replace(RECIPE, groups=(replace(RECIPE.groups[0], copy_from="b"), RECIPE.groups[1])),
        with_weight(0.25 + 1e-15),
    ],
)
def test_whatever_determines_weights_matters(changed: MergeRecipe) -> None:
    assert changed.fingerprint != RECIPE.fingerprint


@pytest.mark.parametrize(("one", "other"), [(1, 1.0), (0.0, -0.0)])
def test_equal_numbers_are_equal_recipes(one: float, other: float) -> None:
    assert with_weight(one).fingerprint == with_weight(other).fingerprint
