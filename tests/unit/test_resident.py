"""The resident merger: which groups are written, what is refused, and what happens after a failure."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Annotated
from unittest.mock import patch

import pytest
import torch

from mergesearch.errors import MergeError
from mergesearch.merging import METHODS, ResidentMerger, merge_method
from mergesearch.merging.registry import Range
from mergesearch.merging.registry import Tensors as KernelTensors
from tests.conformance.merging import (
    ALL_PLACES,
    PLACES,
    SHAPES,
    Tensors,
    make_merger,
    make_recipe,
    make_source,
    make_sources,
)

NAMES = ["retriever", "domain"]
HALF = {"weight": {"retriever": 0.5, "domain": 0.5}}
QUARTER = {"weight": {"retriever": 0.25, "domain": 0.75}}
FRONT, BACK = ALL_PLACES[:3], ALL_PLACES[3:]


def in_place(target: Tensors, sources: dict[str, Tensors]) -> ResidentMerger:
    return ResidentMerger(target, sources, PLACES, chunk_elements=16)


def test_arithmetic_written_out() -> None:
    sources = make_sources([*NAMES, "other"])
    target = make_source(1)
    merger = in_place(target, sources)
    weights = {"retriever": 1.0, "domain": 3.0, "other": -2.0}

    merger.apply(make_recipe("linear", list(sources), {ALL_PLACES: {"weight": weights}}))
    for name, tensor in target.items():
        a, b, c = (sources[s][name].double() for s in sources)
        torch.testing.assert_close(tensor.double(), (1 * a + 3 * b - 2 * c) / 2, rtol=0, atol=3e-6)

    task = {"weight": {"domain": 0.5, "other": 2.0}, "lambda": 0.3}
    merger.apply(make_recipe("task_arithmetic", list(sources), {ALL_PLACES: task}, base="retriever"))
    for name, tensor in target.items():
        base, b, c = (sources[s][name].double() for s in sources)
        expected = base + 0.3 * (0.5 * (b - base) + 2.0 * (c - base))
        torch.testing.assert_close(tensor.double(), expected, rtol=0, atol=3e-6)


def test_weights_are_not_divided_without_normalize() -> None:
    sources = make_sources(NAMES)
    target = make_source(1)
    weights = {"weight": {"retriever": 1.0, "domain": 1.0}}
    recipe = make_recipe("linear", NAMES, {ALL_PLACES: weights}, options={"normalize": False})
    in_place(target, sources).apply(recipe)
    for name, tensor in target.items():
        assert torch.equal(tensor, sources["retriever"][name] + sources["domain"][name])


def test_live_parameters_of_a_module_are_overwritten_in_place() -> None:
    module = torch.nn.Linear(3, 2)
    addresses = {name: p.data_ptr() for name, p in module.named_parameters()}
    places = dict.fromkeys(addresses, "layer.0")
    sources = {name: {n: torch.randn_like(p) for n, p in module.named_parameters()} for name in NAMES}
    merger = ResidentMerger(dict(module.named_parameters()), sources, places)
    merger.apply(make_recipe("linear", NAMES, {("layer.0",): {"weight": {"retriever": 0.0, "domain": 1.0}}}))
    for name, parameter in module.named_parameters():
        assert parameter.data_ptr() == addresses[name]
        assert torch.equal(parameter, sources["domain"][name])
        assert parameter.requires_grad


def test_only_groups_that_changed_are_written() -> None:
    merger = make_merger(make_sources(NAMES), torch.float32)
    both = make_recipe("linear", NAMES, {FRONT: HALF, BACK: HALF})
    back = make_recipe("linear", NAMES, {FRONT: HALF, BACK: QUARTER})
    assert merger.apply(both) == ("+".join(FRONT), "+".join(BACK))
    assert merger.apply(both) == ()
    assert merger.apply(back) == ("+".join(BACK),)
    # What decides a tensor is the same however groups are cut.
    assert (
        merger.apply(make_recipe("linear", NAMES, {ALL_PLACES[:1]: HALF, ALL_PLACES[1:3]: HALF, BACK: QUARTER})) == ()
    )


@pytest.mark.parametrize("change", [{"seed": 1}, {"options": {"normalize": False}}], ids=["seed", "options"])
def test_anything_that_may_change_weights_is_a_change(change: dict[str, object]) -> None:
    merger = make_merger(make_sources(NAMES), torch.float32)
    merger.apply(make_recipe("linear", NAMES, {ALL_PLACES: HALF}))
    assert merger.apply(make_recipe("linear", NAMES, {ALL_PLACES: HALF}, **change))


def test_coefficients_that_are_changed_afterwards_do_not_pass_for_written() -> None:
    merger = make_merger(make_sources(NAMES), torch.float32)
    weights = {"retriever": 0.5, "domain": 0.5}
    recipe = make_recipe("linear", NAMES, {ALL_PLACES: {"weight": weights}})
    merger.apply(recipe)
    weights["domain"] = 0.9
    assert merger.apply(recipe)


def test_groups_of_the_template_stay_as_they_are_and_come_back() -> None:
    sources = make_sources(NAMES)
    target = make_source(1)
    merger = in_place(target, sources)
    assert merger.apply(make_recipe("linear", NAMES, {FRONT: "retriever", BACK: HALF})) == ("+".join(BACK),)
    merger.apply(make_recipe("linear", NAMES, {ALL_PLACES: HALF}))
    assert merger.apply(make_recipe("linear", NAMES, {FRONT: "retriever", BACK: HALF})) == ("+".join(FRONT),)
    for name, place in PLACES.items():
        assert torch.equal(target[name], sources["retriever"][name]) == (place in FRONT)


def test_the_template_need_not_be_given_where_it_is_never_overwritten() -> None:
    in_back = [name for name, place in PLACES.items() if place in BACK]
    sources = {s: {n: tensors[n] for n in in_back} for s, tensors in make_sources(NAMES).items()}
    merger = in_place(make_source(1), sources)
    merger.apply(make_recipe("linear", NAMES, {FRONT: "retriever", BACK: HALF}))
    with pytest.raises(MergeError, match=r"embed\.weight"):
        merger.apply(make_recipe("linear", NAMES, {FRONT: "domain", BACK: HALF}))
    with pytest.raises(MergeError, match=r"needs tensors of source 'domain'"):
        merger.apply(make_recipe("linear", NAMES, {ALL_PLACES: HALF}))


def test_copied_groups_take_the_dtype_of_the_model() -> None:
    sources = make_sources(NAMES)
    target = {name: tensor.bfloat16() for name, tensor in make_source(1).items()}
    merger = in_place(target, sources)
    assert merger.apply(make_recipe("linear", NAMES, {FRONT: "domain", BACK: HALF}, dtype=torch.bfloat16))
    assert torch.equal(target["embed.weight"], sources["domain"]["embed.weight"].bfloat16())


def test_sources_may_differ_in_dtype() -> None:
    sources = {
        "retriever": make_source(1),
        "domain": make_source(2, torch.bfloat16),
        "x": make_source(3, torch.float16),
    }
    target = make_source(1)
    weights = {"retriever": 0.0, "domain": 0.5, "x": 0.5}
    in_place(target, sources).apply(make_recipe("linear", list(sources), {ALL_PLACES: {"weight": weights}}))
    for name, tensor in target.items():
        mean = (sources["domain"][name].float() + sources["x"][name].float()) / 2
        torch.testing.assert_close(tensor, mean, rtol=1e-6, atol=1e-6)


def test_a_failure_half_way_is_mended_by_the_next_merge() -> None:
    """A kernel that runs out of luck leaves part of a group written; neither recipe may be taken for done."""
    luck = [True]

    with patch.dict(METHODS):

        @merge_method(title="Fragile", paper="https://example.org")
        def fragile(
            tensors: KernelTensors, out: torch.Tensor, scale: Annotated[float, Range("Factor.")]
        ) -> torch.Tensor:
            """The first source times a factor, if all goes well."""
            if out.numel() == SHAPES["norm.weight"][0] and not luck[0]:
                raise RuntimeError("out of luck")
            return torch.mul(tensors[0], scale, out=out)

        sources = make_sources(["a"])
        merger = in_place(make_source(2), sources)
        first, second = (make_recipe("fragile", ["a"], {FRONT: {"scale": s}, BACK: {"scale": s}}) for s in (1.0, 2.0))
        merger.apply(first)
        whole = merger.fingerprint()
        luck[0] = False
        with pytest.raises(RuntimeError, match="out of luck"):
            merger.apply(second)
        assert merger.fingerprint() != whole
        luck[0] = True
        assert merger.apply(first) == ("+".join(FRONT),)  # where it failed; nothing behind it was touched
        assert merger.fingerprint() == whole
        assert merger.apply(first) == ()


def test_a_bad_group_is_refused_before_any_group_is_written() -> None:
    merger = make_merger(make_sources(NAMES), torch.float32)
    before = merger.fingerprint()
    bad = {"weight": {"retriever": 0.5, "domian": 0.5}}
    with pytest.raises(MergeError) as caught:
        merger.apply(make_recipe("linear", NAMES, {FRONT: HALF, BACK: bad}))
    assert "Did you mean 'domain'" in str(caught.value)
    assert "no value for source 'domain'" in str(caught.value)
    assert "+".join(BACK) in str(caught.value)
    assert merger.fingerprint() == before


@pytest.mark.parametrize("weights", [(0.0, 0.0), (1.0, -1.0), (0.1 + 0.2, -0.3)])
def test_weights_that_sum_to_zero_are_refused(weights: tuple[float, float]) -> None:
    merger = make_merger(make_sources(NAMES), torch.float32)
    with pytest.raises(MergeError, match="sum to"):
        merger.apply(make_recipe("linear", NAMES, {ALL_PLACES: {"weight": dict(zip(NAMES, weights, strict=True))}}))


def test_groups_must_cover_every_place_once() -> None:
    merger = make_merger(make_sources(NAMES), torch.float32)
    with pytest.raises(MergeError) as caught:
        merger.apply(make_recipe("linear", NAMES, {("embed", "layer.0"): HALF, ("layer.0", "layr.1"): HALF}))
    message = str(caught.value)
    assert "'layer.0' belongs to more than one group" in message
    assert "'norm' belongs to no group" in message
    assert "unknown place 'layr.1'. Did you mean 'layer.1'" in message


def test_dtype_of_recipe_and_model_must_agree() -> None:
    merger = make_merger(make_sources(NAMES), torch.float32)
    with pytest.raises(MergeError, match="bfloat16"):
        merger.apply(make_recipe("linear", NAMES, {ALL_PLACES: HALF}, dtype=torch.bfloat16))


def test_unknown_method_is_named_with_the_closest() -> None:
    merger = make_merger(make_sources(NAMES), torch.float32)
    with pytest.raises(MergeError, match="Did you mean 'linear'"):
        merger.apply(make_recipe("liner", NAMES, {ALL_PLACES: HALF}))


def test_everything_wrong_with_the_tensors_is_reported_at_once() -> None:
    target = make_source(1)
    sources = make_sources(NAMES)
    sources["domain"]["embed.weight"] = torch.zeros(12, 8)
    sources["domain"]["head.weight"] = torch.zeros(2)
    sources["retriever"]["norm.weight"] = target["norm.weight"]
    with pytest.raises(MergeError) as caught:
        in_place(target, sources)
    for part in ("embed.weight is (12, 8)", "head.weight", "norm.weight shares memory"):
        assert part in str(caught.value)


def test_a_target_that_cannot_be_overwritten_is_refused() -> None:
    sources = {name: {"w": torch.randn(3, 4)} for name in NAMES}
    with pytest.raises(MergeError, match="contiguous"):
        ResidentMerger({"w": torch.randn(4, 3).T}, sources, {"w": "layer.0"})


def test_fingerprint_sees_names_shapes_dtypes_and_bytes() -> None:
    def print_of(target: Tensors) -> str:
        return ResidentMerger(target, {}, dict.fromkeys(target, "layer.0")).fingerprint()

    targets = [
        {"w": torch.zeros(4)},
        {"v": torch.zeros(4)},
        {"w": torch.zeros(2, 2)},
        {"w": torch.zeros(8, dtype=torch.bfloat16)},
        {"w": torch.tensor([0.0, 0.0, 0.0, math.ulp(0.0) + 1e-30])},
        {"w": torch.tensor([0.0, 0.0, 0.0, -0.0])},
    ]
    assert len({print_of(target) for target in targets}) == len(targets)
    assert print_of({"w": torch.zeros(4), "v": torch.ones(1)}) == print_of({"v": torch.ones(1), "w": torch.zeros(4)})


def test_results_near_the_limits_of_float32_are_looked_into() -> None:
    """Differences of huge numbers overflow although the result, on paper, does not."""
    huge = {"w": torch.tensor([3e38, 1.0])}
    sources = {"base": huge, "a": {"w": -huge["w"]}}
    merger = ResidentMerger({"w": torch.zeros(2)}, sources, {"w": "layer.0"})
    recipe = make_recipe("task_arithmetic", ["base", "a"], {("layer.0",): {"weight": {"a": 1e-3}}}, base="base")
    with pytest.raises(MergeError, match="NaN or infinite"):
        merger.apply(recipe)


def test_large_but_finite_results_are_let_through() -> None:
    """Their sum overflows; they do not."""
    sources = {name: {"w": torch.full((64,), 2e38)} for name in NAMES}
    target = {"w": torch.zeros(64)}
    ResidentMerger(target, sources, {"w": "layer.0"}).apply(make_recipe("linear", NAMES, {("layer.0",): HALF}))
    assert torch.equal(target["w"], torch.full((64,), 2e38))


def test_two_templates_are_two_merges() -> None:
    """Which source a method sees first is decided by the template, so equal coefficients mean something else."""
    sources, target = make_sources(NAMES), make_source(3)
    merger = in_place(target, sources)
    recipe = make_recipe("passthrough", NAMES, {ALL_PLACES: {"source": 1.0}})
    for template, taken in (("retriever", "domain"), ("domain", "retriever")):
        assert merger.apply(replace(recipe, template=template))
        assert torch.equal(target["norm.weight"], sources[taken]["norm.weight"])


def test_groups_of_one_name_are_refused() -> None:
    recipe = make_recipe("linear", NAMES, {FRONT: HALF, BACK: QUARTER})
    twins = tuple(replace(group, name="twin") for group in recipe.groups)
    with pytest.raises(MergeError, match="two groups are called 'twin'"):
        in_place(make_source(1), make_sources(NAMES)).apply(replace(recipe, groups=twins))


def test_overflow_on_the_way_is_refused_where_roundings_are_mergekits() -> None:
    sources = make_sources(["base", "a"], torch.float16)
    sources["a"]["norm.weight"].fill_(100.0)
    merger = make_merger(sources, torch.float16)
    coefficients = {"weight": {"a": 1000.0}, "lambda": 0.001}
    recipe = make_recipe("task_arithmetic", list(sources), {ALL_PLACES: coefficients}, base="base", dtype=torch.float16)
    merger.apply(recipe)
    with pytest.raises(MergeError, match=r"norm\.weight"):
        merger.apply(replace(recipe, options={"arithmetic": "mergekit"}))


def test_a_share_as_small_as_a_rounding_is_not_lost() -> None:
    sources = {"a": {n: t * 1e6 for n, t in make_source(1).items()}, "b": make_source(2)}
    target = make_source(3)
    merger = in_place(target, sources)
    weights = {"weight": {"a": 1e-7, "b": 1.0}}
    merger.apply(make_recipe("linear", ["a", "b"], {ALL_PLACES: weights}, options={"normalize": False}))
    for name, tensor in target.items():
        exact = 1e-7 * sources["a"][name].double() + sources["b"][name].double()
        torch.testing.assert_close(tensor.double(), exact, rtol=1e-6, atol=1e-6)


def test_what_is_no_float_is_refused_and_what_is_empty_is_left_alone() -> None:
    sources = make_sources(NAMES)
    sources["domain"]["norm.weight"] = torch.ones(8, dtype=torch.int64)
    with pytest.raises(MergeError, match=r"norm\.weight is torch\.int64"):
        make_merger(sources, torch.float32)
    sources = {name: {**make_source(i), "norm.none": torch.empty(0, 8)} for i, name in enumerate(NAMES)}
    merger = ResidentMerger(
        {name: tensor.clone() for name, tensor in sources["domain"].items()}, sources, {**PLACES, "norm.none": "norm"}
    )
    assert merger.apply(make_recipe("slerp", NAMES, {ALL_PLACES: {"t": 0.5}}))
