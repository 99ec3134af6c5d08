"""Merges on spheres, written out on whole vectors in float64, and what they take of memory."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from mergesearch.errors import MergeError
from mergesearch.merging import ResidentMerger
from mergesearch.recipe import CoefficientValue
from tests.conformance.merging import ALL_PLACES, PLACES, SHAPES, Tensors, make_recipe, make_source, make_sources, merge
from tests.unit.test_resident_memory import peak_bytes

ROUNDING = 4 * torch.finfo(torch.float32).eps


def unit(x: torch.Tensor) -> torch.Tensor:
    return x / x.norm()


def arc_by_rotation(x: torch.Tensor, y: torch.Tensor, t: float) -> torch.Tensor:
    """The direction at t of the way from x to y: x turned by t of their angle in their plane."""
    start = unit(x)
    across = unit(y - (y @ start) * start)
    angle = torch.atan2(y @ across, y @ start) * t
    return torch.cos(angle) * start + torch.sin(angle) * across


def wide(sources: dict[str, Tensors], name: str) -> list[torch.Tensor]:
    return [tensors[name].double().view(-1) for tensors in sources.values()]


@pytest.mark.parametrize("t", [0.0, 0.25, 0.5, 1.0])
def test_slerp_of_equally_long_tensors_turns_one_into_the_other(t: float) -> None:
    sources = make_sources(["a", "b"])
    for name, tensor in sources["b"].items():
        tensor.mul_(sources["a"][name].norm() / tensor.norm())
    for name, tensor in merge("slerp", sources, {"t": t}).items():
        x, y = wide(sources, name)
        if name != "norm.scale":  # two numbers lie on one line
            expected = x.norm() * arc_by_rotation(x, y, t)
            torch.testing.assert_close(tensor.double().view(-1), expected, rtol=0, atol=ROUNDING * 4)


def test_slerp_of_nearly_parallel_tensors_is_a_lerp() -> None:
    sources = make_sources(["a", "b"])
    for name, tensor in sources["b"].items():
        tensor.mul_(0.02).add_(2 * sources["a"][name])
    for name, tensor in merge("slerp", sources, {"t": 0.3}).items():
        torch.testing.assert_close(tensor, torch.lerp(sources["a"][name], sources["b"][name], 0.3))


@pytest.mark.parametrize("base", [None, "base"])
@pytest.mark.parametrize("row_wise", [False, True])
def test_nuslerp_of_rows_or_columns_is_that_of_each_by_itself(row_wise: bool, base: str | None) -> None:
    names = ["a", "b"] if base is None else ["base", "a", "b"]
    sources, weight = make_sources(names), {"weight": {"a": 1.0, "b": 3.0}}
    options = {"flatten": False, "row_wise": row_wise}
    merged = merge("nuslerp", sources, weight, base=base, options=options, chunk_elements=24)
    for name in ("embed.weight", "layer.2.bias"):
        for i in range(8 if row_wise else SHAPES[name][0]):
            at = (slice(None), i) if row_wise and len(SHAPES[name]) > 1 else i
            at = slice(None) if len(SHAPES[name]) == 1 else at
            lines = {s: {**t, "norm.weight": t[name][at].clone()} for s, t in sources.items()}
            alone = merge("nuslerp", lines, weight, base=base)
            torch.testing.assert_close(merged[name][at], alone["norm.weight"])


@pytest.mark.parametrize("base", [None, "base"])
def test_multislerp_is_the_mean_direction_at_the_mean_length(base: str | None) -> None:
    names = ["a", "b", "c"] if base is None else ["base", "a", "b", "c"]
    sources = make_sources(names)
    merged = merge("multislerp", sources, {"weight": {"a": 1.0, "b": 2.0, "c": -0.5}}, base=base)
    for name, tensor in merged.items():
        *_, a, b, c = wide(sources, name)
        origin = torch.zeros_like(a) if base is None else wide(sources, name)[0]
        terms = [(w / 2.5, x - origin) for w, x in ((1.0, a), (2.0, b), (-0.5, c))]
        length = sum(w * x.norm() for w, x in terms)
        expected = origin + length * unit(sum(w * unit(x) for w, x in terms))  # type: ignore[arg-type]
        torch.testing.assert_close(tensor.double().view(-1), expected, rtol=1e-5, atol=1e-6)


def test_directions_that_cancel_leave_the_weighted_sum() -> None:
    sources = make_sources(["a", "b"])
    sources["b"] = {name: -3 * tensor for name, tensor in sources["a"].items()}
    for name, tensor in merge("multislerp", sources, {"weight": 1.0}).items():
        torch.testing.assert_close(tensor, -sources["a"][name])


def test_the_karcher_mean_of_two_lies_on_their_arc_and_of_many_where_all_pull_alike() -> None:
    pair = make_sources(["a", "b"])
    for name, tensor in merge("karcher", pair, {"weight": {"a": 3.0, "b": 1.0}}).items():
        x, y = wide(pair, name)
        if x.numel() > 1:
            expected = (0.75 * x.norm() + 0.25 * y.norm()) * arc_by_rotation(x, y, 0.25)
            torch.testing.assert_close(tensor.double().view(-1), expected, rtol=1e-5, atol=1e-5)

    sources, weights = make_sources(["a", "b", "c", "d"]), {"a": 1.0, "b": 2.0, "c": 0.5, "d": 0.0}
    merged = merge("karcher", sources, {"weight": weights}, options={"max_iter": 50.0})
    for name in ("embed.weight", "layer.1.weight"):
        mean = unit(merged[name].double().view(-1))
        pull = torch.zeros_like(mean)
        for source, tensors in sources.items():
            direction = unit(tensors[name].double().view(-1))
            angle = torch.acos(direction @ mean)
            pull += weights[source] * angle * unit(direction - (direction @ mean) * mean)
        assert pull.norm() < 1e-4


@pytest.mark.parametrize("filter_wise", [False, True])
def test_model_stock_goes_as_far_as_the_angle_between_task_vectors_says(filter_wise: bool) -> None:
    """Of two, with angle θ, the paper's t is 2 cos θ / (1 + cos θ)."""
    sources = make_sources(["base", "a", "b"])
    for name, tensor in sources["b"].items():
        tensor.add_(sources["a"][name])  # so that the angle is below 90°
    options = {"filter_wise": filter_wise}
    merged = merge("model_stock", sources, {"lambda": 0.5}, base="base", options=options, chunk_elements=16)
    for name, tensor in merged.items():
        shape = (-1, SHAPES[name][-1]) if filter_wise and SHAPES[name] else (1, -1)
        rows = zip(*(x.view(shape) for x in wide(sources, name)), tensor.double().view(shape), strict=True)
        for base, a, b, result in rows:
            cosine = unit(a - base) @ unit(b - base)
            t = 2 * cosine / (1 + cosine)
            slack = 1e-5 * max(1.0, float(t.abs()))
            torch.testing.assert_close(result, base + 0.5 * t * ((a + b) / 2 - base), rtol=0, atol=slack)


