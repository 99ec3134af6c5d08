"""What the registry carries beyond the methods that ship: whole tensors, random masks, statistics that are kept."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated
from unittest.mock import patch

import pytest
import torch

from mergesearch.merging import METHODS, MergeMethod, ResidentMerger, merge_method
from mergesearch.merging.registry import Doc, PerSource, Range, Site, Tensors
from tests.conformance.merging import ALL_PLACES, PLACES, SHAPES, make_recipe, make_source, make_sources, merge

PAPER = "https://example.org"


@pytest.fixture(autouse=True)
def _registry() -> Iterator[None]:
    with patch.dict(METHODS):
        yield


def test_a_signature_declares_the_method() -> None:
    @merge_method(title="Mixed", paper=PAPER, max_sources=1)
    def mixed(
        tensors: Tensors,
        base: torch.Tensor | None = None,
        *,
        density: Annotated[PerSource, Range("Share that is kept.", 0.0, 1.0)] = 1.0,  # type: ignore[assignment]
        tau: Annotated[float, Range("Temperature.", 1e-3, 10.0, log=True)],
        lambda_: Annotated[float, Range("Factor.")] = 1.0,
        rescale: Annotated[bool, Doc("Make up for what was dropped.")] = True,
        rule: Annotated[str, Doc("How signs are elected.")] = "sum",
        eps: Annotated[float, Doc("Smallest norm.")] = 1e-8,
    ) -> torch.Tensor:
        """The first source."""
        return tensors[0].clone()

    assert METHODS["mixed"] is mixed
    assert (mixed.needs_base, mixed.takes_base, mixed.min_sources, mixed.max_sources) == (False, True, 1, 1)
    assert list(mixed.coefficients) == ["density", "tau", "lambda"]
    density, tau = mixed.coefficients["density"], mixed.coefficients["tau"]
    assert (density.per_source, density.low, density.high, density.default) == (True, 0.0, 1.0, 1.0)
    assert (tau.per_source, tau.default, tau.log, tau.doc) == (False, None, True, "Temperature.")
    assert {name: option.type for name, option in mixed.options.items()} == {"rescale": bool, "rule": str, "eps": float}
    bound = mixed.bind({"tau": 1, "density": {"a": 0.5}}, ["a"], {"eps": 1})
    assert bound.arguments == {
        "density": [0.5], "tau": 1.0, "lambda_": 1.0, "rescale": True, "rule": "sum", "eps": 1,
    }  # fmt: skip


def test_declarations_that_contradict_themselves_are_refused() -> None:
    declare = merge_method(title="", paper=PAPER)

    def unmarked(tensors: Tensors, weight: float) -> torch.Tensor:
        return tensors[0]

    def option_without_default(tensors: Tensors, scale: Annotated[bool, Doc("")]) -> torch.Tensor:
        return tensors[0]

    def underscore(tensors: Tensors, weight_: Annotated[float, Range("")]) -> torch.Tensor:
        return tensors[0]

    def chunked(tensors: Tensors, site: Site) -> torch.Tensor:
        return tensors[0]

    for kernel, message in ((unmarked, "weight"), (option_without_default, "scale"), (underscore, "underscore")):
        with pytest.raises(TypeError, match=message):
            declare(kernel)
    with pytest.raises(TypeError, match="site"):
        merge_method(title="", paper=PAPER, elementwise=True)(chunked)
    with pytest.raises(TypeError, match="Did you mean 'symmetric'"):
        merge_method(title="", paper=PAPER, properties=["symetric"])(underscored_free)
    assert "chunked" not in METHODS


def underscored_free(tensors: Tensors) -> torch.Tensor:
    return tensors[0]


def test_kernels_that_are_not_elementwise_see_whole_tensors() -> None:
    seen = []

    @merge_method(title="Rows", paper=PAPER)
    def rows(tensors: Tensors) -> torch.Tensor:
        """Sources in proportion to the norm of all of the first one."""
        seen.append(tuple(tensors[0].shape))
        return tensors[0] * tensors[0].norm()

    merged = merge("rows", make_sources(["a"]), {})
    assert sorted(seen[1:]) == sorted(SHAPES.values())  # after the rehearsal
    for name, tensor in make_source(1).items():
        assert torch.equal(merged[name], tensor * tensor.norm())


def test_a_result_of_another_shape_is_refused() -> None:
    @merge_method(title="Mean", paper=PAPER)
    def mean(tensors: Tensors) -> torch.Tensor:
        """A number where a tensor is wanted, which broadcasting would hide."""
        return tensors[0].mean()

    with pytest.raises(TypeError, match="mean made"):
        merge("mean", make_sources(["a"]), {})


def random_mask() -> MergeMethod:
    @merge_method(title="Drop", paper=PAPER)
    def drop(
        tensors: Tensors, site: Site, density: Annotated[float, Range("Share that is kept.", 0.0, 1.0)]
    ) -> torch.Tensor:
        """Every source with some of its elements dropped."""
        kept = [
            x * (torch.rand(x.shape, generator=site.generator(name)) < density)
            for name, x in zip(site.sources, tensors, strict=True)
        ]
        return torch.stack(kept).sum(0)

    return drop


def test_masks_follow_seed_source_and_tensor_and_nothing_else() -> None:
    random_mask()
    ones = {source: {n: torch.ones(s) for n, s in SHAPES.items()} for source in ("a", "b")}

    def masks(order: tuple[str, ...] = ("a",), seed: int = 0, density: float = 0.5) -> dict[str, torch.Tensor]:
        return merge("drop", {s: ones[s] for s in order}, {"density": density}, seed=seed)

    first = masks()
    assert all(torch.equal(first[n], t) for n, t in masks().items())
    assert not torch.equal(first["embed.weight"], masks(seed=1)["embed.weight"])
    assert not torch.equal(first["embed.weight"], masks(("b",))["embed.weight"])
    assert not torch.equal(first["layer.0.weight"], first["layer.1.weight"])
    assert all(torch.equal(t, masks(("b", "a"))[n]) for n, t in masks(("a", "b")).items())
    # Common random numbers: what a lower density keeps, a higher one keeps too.
    assert all((masks(density=0.7)[n] >= t).all() for n, t in first.items())
    assert 0.3 < first["embed.weight"].mean() < 0.7


def test_statistics_of_the_sources_are_made_once() -> None:
    made = []

    @merge_method(title="Threshold", paper=PAPER)
    def threshold(tensors: Tensors, site: Site, t: Annotated[float, Range("Factor.", 0.0, 1.0)]) -> torch.Tensor:
        """Elements above a share of the largest."""

        def largest() -> torch.Tensor:
            made.append(site.tensor)
            return tensors[0].abs().max()

        return tensors[0] * (tensors[0].abs() >= t * site.remember("largest", largest))

    target = make_source(2)
    merger = ResidentMerger(target, make_sources(["a"]), PLACES)
    for t in (0.1, 0.5, 0.9):
        merger.apply(make_recipe("threshold", ["a"], {ALL_PLACES: {"t": t}}))
    assert sorted(name for name in made if name != "rehearsal") == sorted(SHAPES)
    for name, tensor in make_source(1).items():
        assert torch.equal(target[name], tensor * (tensor.abs() >= 0.9 * tensor.abs().max()))
