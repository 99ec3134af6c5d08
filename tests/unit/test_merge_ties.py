"""TIES, Breadcrumbs and SCE against their definitions, written out."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from mergesearch.merging import METHODS, ResidentMerger
from tests.conformance.merging import ALL_PLACES, PLACES, Tensors, make_recipe, make_source, make_sources, merge
from tests.unit.test_resident_memory import peak_bytes

NAMES = ["base", "a", "b", "c"]


def one_tensor(*rows: list[float]) -> dict[str, Tensors]:
    """Sources that are alike but for one bias of layer 0; the first is the base."""
    return {name: {**make_source(1), "layer.0.bias": torch.tensor(row)} for name, row in zip(NAMES, rows, strict=False)}


ZERO = [0.0] * 8
A = [1.0, -2.0, 3.0, -4.0, 5.0, -6.0, 7.0, -8.0]
B = [1.0, 1.0, -1.0, -1.0, 8.0, 8.0, -8.0, -8.0]


def merged(method: str, sources: dict[str, Tensors], coefficients: dict[str, object], **options: object) -> list[float]:
    result = merge(method, sources, coefficients, base="base", options=options)  # type: ignore[arg-type]
    assert torch.equal(result["layer.1.weight"], sources["base"]["layer.1.weight"])
    return result["layer.0.bias"].tolist()


def test_ties_by_hand() -> None:
    sources = one_tensor(ZERO, A, B)
    # δa keeps 5, −6, 7, −8; all of δb but its fours of 1 is kept as well.
    assert merged("ties", sources, {"weight": 1.0, "density": 0.5}) == [0, 0, 0, 0, 6.5, 8, -8, -8]
    assert merged("ties", sources, {"weight": 1.0, "density": 0.5}, normalize=False) == [0, 0, 0, 0, 13, 8, -8, -16]
    assert merged("ties", sources, {"weight": {"a": 2.0, "b": 1.0}, "density": 0.5, "lambda": 0.5}) == [
        0, 0, 0, 0, 3, -3, 3.5, -4,
    ]  # fmt: skip
    # A negative weight votes for the other sign: −5, 6, −7 and 8 against 8, 8, −8 and −8.
    weight = {"a": -1.0, "b": 1.0}
    assert merged("ties", sources, {"weight": weight, "density": 0.5}, normalize=False) == [0, 0, 0, 0, 8, 14, -15, 8]


def test_a_vote_of_zero_is_positive() -> None:
    sources = one_tensor(ZERO, [2.0] * 8, [-2.0] * 8)
    assert merged("ties", sources, {"weight": 1.0}) == [2.0] * 8


def test_weights_that_cancel_are_not_divided_by() -> None:
    sources = one_tensor(ZERO, [2.0] * 8, [-2.0] * 8, [-1.0] * 8)
    weight = {"a": 0.1, "b": -0.3, "c": -0.2}  # all positive after weighting; Σ kept = −0.4
    assert merged("ties", sources, {"weight": weight}) == pytest.approx([-2.5] * 8)
    weight = {"a": 0.3, "b": -0.1, "c": -0.2}  # Σ kept is 0 but for rounding
    assert merged("ties", sources, {"weight": weight}) == pytest.approx([1.0] * 8)


def test_elements_as_large_as_the_threshold_are_all_kept() -> None:
    sources = one_tensor(ZERO, [1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 3.0, 3.0])
    assert merged("ties", sources, {"weight": 1.0, "density": 0.625}) == [1, 1, 1, 1, 2, 2, 3, 3]
    assert merged("ties", sources, {"weight": 1.0, "density": 0.5}) == [0, 0, 0, 0, 2, 2, 3, 3]
    assert merged("ties", sources, {"weight": 1.0, "density": 0.01}) == [0, 0, 0, 0, 0, 0, 3, 3]
    assert merged("ties", sources, {"weight": 1.0, "density": 0.0}) == ZERO


def test_breadcrumbs_by_hand() -> None:
    sources = one_tensor(ZERO, A)
    assert merged("breadcrumbs", sources, {"weight": 2.0, "density": 0.5, "gamma": 0.25}) == [
        0, 0, 6, -8, 10, -12, 0, 0,
    ]  # fmt: skip
    # No room for two outliers: one is dropped.
    assert merged("breadcrumbs", sources, {"weight": 1.0, "density": 0.875, "gamma": 0.25}) == [*A[:7], 0.0]
    assert merged("breadcrumbs", sources, {"weight": 1.0, "density": 0.1, "gamma": 0.25}) == ZERO
    both = one_tensor(ZERO, A, B)
    coefficients = {"weight": 1.0, "density": {"a": 0.5, "b": 1.0}, "gamma": 0.25}
    assert merged("breadcrumbs_ties", both, coefficients) == [1, 1, 3, -5, 13, 8, -8, -8]


def test_density_1_is_the_dense_election() -> None:
    sources = make_sources(NAMES)
    weight = {"a": 0.5, "b": -0.7, "c": 1.2}
    result = merge("ties", sources, {"weight": weight, "density": 1.0, "lambda": 0.8}, base="base")
    for name, tensor in result.items():
        base = sources["base"][name].double()
        deltas = torch.stack([w * (sources[s][name].double() - base) for s, w in weight.items()])
        agrees = deltas.sign() == deltas.sum(0).sign()
        factors = torch.tensor(list(weight.values())).double().view(-1, *[1] * base.dim())
        expected = base + 0.8 * (deltas * agrees).sum(0) / (factors * agrees).sum(0)
        torch.testing.assert_close(tensor.double(), expected, rtol=1e-5, atol=1e-5)


def test_sce_by_hand() -> None:
    sources = one_tensor(ZERO, [3.0, 1.0, 2.0, 0.0, 2.0, 0.0, 0.0, 0.0], [-1.0, 1.0, 2.0, 1.0, -4.0, 0.0, 0.0, 0.0])
    # Variances: 4, 0, 0, ¼, 9, 0, 0, 0. Two thirds of three that vary: the first and the fifth.
    # Shares: 9 + 4 and 1 + 16, of 30. The first votes for a, the fifth for b.
    assert merged("sce", sources, {"select_topk": 0.7}) == pytest.approx([3, 0, 0, 0, -4, 0, 0, 0])
    assert merged("sce", sources, {"select_topk": 1.0}) == pytest.approx([3, 1, 2, 1, -4, 0, 0, 0])
    assert merged("sce", sources, {"select_topk": 0.3}) == ZERO
    unlike = one_tensor(ZERO, [1.0] * 8, [2.0] * 8)
    assert merged("sce", unlike, {}) == pytest.approx([(1 * 8 + 2 * 32) / 40] * 8)


def test_sce_weighs_small_task_vectors_by_their_size_too() -> None:
    """mergekit's constants would make shares equal here."""
    sources = one_tensor(ZERO, [1e-5] * 8, [2e-5] * 8)
    assert merged("sce", sources, {}) == pytest.approx([1.8e-5] * 8)


