"""What a resident merge allocates, counted allocation by allocation, and what the plan says of it."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch

from mergesearch.merging import METHODS, MergeMethod, ResidentMerger, get_method, resident_bytes
from mergesearch.merging.resident import MAX_BUFFER_BYTES, chunk_for, most_buffers
from mergesearch.workers.residency import WORKSPACE_BYTES
from tests.conformance.merging import make_recipe, source_names, typical

ELEMENTS = 1 << 19
CHUNK = 1 << 14
PLACE = {"w": "layer.0"}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
CASES = [("linear", None, 2), ("linear", None, 4), ("task_arithmetic", "base", 1), ("task_arithmetic", "base", 3)]


def peak_bytes(call: Callable[[], object]) -> int:
    """The most that `call` had allocated at any moment, from the CPU allocator's own record."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="torch")
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            call()
    assert profile.profiler is not None
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def setting(
    method: str, base: str | None, n_sources: int, source_dtype: torch.dtype, dtype: torch.dtype
) -> tuple[ResidentMerger, Callable[[int], None], dict[str, dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    names = [f"s{i}" for i in range(n_sources)]
    sources = {n: {"w": torch.randn(ELEMENTS).to(source_dtype)} for n in ([base] if base else []) + names}
    target = {"w": torch.zeros(ELEMENTS, dtype=dtype)}
    merger = ResidentMerger(target, sources, PLACE, chunk_elements=CHUNK)

    def apply(step: int) -> None:
        # The first source alone at first: a mere interpolation later on may take less.
        weights = {name: float(i == 0) if step == 0 else 1.0 + i + step for i, name in enumerate(names)}
        recipe = make_recipe(method, list(sources), {("layer.0",): {"weight": weights}}, base=base, dtype=dtype)
        assert merger.apply(recipe)

    return merger, apply, sources, target


def test_the_measurement_sees_allocations_inside_operations() -> None:
    x, y = torch.ones(ELEMENTS), torch.ones(ELEMENTS)
    assert peak_bytes(lambda: x * 0.5 + y * 0.5) >= 2 * 4 * ELEMENTS
    # Added in place, yet converted as a whole on the way.
    assert peak_bytes(lambda: x.add_(y.bfloat16(), alpha=0.5)) >= 2 * ELEMENTS


@pytest.mark.parametrize(("method", "base", "n_sources"), CASES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("source_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_peak_memory_is_a_few_chunks(
    method: str, base: str | None, n_sources: int, source_dtype: torch.dtype, dtype: torch.dtype
) -> None:
    _, apply, sources, _ = setting(method, base, n_sources, source_dtype, dtype)
    few = len(sources) + 2
    assert few * 4 * CHUNK < 4 * ELEMENTS  # so that one copy of the tensor is too much

    assert peak_bytes(lambda: apply(0)) <= few * 4 * CHUNK + 4096
    # The workspace is there by now: what is left are a few numbers per coefficient.
    assert peak_bytes(lambda: apply(1)) <= 4096


@pytest.mark.parametrize(("method", "base", "n_sources"), CASES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("source_dtype", DTYPES, ids=str)
def test_the_plan_is_exact(
    method: str, base: str | None, n_sources: int, source_dtype: torch.dtype, dtype: torch.dtype
) -> None:
    merger, apply, sources, target = setting(method, base, n_sources, source_dtype, dtype)
    apply(0)

    def on_meta(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: tensor.to("meta") for name, tensor in tensors.items()}

    plan = resident_bytes(
        get_method(method),
        on_meta(target),
        {name: on_meta(tensors) for name, tensors in sources.items()},
        base=base,
        chunk_elements=CHUNK,
    )
    assert plan.sources == sum(t["w"].nbytes for t in sources.values())
    assert plan.model == target["w"].nbytes
    assert plan.workspace == merger.workspace_bytes
    assert plan.total == plan.sources + plan.model + plan.workspace


@pytest.fixture(scope="module")
def large() -> dict[str, dict[str, torch.Tensor]]:
    """A tensor of 2²⁶ elements in three sources, which differ by a shift."""
    numbers = torch.randn(1 << 20).repeat(64).mul_(torch.linspace(0.5, 1.5, 1 << 26)).bfloat16()
    return {f"s{i}": {"w": numbers.roll(i * 4099).view(1 << 13, 1 << 13)} for i in range(3)}


@pytest.mark.parametrize("method", [get_method("linear"), get_method("ties")], ids=["linear", "ties"])
def test_a_tensor_larger_than_what_merging_may_hold(
    method: MergeMethod, large: dict[str, dict[str, torch.Tensor]]
) -> None:
    """Less than one copy of the tensor in float32, with the chunks that are used in earnest."""
    names = list(large) if method.max_sources is None else list(large)[: method.max_sources + method.needs_base]
    base = names[0] if method.needs_base else None
    target = {"w": torch.empty_like(large["s0"]["w"])}
    recipe = make_recipe(
        method.name,
        names,
        {("layer.0",): typical(method, [name for name in names if name != base])},
        base=base,
        dtype=torch.bfloat16,
    )
    merger = ResidentMerger(target, {name: large[name] for name in names}, PLACE)
    assert peak_bytes(lambda: merger.apply(recipe)) < WORKSPACE_BYTES == 4 << 26
    assert merger.workspace_bytes > 0


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
def test_no_method_copies_a_tensor(method: MergeMethod) -> None:
    """40 chunks, tables and kept masks: below 256 MiB at the usual chunk size, however large a tensor is."""
    names, base = source_names(method, 2)
    shape = (4 * ELEMENTS // 256, 256)
    sources = {name: {"w": torch.randn(shape)} for name in names}
    merger = ResidentMerger({"w": torch.zeros(shape)}, sources, PLACE, chunk_elements=CHUNK)
    drawn = typical(method, [name for name in names if name != base])
    recipe = make_recipe(method.name, names, {("layer.0",): drawn}, base=base)

    chunks, tables, masks = 40 * 4 * CHUNK, 4 << 20, 2 * 4 * ELEMENTS if "random" in method.properties else 0
    assert chunks + tables < 4 * 4 * ELEMENTS
    assert peak_bytes(lambda: merger.apply(recipe)) <= chunks + tables + masks


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
def test_no_method_takes_more_than_planned(method: MergeMethod) -> None:
    """Eight sources that all have to be converted, or as many as the method takes; sparse where it can be."""
    names, base = source_names(method, 8)
    sources = {name: {"w": torch.randn(64, 640).bfloat16()} for name in names}
    merger = ResidentMerger({"w": torch.zeros(64, 640).bfloat16()}, sources, PLACE, chunk_elements=CHUNK)
    drawn = typical(method, [name for name in names if name != base])
    merger.apply(make_recipe(method.name, names, {("layer.0",): drawn}, base=base, dtype=torch.bfloat16))
    plan = resident_bytes(method, {"w": torch.empty(64, 640).bfloat16()}, sources, base=base, chunk_elements=CHUNK)
    assert merger.workspace_bytes <= plan.workspace


def test_buffers_of_any_number_of_sources_fit_what_is_promised() -> None:
    for n in (2, 3, 9, 40, 200):
        for device in ("cpu", "cuda"):
            assert 4 * chunk_for(torch.device(device), n) * most_buffers(n) <= MAX_BUFFER_BYTES < WORKSPACE_BYTES
