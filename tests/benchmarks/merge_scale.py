"""Merges of random models of the shape of real ones: seconds, share of the bandwidth of a plain copy, peak memory.

    python -m tests.benchmarks.merge_scale [--shape 7b] [--device cuda] [--methods linear,ties] [--dtype bfloat16]

Two sources and a base, held as a worker holds them, are merged into one model whose every tensor changes. Bandwidth
counts each source read once and the model written once, against `copy_` from source to model in the same run. The
first merge of a method also finds out what it must know of the tensors; the others are what a trial pays. Memory is
the highest that was ever in use beyond sources and model.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from mergesearch.merging import METHODS, MergeMethod, ResidentMerger
from mergesearch.recipe import GroupRecipe, MergeRecipe, SourceRef
from tests.benchmarks import merge_speed
from tests.conformance.merging import typical

MIB = 1 << 20
Shapes = Mapping[str, tuple[int, ...]]


def decoder(layers: int, hidden: int, keys: int, inner: int, words: int) -> Shapes:
    """A decoder with grouped attention and a gated MLP, as Llama and Mistral are, without a head."""
    layer = {
        "q": (hidden, hidden), "k": (keys, hidden), "v": (keys, hidden), "o": (hidden, hidden),
        "gate": (inner, hidden), "up": (inner, hidden), "down": (hidden, inner),
        "attention_norm": (hidden,), "mlp_norm": (hidden,),
    }  # fmt: skip
    whole = {f"layer.{i}.{name}": shape for i in range(layers) for name, shape in layer.items()}
    return {"embeddings": (words, hidden), **whole, "norm": (hidden,)}


SHAPES: Mapping[str, Shapes] = {
    "minilm": merge_speed.SHAPES,
    "1b": decoder(layers=22, hidden=2048, keys=256, inner=5632, words=32000),  # TinyLlama
    "7b": decoder(layers=32, hidden=4096, keys=1024, inner=14336, words=32000),  # Mistral
}


def random_models(shapes: Shapes, device: torch.device, dtype: torch.dtype) -> dict[str, dict[str, torch.Tensor]]:
    """A base and two sources near it. Numbers come from one pool at shifting places: billions take long to draw."""
    torch.manual_seed(0)
    pool = torch.randn(1 << 24, device=device).to(dtype)

    def fill(out: torch.Tensor, scale: float) -> torch.Tensor:
        for piece in out.view(-1).split(pool.numel() // 2):
            start = int(torch.randint(pool.numel() // 2, ()))
            piece.add_(pool[start : start + piece.numel()], alpha=scale)
        return out

    base = {name: fill(torch.zeros(shape, device=device, dtype=dtype), 0.02) for name, shape in shapes.items()}
    return {"base": base, **{s: {name: fill(t.clone(), 0.002) for name, t in base.items()} for s in ("a", "b")}}


def recipe(method: MergeMethod, places: list[str], dtype: torch.dtype, step: int) -> MergeRecipe:
    """Never equal to that of another step."""
    names = ["a", "b"][: method.max_sources]
    groups = tuple(GroupRecipe(place, (place,), coefficients=typical(method, names)) for place in places)
    sources = [*names, "base"] if method.needs_base else names
    return MergeRecipe(
        method.name,
        tuple(SourceRef(name, name, name) for name in sources),
        "a",
        groups,
        base="base" if method.needs_base else None,
        dtype=str(dtype).removeprefix("torch."),
        seed=step,
    )


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """Until the device is done."""
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


class PeakMemory:
    """The most memory in use since this was made, beyond what was in use then: on the GPU, else of the process."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        gc.collect()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self._before = torch.cuda.memory_allocated(device)
        else:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # sets the high-water mark back
            self._before = self._status("VmRSS")

    def mib(self) -> float:
        """The peak so far."""
        cuda = self._device.type == "cuda"
        peak = torch.cuda.max_memory_allocated(self._device) if cuda else self._status("VmHWM")
        return (peak - self._before) / MIB

    @staticmethod
    def _status(field: str) -> int:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="minilm")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--pinned", action="store_true", help="keep sources in page-locked host memory")
    parser.add_argument("--methods", default=",".join(METHODS), help="all by default")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device, dtype = torch.device(arguments.device), getattr(torch, arguments.dtype)

    shapes = SHAPES[arguments.shape]
    sources = random_models(shapes, device, dtype)
    target = {name: tensor.clone() for name, tensor in sources["a"].items()}
    if arguments.pinned:
        sources = {s: {name: t.cpu().pin_memory() for name, t in tensors.items()} for s, tensors in sources.items()}
    places = {name: merge_speed.place_of(name) for name in target}
    model_bytes = sum(tensor.nbytes for tensor in target.values())

    def copy() -> None:
        for name, tensor in target.items():
            tensor.copy_(sources["a"][name], non_blocking=True)

    copy()
    table = Table("merge", "first s", "median s", "best s", "GB/s", "of copy", "peak MiB")
    table.title = f"{arguments.shape} in {arguments.dtype}, {model_bytes / 1e9:.2f} GB a model, on {arguments.device}"
    all_copies = []
    for name in arguments.methods.split(","):
        method = METHODS[name]
        memory = PeakMemory(device)
        merger = ResidentMerger(target, sources, places)
        times, copies = [], []
        for step in range(arguments.rounds + 1):
            made = recipe(method, list(dict.fromkeys(places.values())), dtype, step)
            times.append(seconds(partial(merger.apply, made), device))
            copies.append(seconds(copy, device))  # in turns, since other processes come and go
        first, median = times[0], statistics.median(times[1:])
        rate = (len(made.sources) + 1) * model_bytes / median
        share = rate / (2 * model_bytes / statistics.median(copies))
        row = [f"{first:.4f}", f"{median:.4f}", f"{min(times[1:]):.4f}", f"{rate / 1e9:.1f}", f"{share:.2f}"]
        table.add_row(name, *row, f"{memory.mib():.0f}")
        all_copies += copies
        del merger
    median = statistics.median(all_copies)
    table.add_row(
        "copy_", "", f"{median:.4f}", f"{min(all_copies):.4f}", f"{2 * model_bytes / median / 1e9:.1f}", "1", ""
    )
    table.caption = f"{arguments.rounds} rounds, {arguments.threads} threads, load {os.getloadavg()[0]:.1f}"
    Console().print(table)


if __name__ == "__main__":
    main()
