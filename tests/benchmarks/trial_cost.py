"""What a trial costs beside its forward passes, and how near those come to what the machine can do.

    python -m tests.benchmarks.trial_cost ../shared/data/nfcorpus [--device cuda] [--domain FOLDER] [--peak-tflops 989]

Per dtype, in turns within every round: a whole trial (`TrialEvaluator.evaluate` with a recipe that changes every
group), the forward passes of the same batches alone (inputs made and on the device beforehand, outputs dropped), and
the matrix products of the model's own linear layers, at the tokens of a full batch. Ratios are medians over rounds.

FLOPs are counted per batch from its padded tokens: 2 per weight of the layers' linear maps and token, and 4 · L² · H
for attention per layer and text. Model FLOP utilisation (MFU) is the rate of the forward passes over the accelerator's
stated peak, where one is given. In brackets is the same ratio of the process's CPU seconds, which other processes
disturb less.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from mergesearch.evaluation.encoder import Encoder
from mergesearch.recipe import MergeRecipe
from mergesearch.study import Study
from mergesearch.workers.evaluator import TrialEvaluator
from tests.benchmarks.pair import add_arguments, make_sample


def main() -> None:
    """Measure every dtype in turn and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, queries=10)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--attention", default="auto")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peak-tflops", type=float, help="the accelerator's stated peak for these dtypes")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as root:
        sample = make_sample(arguments, Path(root))
        sides: dict[str, Side] = {}
        for dtype in arguments.dtypes.split(","):
            folder = Path(root) / dtype
            folder.mkdir()
            study = sample.study(
                folder,
                device=arguments.device,
                threads=arguments.threads,
                dtype=dtype,
                batch_tokens=arguments.batch_tokens,
                attention=arguments.attention,
            )
            sides[dtype] = Side(study)
        for _ in range(arguments.rounds):
            for side in sides.values():
                side.round()
    _print(sides, arguments)


class Side:
    """One dtype: a worker as a study makes it, and what is timed of it."""

    def __init__(self, study: Study) -> None:
        self.evaluator = TrialEvaluator(study.evaluator_spec())
        encoder = self.encoder = self.evaluator.model
        prepared = self.evaluator.pipeline.collections
        self.plans = [plan for collection in prepared for plan in (collection.queries, collection.documents)]
        self.recipes = _recipes(study)
        self.inputs = [features for plan in self.plans for features in encoder.inputs(plan, plan.batches)]
        tokens = self.evaluator.spec.evaluation.batch_tokens
        self.products, self.product_flops = _products(encoder, tokens)
        self.flops = sum(_flops(encoder, len(b), int(p.lengths[b].max())) for p in self.plans for b in p.batches)
        self.tokens = self.evaluator.pipeline.n_tokens
        self.useful = self.tokens / self.evaluator.pipeline.n_padded_tokens
        self.scores: np.ndarray | None = None
        self.seconds: dict[str, list[float]] = {"trial": [], "forward": [], "products": []}
        self.cpu_seconds: dict[str, list[float]] = {name: [] for name in self.seconds}
        self.phases: dict[str, list[float]] = {}
        self._trial()
        self.products()

    def round(self) -> None:
        """Everything once, in turn."""
        for name, call in (("forward", self._forward), ("trial", self._trial), ("products", self.products)):
            self._wait()
            started, cpu_started = time.perf_counter(), time.process_time()
            call()
            self._wait()
            self.seconds[name].append(time.perf_counter() - started)
            self.cpu_seconds[name].append(time.process_time() - cpu_started)

    def per_second(self, amount: float, what: str) -> float:
        """An amount over the median seconds of what was timed."""
        return amount / statistics.median(self.seconds[what])

    def overhead(self, clock: dict[str, list[float]]) -> float:
        """Trial over forward passes: the median of the rounds' ratios."""
        pairs = zip(clock["trial"], clock["forward"], strict=True)
        return statistics.median(trial / forward for trial, forward in pairs)

    def share(self, clock: dict[str, list[float]]) -> float:
        """Rate of the forward passes over that of the products timed beside them: the median of the rounds' ratios."""
        pairs = zip(clock["forward"], clock["products"], strict=True)
        return statistics.median(self.flops / f / (self.product_flops / p) for f, p in pairs)

    def _trial(self) -> None:
        result = self.evaluator.evaluate(next(self.recipes))
        self.scores = np.concatenate([c.scores for c in result.collections])
        for phase, seconds in result.seconds.items():
            self.phases.setdefault(phase, []).append(seconds)

    @torch.inference_mode()
    def _forward(self) -> None:
        for features in self.inputs:
            self.encoder.model(dict(features))

    def _wait(self) -> None:
        if self.encoder.device.type == "cuda":
            torch.cuda.synchronize(self.encoder.device)


