"""What a study will do and cost, from headers and texts alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from mergesearch.memory_planning import MemoryPlan, memory_plan, mib
from mergesearch.search.dimension import Dimension
from mergesearch.search.registry import STRATEGIES
from mergesearch.sources.layout import span
from mergesearch.study import Study
from mergesearch.token_counts import count_tokens
from mergesearch.workers.machine import matmul_rates

EXPECTED_EFFICIENCY = 0.6
"""Share of the measured matmul rate that encoding reaches, about."""

Table = tuple[str, list[str], list[tuple[Any, ...]]]


@dataclass(frozen=True)
class StudyPlan:
    """Everything `mergesearch plan` shows.

    `seconds_per_trial` is estimated from a measured matmul rate, for a trial that runs all layers; `dtypes` compares
    it with other dtypes'; `layer_share` is the share of the layers that one worker runs, where it is known;
    `measured_first` says what is measured of the sources; `at_most` says that the study may end with fewer `trials`.
    """

    study: str
    sources: dict[str, dict[str, Any]]
    groups: list[dict[str, Any]]
    space: dict[str, str]
    strategy: dict[str, Any]
    metric: str
    racing: list[float] | None
    grid_points: int | None
    trials: int | None
    at_most: bool
    enqueued: list[str]
    tokens_per_trial: dict[str, int]
    tokens_exact: bool
    memory: MemoryPlan
    workers: int
    seconds_per_trial: float
    dtypes: str
    layer_share: float | None
    measured_first: str
    gpu_hours: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    def tables(self) -> list[Table]:
        """Sources, groups, search space and memory."""
        memory = self.memory
        parts = [(name, mib(n_bytes)) for name in memory.PARTS if (n_bytes := getattr(memory, name))]
        elsewhere = [("sources, on the host", memory.on_host), ("sources, in mapped files", memory.mapped)]
        elsewhere[1:1] = [
            ("prefixes, on the host", memory.prefixes_on_host),
            ("embeddings of trials, on the host", memory.banks_on_host),
        ]
        return [
            (
                "sources",
                ["source", "model", "tensors", "MiB"],
                [(n, s["model"], s["tensors"], mib(s["bytes"])) for n, s in self.sources.items()],
            ),
            (
                "groups",
                ["group", "covers", "coefficients"],
                [(g["name"], g["places"], g["how"]) for g in self.groups],
            ),
            ("search space", ["parameter", "values"], list(self.space.items())),
            (
                "memory",
                [f"of one worker{self._on_several}", "MiB"],
                [
                    *parts,
                    *((what, mib(n_bytes)) for what, n_bytes in elsewhere if n_bytes),
                    ("texts in the study itself, once", mib(memory.study)),
                    (f"needed by {_count(memory.workers, 'worker')} on one device", mib(memory.needed)),
                    (f"free now{'' if memory.fits else ': TOO LITTLE, `run` will refuse'}", mib(memory.available)),
                ],
            ),
        ]

    @property
    def _on_several(self) -> str:
        return f", on the fullest of its {self.memory.gpus} GPUs" if self.memory.gpus > 1 else ""

    def summary(self) -> str:
        """Trials, tokens and time in a few lines."""
        tokens = sum(self.tokens_per_trial.values())
        about = "" if self.tokens_exact else "about "
        per_collection = ", ".join(f"{k} {v:,}" for k, v in self.tokens_per_trial.items())
        most = "at most " if self.at_most else ""
        trials = "as many as the time allows" if self.trials is None else f"{most}{self.trials}"
        size = "continuous" if self.grid_points is None else f"{self.grid_points:,} points"
        lines = [
            self.memory.describe(),
            f"strategy: {_described(self.strategy)}; scored by {self.metric}, {_raced(self.racing)}",
            f"search space: {size}; trials: {trials}; first: {', '.join(self.enqueued) or 'none enqueued'}",
            f"tokens per trial: {about}{tokens:,} ({per_collection})",
            f"estimated: {_duration(self.seconds_per_trial)} per trial on one worker",
        ]
        if reused := self.memory.describe_prefixes(self.layer_share):
            lines.insert(1, reused)
        if self.measured_first:
            lines.insert(0, f"before the first trial: {self.measured_first}")
        if self.trials is not None:
            each = self.seconds_per_trial * (self.layer_share or 1)
            lines[-1] += f", {most}{_duration(self.trials * each / self.workers)} in all"
            lines[-1] += f" on {self.workers} workers" if self.workers > 1 else ""
        if self.gpu_hours is not None:
            lines.append(f"ends after {self.gpu_hours:g} GPU-hours of its workers (without a GPU, each counts as one)")
        lines.append(self.dtypes)
        return "\n".join(lines)


def make_plan(study: Study) -> StudyPlan:
    """Work out what a study will do; loads no weights, runs for seconds.

    Raises:
        CollectionError: a collection cannot be read.
    """
    sources = {
        name: {
            "model": study.parsed.content.sources[name].model,
            "tensors": len(checkpoint.tensors),
            "bytes": checkpoint.n_bytes,
        }
        for name, checkpoint in study.checkpoints.items()
    }
    groups: list[dict[str, Any]] = [
        {
            "name": g.name,
            "places": span(g.places),
            "how": "searched" if g.merged else f"copied from {study.parsed.content.merge.template}",
        }
        for g in study.groups
    ]
    counts = count_tokens(study)
    tokens = {name: c.tokens for name, c in counts.items()}
    memory = memory_plan(study, tokens=sum(tokens.values()))
    body = sum(torch.Size(p.shape).numel() for p in study.layout.parameters.values() if p.place.startswith("layer."))
    spec = study.evaluator_spec()
    search, strategy = study.parsed.content.search, study.strategy()
    racing = study.racing
    dtype = spec.evaluation.dtype
    rates = matmul_rates(frozenset({dtype, "float32", "bfloat16"}), spec.evaluation.device, spec.threads)
    return StudyPlan(
        study=study.name,
        sources=sources,
        groups=groups,
        space={d.name: _values(d) for d in study.space.dimensions},
        strategy={"name": strategy.name, **strategy.options.model_dump(mode="json")},
        metric=spec.evaluation.metric,
        racing=None if racing is None else list(racing.looks.shares),
        grid_points=study.space.size(),
        trials=study.planned_trials,
        at_most=strategy.ends_early or search.minutes is not None,
        enqueued=[a.name for a in study.anchors()],
        tokens_per_trial=tokens,
        tokens_exact=all(c.exact for c in counts.values()),
        memory=memory,
        workers=study.workers,
        seconds_per_trial=2 * body * sum(tokens.values()) / (rates[dtype] * EXPECTED_EFFICIENCY),
        dtypes=dtype_note(dtype, rates),
        layer_share=study.layer_share if memory.boundaries == list(spec.prefix.boundaries) else None,
        measured_first=_measured_first(study),
        gpu_hours=study.parsed.content.search.gpu_hours,
    )


def _described(strategy: Mapping[str, Any]) -> str:
    """A strategy, what it maximises, and its options that are not at their defaults, in words."""
    fields = STRATEGIES[strategy["name"]].Options.model_fields
    told = [name for name, field in fields.items() if name == "objective" or strategy[name] != field.get_default()]
    options = [f"{name} {strategy[name]}" for name in told]
    return f"{strategy['name']} ({', '.join(options)})" if options else str(strategy["name"])


def _raced(shares: Sequence[float] | None) -> str:
    if shares is None:
        return "every trial whole"
    looks = ", ".join(f"{share:.0%}" for share in shares[:-1])
    return f"raced: trials may be stopped after {looks} of the queries"


def _measured_first(study: Study) -> str:
    """What is measured of the sources; empty where nothing is."""
    if study.examples is None:
        return ""
    sources, examples = study.sources_to_measure, study.examples
    on = f"on {_count(len(examples), 'example')}, once per study"
    return f"the {examples.loss} losses of {_count(len(sources), 'source')} ({', '.join(sources)}) {on}"


def dtype_note(dtype: str, rates: Mapping[str, float]) -> str:
    """How the study's dtype compares with the others that were measured, in one line."""
    here = f"matrix products in {dtype}, measured: {rates[dtype] / 1e9:,.0f} GFLOP/s"
    others = [f"{other} is {_compared(rate / rates[dtype])}" for other, rate in rates.items() if other != dtype]
    return "; ".join([here, *others]) + " (`evaluation.dtype`, on which scores and the export depend)"


def _compared(faster: float) -> str:
    if faster > 1.1:
        return f"{faster:.1f} × as fast"
    return f"{1 / faster:.1f} × as slow" if faster < 1 / 1.1 else "about as fast"


def _values(dimension: Dimension) -> str:
    choices = dimension.choices()
    if choices is not None and len(choices) <= 6:
        return ", ".join(f"{c:g}" if dimension.ordered else dimension.shown(c) for c in choices)
    how = ", log" if dimension.log else f", step {dimension.step:g}" if dimension.step else ""
    return f"{dimension.low:g} … {dimension.high:g}{how}"


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"
