"""What the registry carries beyond the methods that ship: rows, random masks, statistics that are kept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated
from unittest.mock import patch

import pytest
import torch

from mergesearch.merging import METHODS, MergeMethod, ResidentMerger, merge_method
from mergesearch.merging.registry import Doc, PerSource, Range, Site, Tensors
from mergesearch.merging.statistics import Statistics
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

    def unprepared(tensors: Tensors, prepared: float) -> torch.Tensor:
        return tensors[0]

    for kernel, message in ((unmarked, "weight"), (option_without_default, "scale"), (underscore, "underscore")):
        with pytest.raises(TypeError, match=message):
            declare(kernel)
    with pytest.raises(TypeError, match="prepare"):
        declare(unprepared)
    with pytest.raises(TypeError, match="prepare"):
        merge_method(title="", paper=PAPER, prepare=lambda site: 1.0)(underscored_free)
    with pytest.raises(TypeError, match="density"):
        merge_method(title="", paper=PAPER, dense="linear")(underscored_free)
    with pytest.raises(TypeError, match="densty"):
        merge_method(title="", paper=PAPER, prepare=lambda site, densty: 1.0)(unprepared)
    with pytest.raises(TypeError, match="Did you mean 'symmetric'"):
        merge_method(title="", paper=PAPER, properties=["symetric"])(underscored_free)
    assert "unprepared" not in METHODS


def underscored_free(tensors: Tensors) -> torch.Tensor:
    return tensors[0]


def test_what_is_prepared_sees_the_whole_tensor_whatever_its_parts() -> None:
    def norm(site: Site, power: float) -> float:
        return sum(float(part.tensors[0].abs().pow(power).sum()) for part in site.parts())

    @merge_method(title="Scaled", paper=PAPER, prepare=norm)
    def scaled(tensors: Tensors, prepared: float, power: Annotated[float, Range("Power.", 1.0, 2.0)]) -> torch.Tensor:
        """The source times a norm of all of it."""
        return tensors[0] * prepared

    for chunk_elements in (3, 1 << 20):
        merged = merge("scaled", make_sources(["a"]), {"power": 2.0}, chunk_elements=chunk_elements)
        for name, tensor in make_source(1).items():
            torch.testing.assert_close(merged[name], tensor * tensor.square().sum())


def test_by_rows_parts_are_blocks_of_whole_rows() -> None:
    seen: set[tuple[int, ...]] = set()

    @merge_method(title="Rows", paper=PAPER, by_rows=True)
    def rows(tensors: Tensors, site: Site, start: int) -> torch.Tensor:
        """Every row in proportion to its norm."""
        seen.add((*site.shape, *tensors[0].shape, start))
        return tensors[0] * tensors[0].norm(dim=-1, keepdim=True)

    merged = merge("rows", make_sources(["a"]), {}, chunk_elements=16)
    for name, tensor in make_source(1).items():
        torch.testing.assert_close(merged[name], tensor * tensor.norm(dim=-1, keepdim=tensor.dim() > 0))
    assert {(8, 8, 2, 8, 0), (8, 8, 2, 8, 48), (11, 8, 1, 8, 80), (8, 1, 8, 0), (1, 1, 0)} <= seen


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
        tensors: Tensors, site: Site, start: int, density: Annotated[float, Range("Share that is kept.", 0.0, 1.0)]
    ) -> torch.Tensor:
        """Every source with some of its elements dropped."""
        kept = [
            x * (site.uniform(name, start, torch.empty_like(x)) < density)
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


def test_random_numbers_are_uniform_and_independent() -> None:
    site = Site("w", (1 << 20,), ("a", "b"), None, 0, lambda: iter(()), Statistics(), {})
    one, other = (site.uniform(source, 0, torch.empty(1 << 20)).double() for source in ("a", "b"))
    for numbers in (one, other):
        counts = torch.histc(numbers, 256, 0, 1)
        chi_square = float(((counts - 4096) ** 2 / 4096).sum())
        assert 150 < chi_square < 400  # 255 ± 23
        for lag in (1, 2, 384, 1536):
            assert abs(float(torch.corrcoef(torch.stack([numbers[:-lag], numbers[lag:]]))[0, 1])) < 5e-3
    assert abs(float(torch.corrcoef(torch.stack([one, other]))[0, 1])) < 5e-3
    assert torch.equal(site.uniform("a", 1000, torch.empty(8, 3)).view(-1).double(), one[1000:1024])


@pytest.mark.parametrize("t", [-0.4, 0.3, 0.7, 1.6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("method", "base"), [("linear", None), ("task_arithmetic", "a")])
def test_an_interpolation_in_one_pass_is_what_one_in_parts_gives(
    method: str, base: str | None, dtype: torch.dtype, t: float
) -> None:
    """Sources of different dtypes are converted part by part, whatever numbers they hold."""
    sources = make_sources(["a", "b"], dtype)
    mixed = {"a": sources["a"], "b": {name: tensor.double() for name, tensor in sources["b"].items()}}
    weight = {"b": t} if base else {"a": 1 - t, "b": t}
    assert METHODS[method].bind({"weight": weight}, [n for n in "ab" if n != base], {}).interpolation
    in_one_pass, in_parts = (merge(method, s, {"weight": weight}, base=base, dtype=dtype) for s in (sources, mixed))
    for name, tensor in in_parts.items():
        assert torch.equal(in_one_pass[name], tensor)


def test_statistics_of_the_sources_are_made_once(tmp_path: Path) -> None:
    made = []

    def largest(site: Site) -> torch.Tensor:
        def build() -> torch.Tensor:
            made.append(site.tensor)
            return torch.stack([part.tensors[0].abs().max() for part in site.parts()]).max()

        return site.remember("largest", build, of=[site.sources[0]])

    @merge_method(title="Threshold", paper=PAPER, prepare=largest)
    def threshold(
        tensors: Tensors, prepared: torch.Tensor, t: Annotated[float, Range("Factor.", 0.0, 1.0)]
    ) -> torch.Tensor:
        """Elements above a share of the largest."""
        return tensors[0] * (tensors[0].abs() >= t * prepared)

    def merged(source: str, statistics: Path | None) -> dict[str, torch.Tensor]:
        target = make_source(2)
        merger = ResidentMerger(target, make_sources([source]), PLACES, chunk_elements=16, statistics=statistics)
        for t in (0.1, 0.5, 0.9):
            merger.apply(make_recipe("threshold", [source], {ALL_PLACES: {"t": t}}))
        return target

    def made_anew() -> list[str]:
        names = sorted(name for name in made if name != "rehearsal")
        made.clear()
        return names

    for statistics in (None, tmp_path):
        target = merged("a", statistics)
        assert made_anew() == sorted(SHAPES)
        for name, tensor in make_source(1).items():
            assert torch.equal(target[name], tensor * (tensor.abs() >= 0.9 * tensor.abs().max()))
    merged("a", tmp_path)
    assert made_anew() == []
    merged("b", tmp_path)  # another content
    assert made_anew() == sorted(SHAPES)
    for file in tmp_path.rglob("*.safetensors"):
        file.write_bytes(b"half")
    merged("a", tmp_path)
    assert made_anew() == sorted(SHAPES)
