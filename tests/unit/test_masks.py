"""The random masks of DARE and DELLA: what decides them, how much they keep, and what the rescale restores."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from unittest.mock import patch

import pytest
import torch

from mergesearch.merging import METHODS, ResidentMerger, masks
from tests.conformance.merging import make_recipe

SHAPE = (300, 256)
RANDOM = ["dare_linear", "dare_ties", "della", "della_linear"]
every_random_method = pytest.mark.parametrize("method", RANDOM)

Model = dict[str, torch.Tensor]


def model(seed: int, device: str = "cpu") -> Model:
    generator = torch.Generator().manual_seed(seed)
    return {"w": torch.randn(SHAPE, generator=generator).to(device)}


def merged(
    method: str,
    density: float | Mapping[str, float],
    *,
    sources: Mapping[str, Model] | None = None,
    seed: int = 0,
    chunk_elements: int = 1 << 20,
    device: str = "cpu",
    rescale: bool = True,
    **coefficients: float,
) -> torch.Tensor:
    """Base 0, so that what is left is what was kept of the task vectors."""
    sources = sources or {"a": model(1, device)}
    everything = {"base": {"w": torch.zeros(SHAPE, device=device)}, **sources}
    target = {"w": torch.zeros(SHAPE, device=device)}
    merger = ResidentMerger(target, everything, {"w": "all"}, chunk_elements=chunk_elements)
    drawn = {"weight": 1.0, "density": density, **coefficients}
    options = {"rescale": rescale}
    merger.apply(make_recipe(method, list(everything), {("all",): drawn}, base="base", seed=seed, options=options))
    return target["w"]


def test_every_random_method_is_tested_here() -> None:
    assert set(RANDOM) == {name for name, method in METHODS.items() if "random" in method.properties}


@every_random_method
def test_masks_follow_from_seed_and_source_and_from_nothing_else(method: str) -> None:
    first = merged(method, 0.5)
    for chunk_elements in (700, 1 << 14):
        assert torch.equal(merged(method, 0.5, chunk_elements=chunk_elements), first)
    if torch.cuda.is_available():
        torch.testing.assert_close(merged(method, 0.5, device="cuda").cpu(), first, rtol=1e-6, atol=0)
    for other in (merged(method, 0.5, seed=1), merged(method, 0.5, sources={"b": model(1)})):
        assert 0.4 < float((other.bool() ^ first.bool()).float().mean()) < 0.6


@every_random_method
def test_masks_that_are_too_large_to_keep_are_drawn_again(method: str) -> None:
    expected = merged(method, 0.3)
    with patch.object(masks, "KEPT_ELEMENTS", 0):
        assert torch.equal(merged(method, 0.3), expected)


@every_random_method
def test_sources_are_masked_independently(method: str) -> None:
    """Each is kept as if it were the only one, and whether one is kept says nothing about the other."""
    alone = [merged(method, 0.5, sources={name: model(i)}) for i, name in enumerate("ab")]
    both = merged(method, 0.5, sources={name: model(i) for i, name in enumerate("ab")}, weight=1.0)
    if METHODS[method].dense == "task_arithmetic":
        torch.testing.assert_close(both, alone[0] + alone[1])
    coincide = float((alone[0].bool() & alone[1].bool()).float().mean())
    assert abs(coincide - 0.25) < 0.01  # five standard deviations: 5 · √(.25 · .75 / 76,800) = .008


@every_random_method
def test_a_lower_density_keeps_a_subset(method: str) -> None:
    densities = (0.0, 0.05, 0.2, 0.5, 0.81, 0.9, 0.97, 1.0)
    kept = [merged(method, density).bool() for density in densities]
    assert not kept[0].any()
    assert kept[-1].all()
    for lower, higher in itertools.pairwise(kept):
        assert not (lower & ~higher).any()
        assert (higher & ~lower).any()


@every_random_method
@pytest.mark.parametrize("density", [0.02, 0.1, 0.5, 0.9, 0.99])
def test_the_expected_share_is_kept(method: str, density: float) -> None:
    share = float(merged(method, density).bool().double().mean())
    n = SHAPE[0] * SHAPE[1]
    assert abs(share - density) < 5 * (density * (1 - density) / n) ** 0.5


@every_random_method
@pytest.mark.parametrize("density", [0.001, 0.1, 0.7])
def test_the_rescale_keeps_the_l1_norm_and_nothing_but_scales(method: str, density: float) -> None:
    source = model(1)["w"].double()
    scaled, plain = (merged(method, density, rescale=r, chunk_elements=5000).double() for r in (True, False))
    assert float(scaled.abs().sum() / source.abs().sum()) == pytest.approx(1, abs=1e-5)
    assert torch.equal(plain, source * plain.bool())
    factors = (scaled / plain)[plain.bool()]
    torch.testing.assert_close(factors, factors[:1].expand_as(factors), rtol=1e-6, atol=0)


@every_random_method
def test_next_to_nothing_is_not_scaled_up(method: str) -> None:
    """Where all but the smallest elements were dropped, a factor that restores the norm would blow up noise."""
    source = torch.full(SHAPE, 1e-30)
    source[0, 0] = 1.0
    seed = next(seed for seed in range(100) if not merged(method, 0.3, sources={"a": {"w": source}}, seed=seed)[0, 0])
    left = merged(method, 0.3, sources={"a": {"w": source}}, seed=seed)
    assert 0 < left.max() < 1e-29


@pytest.mark.parametrize(("density", "epsilon", "reach"), [(0.5, 0.15, 0.15), (0.5, 0.5, 0.5), (0.9, 0.3, 0.1)])
def test_della_keeps_larger_elements_of_a_row_more_often(density: float, epsilon: float, reach: float) -> None:
    """From density − ε to density + ε by rank, ε cut to what fits, however large the other rows are."""
    rows = model(1)["w"] * torch.logspace(-3, 3, SHAPE[0]).unsqueeze(1)
    kept = merged("della_linear", density, sources={"a": {"w": rows}}, epsilon=epsilon).bool()
    by_rank = kept.gather(1, rows.abs().argsort(dim=1)).double().view(SHAPE[0], 8, -1).mean((0, 2))
    expected = density + reach * (2 * (torch.arange(8, dtype=torch.float64) + 0.5) / 8 - 1)
    slack = 5 * (0.25 / (SHAPE[0] * SHAPE[1] / 8)) ** 0.5
    torch.testing.assert_close(by_rank, expected, rtol=0, atol=slack)


def test_della_without_epsilon_is_dare() -> None:
    assert torch.equal(merged("della_linear", 0.4, epsilon=0.0), merged("dare_linear", 0.4))
