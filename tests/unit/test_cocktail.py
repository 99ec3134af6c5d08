"""The merge method `cocktail`: equations 1, 2 and 3 of LM-Cocktail (https://arxiv.org/abs/2311.13534)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mergesearch.errors import MergeError
from mergesearch.merging import METHODS, ResidentMerger
from tests.conformance.merging import ALL_PLACES, PLACES, Tensors, make_recipe, make_sources, merge

COCKTAIL = METHODS["cocktail"]
some = settings(max_examples=25, deadline=None, database=None)
losses = st.lists(st.floats(0, 20), min_size=2, max_size=5)


def weighted(sources: dict[str, Tensors], weights: dict[str, float]) -> Tensors:
    """Σ wᵢ pᵢ in float64."""
    first = next(iter(sources.values()))
    return {n: sum(w * sources[s][n].double() for s, w in weights.items()).float() for n in first}  # type: ignore[union-attr]


def assert_close(merged: Tensors, expected: Tensors) -> None:
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-6, atol=1e-6)


@some
@given(found=losses, temperature=st.floats(0.01, 10), alpha=st.floats(0, 1))
def test_the_target_and_the_others_weighted_by_their_losses(
    found: list[float], temperature: float, alpha: float
) -> None:
    names = [f"m{i}" for i in range(len(found))]
    sources = make_sources(["target", *names])
    weights = torch.softmax(-torch.tensor(found, dtype=torch.float64) / temperature, -1).tolist()
    expected = {"target": alpha, **{n: (1 - alpha) * w for n, w in zip(names, weights, strict=True)}}
    given_losses = dict(zip(names, found, strict=True))
    merged = merge("cocktail", sources, {"loss": given_losses, "temperature": temperature, "alpha": alpha})
    assert_close(merged, weighted(sources, expected))


@some
@given(found=losses, temperature=st.floats(0.01, 10))
def test_without_a_target_all_are_weighted(found: list[float], temperature: float) -> None:
    names = [f"m{i}" for i in range(len(found))]
    sources = make_sources(names)
    weights = torch.softmax(-torch.tensor(found, dtype=torch.float64) / temperature, -1).tolist()
    coefficients = {"loss": dict(zip(names, found, strict=True)), "temperature": temperature}
    merged = merge("cocktail", sources, coefficients, options={"target": False})
    assert_close(merged, weighted(sources, dict(zip(names, weights, strict=True))))


def test_the_base_alone_needs_no_losses() -> None:
    sources = make_sources(["target", "base_model"])
    merged = merge("cocktail", sources, {})
    assert_close(merged, weighted(sources, {"target": 0.5, "base_model": 0.5}))
    assert merge("cocktail", sources, {"alpha": 1.0})["norm.weight"].equal(sources["target"]["norm.weight"])
    assert merge("cocktail", sources, {"alpha": 0.0})["norm.weight"].equal(sources["base_model"]["norm.weight"])


def test_the_template_is_the_target_wherever_it_is_listed() -> None:
    sources = make_sources(["a", "b", "target"])
    recipe = make_recipe("cocktail", list(sources), {ALL_PLACES: {"loss": {"a": 0.0, "b": 0.0}}})
    target = {name: torch.empty_like(tensor) for name, tensor in sources["a"].items()}
    merger = ResidentMerger(target, sources, PLACES)
    merger.apply(replace(recipe, template="target"))
    assert_close(target, weighted(sources, {"target": 0.5, "a": 0.25, "b": 0.25}))


def test_no_temperature_is_too_small_for_any_losses() -> None:
    sources = make_sources(["target", "a", "b"])
    merged = merge("cocktail", sources, {"loss": {"a": 900.0, "b": 1.0}, "temperature": 1e-6})
    assert_close(merged, weighted(sources, {"target": 0.5, "b": 0.5}))


@pytest.mark.parametrize(
    ("coefficients", "found"),
    [
        ({}, "loss has no value for source 'a'"),
        ({"loss": {"a": 1.0}}, "loss has no value for source 'b'"),
        ({"loss": {"a": 1.0, "b": float("nan")}}, "loss of source 'b' is nan"),
        ({"loss": {"a": 1.0, "b": 1.0, "c": 1.0}}, "unknown source in loss 'c'"),
        ({"loss": {"a": 1.0, "b": 1.0}, "temperature": 0.0}, "temperature is 0.0"),
        ({"loss": {"a": 1.0, "b": 1.0}, "alpha": 1.1}, "alpha is 1.1"),
    ],
)
def test_what_no_merge_can_be_built_from_is_refused(coefficients: dict[str, object], found: str) -> None:
    with pytest.raises(MergeError, match=found):
        COCKTAIL.check(make_recipe("cocktail", ["target", "a", "b"], {ALL_PLACES: coefficients}))  # type: ignore[dict-item]
