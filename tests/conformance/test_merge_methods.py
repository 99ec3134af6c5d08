"""What every merge method promises, and every claim that a method makes about itself."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mergesearch.errors import MergeError
from mergesearch.merging import METHODS, MergeMethod
from mergesearch.recipe import CoefficientValue
from tests.conformance.merging import (
    ALL_PLACES,
    PLACES,
    Tensors,
    make_merger,
    make_recipe,
    make_source,
    make_sources,
    merge,
    source_names,
    typical,
)

every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
some = settings(max_examples=12, deadline=None, database=None)


def claims(name: str, *, but_not: str = "") -> pytest.MarkDecorator:
    """Every method that claims this property of itself."""
    claimants = [m for m in METHODS.values() if name in m.properties and but_not not in m.properties]
    return pytest.mark.parametrize("method", claimants, ids=[method.name for method in claimants])


def values(low: float, high: float) -> st.SearchStrategy[float]:
    """Numbers of a coefficient's range, away from rounding trouble: two decimals."""
    return st.integers(math.ceil(max(low, -2) * 100), math.floor(min(high, 3) * 100)).map(lambda i: i / 100)


@st.composite
def coefficients(draw: st.DrawFn, method: MergeMethod, names: list[str]) -> dict[str, CoefficientValue]:
    """Coefficients that the method accepts."""
    drawn: dict[str, CoefficientValue] = {}
    for coefficient in method.coefficients.values():
        number = values(coefficient.low, coefficient.high)
        if coefficient.per_source:
            drawn[coefficient.name] = {name: draw(number) for name in names}
        elif coefficient.names_sources:
            drawn[coefficient.name] = float(draw(st.integers(0, len(names) - 1)))
        else:
            drawn[coefficient.name] = draw(number)
    for measured in method.measured:
        drawn[measured] = {name: draw(values(-math.inf, math.inf)) for name in names}
    try:
        method.validate(drawn, sources=names)
    except MergeError:  # such as weights that cancel
        drawn = dict(method.uniform(names) or drawn)
    return drawn


def draw_case(data: st.DataObject, method: MergeMethod, n: int = 3) -> tuple[list[str], str | None, dict[str, Any]]:
    names, base = source_names(method, n)
    return names, base, data.draw(coefficients(method, [name for name in names if name != base]))


def assert_equal(merged: Tensors, expected: Tensors) -> None:
    """Equal to the bit, dtypes included."""
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0, msg=lambda m, n=name: f"{n}: {m}")


@every_method
def test_is_documented(method: MergeMethod) -> None:
    assert method.title
    assert method.paper.startswith("https://")
    assert method.doc
    assert all(c.doc and c.low < c.high for c in method.coefficients.values())
    assert all(o.doc for o in method.options.values())
    assert all(c.default is None or not c.problems(c.default) for c in method.coefficients.values())


@every_dtype
@every_method
@some
@given(data=st.data())
def test_computes_in_float32_and_rounds_once(method: MergeMethod, dtype: torch.dtype, data: st.DataObject) -> None:
    names, base, drawn = draw_case(data, method)
    low = make_sources(names, dtype)
    high = {source: {n: t.float() for n, t in tensors.items()} for source, tensors in low.items()}

    merged = merge(method.name, low, drawn, base=base, dtype=dtype)

    exact = merge(method.name, high, drawn, base=base)
    assert_equal(merged, {name: tensor.to(dtype) for name, tensor in exact.items()})


@every_method
@some
@given(data=st.data())
def test_leaves_sources_alone(method: MergeMethod, data: st.DataObject) -> None:
    names, base, drawn = draw_case(data, method)
    sources = make_sources(names)
    merge(method.name, sources, drawn, base=base)
    for source, expected in make_sources(names).items():
        assert_equal(sources[source], expected)