def test_model_stock_stays_at_the_base_where_task_vectors_cancel() -> None:
    sources = make_sources(["base", "a"])
    sources["b"] = {name: 2 * tensor - sources["a"][name] for name, tensor in sources["base"].items()}
    sources = {s: {n: (t * 64).round() / 64 for n, t in tensors.items()} for s, tensors in sources.items()}
    sources["b"] = {name: 2 * tensor - sources["a"][name] for name, tensor in sources["base"].items()}
    merged = merge("model_stock", sources, {}, base="base")
    assert all(torch.equal(merged[name], tensor) for name, tensor in sources["base"].items())


@pytest.mark.parametrize("value", [2.0, -1.0, 0.5, math.nan])
def test_passthrough_takes_the_number_of_a_source(value: float) -> None:
    with pytest.raises(MergeError, match=r"source is .*whole number and lie in \[0.0, 1\]"):
        merge("passthrough", make_sources(["a", "b"]), {"source": value})


def test_passthrough_counts_from_the_template() -> None:
    sources = {name: make_source(i) for i, name in enumerate(["z", "a", "m"])}
    for number, name in enumerate(["z", "a", "m"]):
        merged = merge("passthrough", sources, {"source": number, "scale": -2.0})
        assert all(torch.equal(merged[n], -2 * tensor) for n, tensor in sources[name].items())


CASES: list[tuple[str, dict[str, CoefficientValue], dict[str, bool], int]] = [
    ("slerp", {"t": 0.3}, {}, 2),
    ("nuslerp", {"weight": {"s0": 1.0, "s1": 2.0}}, {}, 2),
    ("nuslerp", {"weight": 1.0}, {"flatten": False}, 2),
    ("nuslerp", {"weight": 1.0}, {"flatten": False, "row_wise": True}, 2),
    ("multislerp", {"weight": 1.0}, {}, 3),
    ("karcher", {}, {}, 4),
    ("model_stock", {}, {}, 3),
    ("model_stock", {}, {"filter_wise": True}, 3),
]
ELEMENTS = (1 << 10, 1 << 9)


@pytest.mark.parametrize(("method", "coefficients", "options", "n"), CASES, ids=range(len(CASES)))
def test_large_tensors_take_a_few_chunks_whose_size_does_not_matter(
    method: str, coefficients: dict[str, CoefficientValue], options: dict[str, bool], n: int, tmp_path: Path
) -> None:
    base = "base" if method == "model_stock" else None
    names = [*([base] if base else []), *(f"s{i}" for i in range(n))]
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(ELEMENTS, generator=generator)
    sources = {name: {"w": (start + 0.5 * torch.randn(ELEMENTS, generator=generator)).bfloat16()} for name in names}
    found, peaks = [], []
    for chunk in (1 << 14, 3000):
        target, folder = {"w": torch.zeros(ELEMENTS)}, tmp_path / str(chunk)
        merger = ResidentMerger(target, sources, {"w": "layer"}, chunk_elements=chunk, statistics=folder)
        recipe = make_recipe(method, names, {("layer",): coefficients}, base=base, options=options)
        peaks.append(peak_bytes(lambda m=merger, r=recipe: m.apply(r)))  # type: ignore[misc]
        found.append(target["w"])
        # What there is per row or column is not kept.
        assert len(list(folder.rglob("*.safetensors"))) == (0 if options else 1)
    torch.testing.assert_close(found[0], found[1], rtol=torch.finfo(torch.float32).eps, atol=0)
    tensor = 4 * start.numel()
    assert max(peaks) < tensor, f"{max(peaks):,} bytes where one copy of a tensor is {tensor:,}"


def test_inner_products_are_taken_once(tmp_path: Path) -> None:
    """A second trial reads them, whatever it asks for, and so does another method."""
    sources = make_sources(["a", "b"])
    target = make_source(1)
    merger = ResidentMerger(target, sources, PLACES, chunk_elements=16, statistics=tmp_path)
    for method, drawn in (
        ("slerp", {"t": 0.2}),
        ("slerp", {"t": 0.4}),
        ("karcher", {}),
        ("multislerp", {"weight": 1.0}),
    ):
        merger.apply(make_recipe(method, ["a", "b"], {ALL_PLACES: drawn}))
        assert len(list(tmp_path.rglob("*.safetensors"))) == len(SHAPES)