def _recipes(study: Study) -> Iterator[MergeRecipe]:
    """Without end: merges of both models, no group of which is as in the one before."""
    points = list(study.space.grid())
    side = round(len(points) ** 0.5)
    diagonal = points[:: side + 1][1:-1]
    return (study.recipe(point) for point in itertools.cycle(diagonal))


def _linears(encoder: Encoder) -> list[torch.nn.Linear]:
    """The linear maps that every token goes through."""
    modules = encoder.model[0].model.named_modules()
    return [m for name, m in modules if isinstance(m, torch.nn.Linear) and "pooler" not in name]


def _flops(encoder: Encoder, texts: int, length: int) -> float:
    config = encoder.model[0].model.config
    linear = 2 * sum(m.weight.numel() for m in _linears(encoder)) * texts * length
    return linear + 4 * config.num_hidden_layers * texts * length**2 * config.hidden_size


def _products(encoder: Encoder, tokens: int) -> tuple[Callable[[], None], float]:
    """A call that multiplies a full batch with every linear map a few times, and its FLOPs."""
    weights = [m.weight for m in _linears(encoder)]
    inputs = {w.shape[1]: torch.ones(tokens, w.shape[1], dtype=w.dtype, device=w.device) for w in weights}
    times = 10

    @torch.inference_mode()
    def call() -> None:
        for _ in range(times):
            for weight in weights:
                torch.nn.functional.linear(inputs[weight.shape[1]], weight)

    return call, times * 2 * sum(w.numel() for w in weights) * tokens


def _print(sides: dict[str, Side], arguments: argparse.Namespace) -> None:
    first = next(iter(sides.values()))
    model = first.encoder.model[0].model
    print(
        f"{len(first.scores)} queries, {sum(p.n_texts for p in first.plans)} texts, {first.tokens:,} tokens in "
        f"{len(first.inputs)} batches, {first.useful:.1%} useful; {arguments.device}, {arguments.threads} threads, "
        f"{model.config._attn_implementation}, {arguments.rounds} rounds"
    )
    peak = arguments.peak_tflops
    table = Table("dtype", "trial s", "forward s", "trial / forward", "tokens/s", "matmul GFLOP/s", "model GFLOP/s")
    table.add_column("of matmul rate")
    table.add_column(f"MFU of {peak:g} TFLOP/s" if peak else "MFU")
    for dtype, side in sides.items():
        rate = side.per_second(side.flops, "forward")
        shares = [f"{ratio:.0%}" for ratio in (side.share(side.seconds), side.share(side.cpu_seconds))]
        table.add_row(
            dtype,
            f"{statistics.median(side.seconds['trial']):.3f}",
            f"{statistics.median(side.seconds['forward']):.3f}",
            f"{side.overhead(side.seconds):.3f} ({side.overhead(side.cpu_seconds):.3f})",
            f"{side.per_second(side.tokens, 'trial'):,.0f}",
            f"{side.per_second(side.product_flops, 'products') / 1e9:,.0f}",
            f"{rate / 1e9:,.0f}",
            f"{shares[0]} ({shares[1]})",
            f"{rate / (peak * 1e12):.0%}" if peak else "–",
        )
    Console(width=140).print(table)
    for dtype, side in sides.items():
        medians = ", ".join(f"{phase} {statistics.median(s) * 1e3:.1f} ms" for phase, s in side.phases.items())
        print(f"{dtype}: {medians}")
    for dtype, side in list(sides.items())[1:]:
        differences = side.scores - first.scores
        print(
            f"nDCG@10, {dtype} less {next(iter(sides))}: mean {differences.mean():+.5f}, largest of a query "
            f"{np.abs(differences).max():.4f}, {np.count_nonzero(np.abs(differences) > 1e-9)} of "
            f"{len(differences)} queries differ; forward passes "
            f"{statistics.median(first.seconds['forward']) / statistics.median(side.seconds['forward']):.2f} × as fast"
        )


if __name__ == "__main__":
    main()