@every_method
@some
@given(data=st.data(), chunk_elements=st.integers(1, 100))
def test_chunks_change_nothing(method: MergeMethod, data: st.DataObject, chunk_elements: int) -> None:
    names, base, drawn = draw_case(data, method)
    sources = make_sources(names)
    chunked = merge(method.name, sources, drawn, base=base, chunk_elements=chunk_elements)
    assert_equal(chunked, merge(method.name, sources, drawn, base=base, chunk_elements=1 << 20))


@every_dtype
@every_method
@some
@given(data=st.data())
def test_two_segments_with_equal_coefficients_are_one(
    method: MergeMethod, dtype: torch.dtype, data: st.DataObject
) -> None:
    names, base, drawn = draw_case(data, method)
    sources = make_sources(names, dtype)
    prints = []
    for groups in [{ALL_PLACES: drawn}, {ALL_PLACES[:3]: drawn, ALL_PLACES[3:]: drawn}]:
        merger = make_merger(sources, dtype)
        merger.apply(make_recipe(method.name, names, groups, base=base, dtype=dtype))
        prints.append(merger.fingerprint())
    assert prints[0] == prints[1]


@every_dtype
@every_method
@some
@given(data=st.data())
def test_a_b_a_gives_a_again(method: MergeMethod, dtype: torch.dtype, data: st.DataObject) -> None:
    names, base, first = draw_case(data, method)
    _, _, second = draw_case(data, method)
    merger = make_merger(make_sources(names, dtype), dtype)
    a, b = (make_recipe(method.name, names, {ALL_PLACES: c}, base=base, dtype=dtype) for c in (first, second))
    prints = []
    for recipe in (a, b, a):
        merger.apply(recipe)
        prints.append(merger.fingerprint())
    assert prints[0] == prints[2]
    fresh = make_merger(make_sources(names, dtype), dtype)
    fresh.apply(b)
    assert prints[1] == fresh.fingerprint()


@every_method
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_coefficients_that_are_not_finite_are_refused(method: MergeMethod, bad: float) -> None:
    names, base = source_names(method, 2)
    merged = [name for name in names if name != base]
    for coefficient in method.coefficients.values():
        good = dict(method.uniform(merged) or {})
        good[coefficient.name] = dict.fromkeys(merged, bad) if coefficient.per_source else bad
        with pytest.raises(MergeError, match=coefficient.name):
            method.validate(good, sources=merged)


@every_method
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_sources_that_are_not_finite_are_refused(method: MergeMethod, bad: float) -> None:
    names, _ = source_names(method, 2)
    sources = make_sources(names)
    sources[names[-1]]["layer.2.weight"][3, 4] = bad
    with pytest.raises(MergeError, match=rf"{names[-1]}.*layer\.2\.weight"):
        make_merger(sources, torch.float32)


@every_method
def test_results_that_overflow_are_refused_by_name(method: MergeMethod) -> None:
    """Finite sources whose merge leaves the range of float16; a later merge within it is right again."""
    names, base = source_names(method, 2)
    merged = [name for name in names if name != base]
    weight = method.coefficients.get("weight")
    if weight is None or weight.high < 2 or weight.low > -1:
        pytest.skip(f"{method.name} has no weights that extrapolate")
    sources = make_sources(names, torch.float16)
    for i, name in enumerate(merged):
        sources[name]["layer.1.weight"][0, 0] = 60000.0 * (-1) ** i
    merger = make_merger(sources, torch.float16)
    for size, refused in ((2.0, True), (0.5, False)):
        shares = {name: size if i == 0 else 1 - size if i == 1 else 0.0 for i, name in enumerate(merged)}
        drawn = dict(method.uniform(merged) or {}) | {"weight": shares}
        recipe = make_recipe(method.name, names, {ALL_PLACES: drawn}, base=base, dtype=torch.float16)
        if refused:
            wide = {source: {n: t.float() for n, t in tensors.items()} for source, tensors in sources.items()}
            exact = merge(method.name, wide, drawn, base=base)
            if exact["layer.1.weight"].abs().max() < torch.finfo(torch.float16).max:
                pytest.skip(f"{method.name} keeps lengths when it extrapolates")
            with pytest.raises(MergeError, match=r"layer\.1\.weight"):
                merger.apply(recipe)
        else:
            assert merger.apply(recipe)