@pytest.mark.parametrize("method", ["ties", "breadcrumbs", "breadcrumbs_ties", "sce"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_tensors_too_large_to_sort_are_merged_alike(method: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """The way by digits, on the tensors that other tests sort, whatever is remembered and where."""
    names = ["base", "a", "b"]
    sources = make_sources(names, dtype)
    drawn = {"select_topk": 0.4} if method == "sce" else {"weight": {"a": 0.4, "b": 0.9}, "density": 0.4}
    expected = merge(method, sources, drawn, base="base", dtype=dtype)
    for _ in range(2):
        target = {n: t.clone() for n, t in sources["a"].items()}
        merger = ResidentMerger(target, sources, PLACES, chunk_elements=16, statistics=tmp_path)
        with patch("mergesearch.merging.order_statistics.SMALL", 0):
            for share in (0.9, 0.4):
                key = "select_topk" if method == "sce" else "density"
                merger.apply(make_recipe(method, names, {ALL_PLACES: {**drawn, key: share}}, base="base", dtype=dtype))
        assert all(torch.equal(target[n], t) for n, t in expected.items())


def test_mergekits_arithmetic_sees_the_sources_as_listed() -> None:
    names = ["b", "base", "a"]
    recipe = make_recipe("ties", names, {}, base="base", options={"arithmetic": "mergekit"})
    assert METHODS["ties"].sources_of(recipe) == ("b", "a")
    assert METHODS["ties"].sources_of(make_recipe("ties", names, {}, base="base")) == ("a", "b")


@pytest.mark.parametrize("method", ["ties", "breadcrumbs_ties", "sce"])
def test_no_tensor_is_copied_or_sorted_whole(method: str) -> None:
    """Counts, and a few parts; the tensor is 16 MiB."""
    sources = {name: {"w": torch.randn(1 << 22)} for name in ("base", "a", "b")}
    merger = ResidentMerger({"w": torch.zeros(1 << 22)}, sources, {"w": "layer.0"}, chunk_elements=1 << 14)
    drawn = {"select_topk": 0.4} if method == "sce" else {"weight": {"a": 0.4, "b": 0.9}, "density": 0.4}
    recipe = make_recipe(method, list(sources), {("layer.0",): drawn}, base="base")
    assert peak_bytes(lambda: merger.apply(recipe)) < 4 << 20