@every_method
def test_unknown_and_missing_names_are_all_reported(method: MergeMethod) -> None:
    names, base = source_names(method, 2)
    merged = [name for name in names if name != base]
    with pytest.raises(MergeError) as caught:
        method.validate({"wieght": 1.0, "dansity": 0.5}, sources=merged, options={"normalise": True})
    required = [c.name for c in method.coefficients.values() if c.default is None]
    for name in ["wieght", "dansity", "normalise", *required]:
        assert name in str(caught.value)


@every_method
def test_number_of_sources_and_base_are_checked(method: MergeMethod) -> None:
    names, base = source_names(method, 3)
    drawn = method.uniform(names, base) or {}
    if method.min_sources > 1:
        with pytest.raises(MergeError, match="sources"):
            method.check(make_recipe(method.name, ["source_0"], {ALL_PLACES: {}}))
    if method.needs_base:
        with pytest.raises(MergeError, match="base"):
            method.check(make_recipe(method.name, names, {ALL_PLACES: drawn}))
        with pytest.raises(MergeError, match="base"):
            method.check(make_recipe(method.name, names, {ALL_PLACES: drawn}, base="elsewhere"))
    if not method.takes_base:
        with pytest.raises(MergeError, match="base"):
            method.check(make_recipe(method.name, names, {ALL_PLACES: drawn}, base=names[0]))


@every_dtype
@claims("one_hot")
@pytest.mark.parametrize("n_sources", [1, 2, 4])
def test_one_hot_weights_are_that_source(method: MergeMethod, dtype: torch.dtype, n_sources: int) -> None:
    names, base = source_names(method, n_sources)
    sources = make_sources(names, dtype)
    for name in names:
        anchor = method.coefficients_for_source(name, names, base, names[0])
        assert anchor is not None
        assert_equal(merge(method.name, sources, anchor, base=base, dtype=dtype), sources[name])


@claims("one_hot")
def test_anchors_are_none_or_accepted(method: MergeMethod) -> None:
    names, base = source_names(method, 3)
    merged = [name for name in names if name != base]
    alone = [method.coefficients_for_source(name, names, base, names[0]) for name in names]
    for anchor in [*alone, method.uniform(names, base)]:
        if anchor is not None:
            method.validate(anchor, sources=merged)
            assert anchor.keys() == method.coefficients.keys()


@every_dtype
@claims("symmetric")
@some
@given(data=st.data())
def test_order_of_sources_does_not_matter(method: MergeMethod, dtype: torch.dtype, data: st.DataObject) -> None:
    names, base, drawn = draw_case(data, method, 4)
    sources = make_sources(names, dtype)
    shuffled = data.draw(st.permutations(names))
    recipes = [
        make_recipe(method.name, order, {ALL_PLACES: drawn}, base=base, dtype=dtype) for order in (names, shuffled)
    ]
    prints = []
    for recipe in recipes:
        merger = make_merger(sources, dtype)
        merger.apply(recipe)
        prints.append(merger.fingerprint())
    assert prints[0] == prints[1]


@claims("symmetric", but_not="random")
@some
@given(data=st.data())
def test_kernels_of_symmetric_methods_do_not_look_at_names(method: MergeMethod, data: st.DataObject) -> None:
    """Models that swap names along with their coefficients; only the rounding of sums may tell."""
    names, base, drawn = draw_case(data, method, 4)
    merged = [name for name in names if name != base]
    if "linear_map" not in method.properties and isinstance(weight := drawn.get("weight"), dict):
        drawn["weight"] = {name: abs(w) + 0.1 for name, w in weight.items()}  # some that nearly cancel have no bound
    renamed = dict(zip(merged, data.draw(st.permutations(merged)), strict=True))
    sources = make_sources(names)
    swapped = {renamed.get(name, name): tensors for name, tensors in sources.items()}
    moved = {
        key: {renamed[name]: v for name, v in value.items()} if isinstance(value, dict) else value
        for key, value in drawn.items()
    }
    result = merge(method.name, {name: swapped[name] for name in names}, moved, base=base)
    for name, tensor in merge(method.name, sources, drawn, base=base).items():
        scale = sum(tensors[name].abs().max() for tensors in sources.values())
        growth = method.bind(drawn, merged, {}).growth
        slack = 4 * torch.finfo(torch.float32).eps * float(scale) * (growth if math.isfinite(growth) else 10)
        torch.testing.assert_close(result[name], tensor, rtol=0, atol=slack)


@every_dtype
@claims("zero_task_vectors")
@some
@given(data=st.data())
def test_zero_task_vectors_change_nothing(method: MergeMethod, dtype: torch.dtype, data: st.DataObject) -> None:
    names, base, drawn = draw_case(data, method)
    sources = {name: make_source(7, dtype) for name in names}
    assert_equal(merge(method.name, sources, drawn, base=base, dtype=dtype), make_source(7, dtype))


sparse_methods = [method for method in METHODS.values() if method.dense]


@pytest.mark.parametrize("method", sparse_methods, ids=[method.name for method in sparse_methods])
@some
@given(data=st.data())
def test_density_1_is_the_dense_method(method: MergeMethod, data: st.DataObject) -> None:
    """Whatever else there is to set; but for the rounding of sums."""
    names, base, drawn = draw_case(data, method)
    dense = METHODS[method.dense]
    drawn["density"] = 1.0
    shared = {name: value for name, value in drawn.items() if name in dense.coefficients}
    options = {name: option.default for name, option in method.options.items() if name in dense.options}
    sources = make_sources(names)
    expected = merge(dense.name, sources, shared, base=base, options=options)
    merged = merge(method.name, sources, drawn, base=base, options=options)
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-5)


@every_method
def test_the_seed_decides_what_random_methods_make_and_nothing_else(method: MergeMethod) -> None:
    names, base = source_names(method, 3)
    drawn = typical(method, [name for name in names if name != base])
    first, again, other = (merge(method.name, make_sources(names), drawn, base=base, seed=seed) for seed in (1, 1, 2))
    assert_equal(again, first)
    differs = any(not torch.equal(other[name], tensor) for name, tensor in first.items())
    assert differs == ("random" in method.properties)


@claims("linear_map")
@some
@given(data=st.data())
def test_linear_maps_are_linear_and_grow_no_more_than_they_say(method: MergeMethod, data: st.DataObject) -> None:
    names, base, drawn = draw_case(data, method)
    growth = method.bind(drawn, [name for name in names if name != base], {}).growth
    one, other = make_sources(names), {name: make_source(50 + i) for i, name in enumerate(names)}
    both = {name: {n: one[name][n] + other[name][n] for n in one[name]} for name in names}
    merged = [merge(method.name, sources, drawn, base=base) for sources in (one, other, both)]
    for name in PLACES:
        slack = 1e-6 * (1 + growth) * 10
        torch.testing.assert_close(merged[2][name], merged[0][name] + merged[1][name], rtol=0, atol=slack)
        largest = max(tensors[name].abs().max() for tensors in one.values())
        assert merged[0][name].abs().max() <= growth * largest + slack


@every_method
def test_shorthands_expand_to_coefficients_that_are_accepted(method: MergeMethod) -> None:
    for shorthand in method.shorthands.values():
        names, base = source_names(method, shorthand.n_sources)
        merged = tuple(name for name in names if name != base)
        assert len(merged) == shorthand.n_sources
        for value in (shorthand.low, (shorthand.low + shorthand.high) / 2, shorthand.high):
            method.validate(shorthand.expand(value, merged[-1], merged), sources=merged)


def test_the_registry_is_filled_from_the_files_of_methods() -> None:
    assert {"linear", "task_arithmetic"} <= METHODS.keys()
    for name, method in METHODS.items():
        assert method.name == name
        assert method.kernel.__module__.startswith("mergesearch.merging.methods.")
