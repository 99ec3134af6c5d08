"""What a study will do and cost, from headers and texts alone; and the refusal of what memory cannot hold."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch

from mergesearch.errors import MemoryPlanError
from mergesearch.evaluation.collection import Collection
from mergesearch.evaluation.pipeline import CHUNK_DOCUMENTS
from mergesearch.evaluation.tokens import LEAST_USEFUL
from mergesearch.merging.plan import ResidentBytes, resident_bytes
from mergesearch.merging.resident import chunk_for
from mergesearch.search.dimension import Dimension
from mergesearch.sources.alignment import align_within
from mergesearch.sources.layout import span
from mergesearch.sources.weights import Kept
from mergesearch.study import Study
from mergesearch.token_counts import count_tokens
from mergesearch.workers.machine import matmul_rates
from mergesearch.workers.prefix_memory import prefix_room
from mergesearch.workers.residency import batch_bytes, choose_residency, free_memory, page_locked

LIBRARY_BYTES = 700 << 20
"""What a process with torch, transformers and optuna takes before any weight is loaded, about."""
EXPECTED_EFFICIENCY = 0.6
"""Share of the measured matmul rate that encoding reaches, about."""

Table = tuple[str, list[str], list[tuple[Any, ...]]]


class TensorHeader(NamedTuple):
    """A tensor that is not loaded; `made` when no file holds it as it is."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    made: bool = False

    @property
    def n_bytes(self) -> int:
        """Size in bytes."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes that one worker holds, and what its device has.

    Attributes:
        sources: tensors of every source in the device's memory; where they are kept elsewhere, none but those that no
            file holds as they are and that are not on the host.
        model: the one model that is overwritten.
        workspace: scratch memory of the merge.
        batches: activations of one batch, estimated.
        embeddings: one chunk of document embeddings, estimated; of raced trials also those that later looks search.
        texts: the texts of all collections as Python holds them, and 4 bytes per token, estimated; none on a
            CUDA GPU, which holds neither.
        prefixes: hidden states that are kept for trials with the same lower layers.
        libraries: further processes themselves, estimated (on a CPU; a local worker is this process).
        workers: processes that hold this on the same memory.
        study: the texts once more, in the resolved study of the process that drives the workers.
        available: free bytes on the device; of a device that is no CUDA GPU, of the system.
        residency: where the sources are kept: `device`, `pinned` or `mapped`.
        why: the reason, in words.
        on_host: the host's memory that sources take in the workers of one machine together, beside a GPU.
        prefixes_on_host: the host's memory that such states take in the workers of one machine together, beside a GPU.
        boundaries: after how many layers they are kept.
        mapped: source tensors that are read from their files, once for all workers of a machine. The system gives
            this memory to whoever needs it more.
        host: free bytes of the system.
    """

    PARTS: ClassVar = ("sources", "model", "workspace", "batches", "embeddings", "texts", "prefixes", "libraries")

    sources: int
    model: int
    workspace: int
    batches: int
    embeddings: int
    texts: int
    prefixes: int
    libraries: int
    workers: int
    study: int
    available: int
    residency: Kept
    why: str
    on_host: int
    prefixes_on_host: int
    boundaries: list[int]
    mapped: int
    host: int

    @property
    def needed(self) -> int:
        """Bytes that the study and all workers on this memory need together."""
        parts: list[int] = [getattr(self, name) for name in self.PARTS]
        return self.study + self.workers * sum(parts)

    @property
    def fits(self) -> bool:
        """Whether there is enough."""
        return self.needed <= self.available and self.on_host + self.prefixes_on_host <= self.host

    def describe(self) -> str:
        """Where the sources are kept, and why, in one line."""
        slow = ""
        if self.mapped > self.host:
            slow = f"; of {_mib(self.mapped)} MiB what exceeds the free {_mib(self.host)} is read anew for every trial"
        return f"sources: {self.residency} ({self.why}{slow})"

    def describe_prefixes(self, share: float | None) -> str:
        """Where trials start in place of the first layer, in one line; empty where they always run all layers.

        Args:
            share: of all layers that are run in the end, where that is known.
        """
        if not self.boundaries:
            return ""
        kept = self.prefixes + self.prefixes_on_host // max(1, self.workers)
        layers = ", ".join(map(str, self.boundaries))
        run = "" if share is None else f"; one worker runs {share:.0%} of all layers"
        return f"reused: hidden states after layers {layers}, {_mib(kept)} MiB per worker{run}"


@dataclass(frozen=True)
class StudyPlan:
    """Everything `mergesearch plan` shows.

    `seconds_per_trial` is estimated from a measured matmul rate, for a trial that runs all layers; `dtypes` compares
    it with other dtypes'; `layer_share` is the share of the layers that one worker runs, where it is known;
    `measured_first` says what is measured of the sources.
    """

    study: str
    sources: dict[str, dict[str, Any]]
    groups: list[dict[str, Any]]
    space: dict[str, str]
    grid_points: int | None
    trials: int | None
    enqueued: list[str]
    tokens_per_trial: dict[str, int]
    tokens_exact: bool
    memory: MemoryPlan
    workers: int
    seconds_per_trial: float
    dtypes: str
    layer_share: float | None
    measured_first: str

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    def tables(self) -> list[Table]:
        """Sources, groups, search space and memory."""
        memory = self.memory
        parts = [(name, _mib(n_bytes)) for name in memory.PARTS if (n_bytes := getattr(memory, name))]
        elsewhere = [("sources, on the host", memory.on_host), ("sources, in mapped files", memory.mapped)]
        elsewhere.insert(1, ("prefixes, on the host", memory.prefixes_on_host))
        return [
            (
                "sources",
                ["source", "model", "tensors", "MiB"],
                [(n, s["model"], s["tensors"], _mib(s["bytes"])) for n, s in self.sources.items()],
            ),
            (
                "groups",
                ["group", "covers", "coefficients"],
                [(g["name"], g["places"], g["how"]) for g in self.groups],
            ),
            ("search space", ["parameter", "values"], list(self.space.items())),
            (
                "memory",
                ["of one worker", "MiB"],
                [
                    *parts,
                    *((what, _mib(n_bytes)) for what, n_bytes in elsewhere if n_bytes),
                    ("texts in the study itself, once", _mib(memory.study)),
                    (f"needed by {_count(memory.workers, 'worker')} on one device", _mib(memory.needed)),
                    (f"free now{'' if memory.fits else ': TOO LITTLE, `run` will refuse'}", _mib(memory.available)),
                ],
            ),
        ]

    def summary(self) -> str:
        """Trials, tokens and time in a few lines."""
        tokens = sum(self.tokens_per_trial.values())
        about = "" if self.tokens_exact else "about "
        per_collection = ", ".join(f"{k} {v:,}" for k, v in self.tokens_per_trial.items())
        trials = "as many as the time allows" if self.trials is None else str(self.trials)
        size = "continuous" if self.grid_points is None else f"{self.grid_points:,} points"
        lines = [
            self.memory.describe(),
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
            lines[-1] += f", {_duration(self.trials * each / self.workers)} in all"
            lines[-1] += f" on {self.workers} workers" if self.workers > 1 else ""
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
    dtype = spec.evaluation.dtype
    rates = matmul_rates(frozenset({dtype, "float32", "bfloat16"}), spec.evaluation.device, spec.threads)
    return StudyPlan(
        study=study.name,
        sources=sources,
        groups=groups,
        space={d.name: _values(d) for d in study.space.dimensions},
        grid_points=study.space.size(),
        trials=study.planned_trials,
        enqueued=[a.name for a in study.anchors()],
        tokens_per_trial=tokens,
        tokens_exact=all(c.exact for c in counts.values()),
        memory=memory,
        workers=study.parsed.content.workers.count,
        seconds_per_trial=2 * body * sum(tokens.values()) / (rates[dtype] * EXPECTED_EFFICIENCY),
        dtypes=dtype_note(dtype, rates),
        layer_share=study.layer_share if memory.boundaries == list(spec.prefix.boundaries) else None,
        measured_first=_measured_first(study),
    )


def _measured_first(study: Study) -> str:
    """What is measured of the sources; empty where nothing is."""
    if study.examples is None:
        return ""
    sources, examples = study.sources_to_measure, study.examples
    on = f"on {_count(len(examples), 'example')}, once per study"
    return f"the {examples.loss} losses of {_count(len(sources), 'source')} ({', '.join(sources)}) {on}"


def check_memory(study: Study) -> MemoryPlan:
    """Refuse a study that the device cannot hold.

    Raises:
        MemoryPlanError: with what is needed, part by part, and what is there.
    """
    plan = memory_plan(study)
    if plan.on_host + plan.prefixes_on_host > plan.host:
        raise MemoryPlanError(
            f"{_mib(plan.on_host)} MiB of the host's memory are needed for the sources and "
            f"{_mib(plan.prefixes_on_host)} MiB for `workers.prefix_cache`, {_mib(plan.host)} MiB are available. "
            "Use fewer workers, `workers.residency: mapped`, or a smaller `workers.prefix_cache`."
        )
    if not plan.fits:
        parts = ", ".join(f"{name} {_mib(getattr(plan, name))}" for name in plan.PARTS)
        elsewhere = plan.residency == "device" and plan.needed - plan.workers * plan.sources <= plan.available
        granted = plan.needed - plan.workers * plan.prefixes <= plan.available
        remedy = "`workers.residency: auto`, which keeps sources elsewhere" if elsewhere else "a larger device"
        remedy = "a smaller `workers.prefix_cache`" if granted else remedy
        raise MemoryPlanError(
            f"{_mib(plan.study)} + {plan.workers} × ({parts}) = {_mib(plan.needed)} MiB are needed, "
            f"{_mib(plan.available)} MiB are available. Use fewer workers, "
            f"a smaller `evaluation.batch_tokens`, or {remedy}."
        )
    return plan


def memory_plan(study: Study, *, tokens: int | None = None) -> MemoryPlan:
    """Memory of one worker, from headers and texts.

    Args:
        study: what is to run.
        tokens: of one trial; None counts them where they matter.
    """
    content = study.parsed.content
    spec = study.evaluator_spec()
    dtype = getattr(torch, content.evaluation.dtype)
    target = {p.name: TensorHeader(p.shape, dtype) for p in study.layout.parameters.values()}
    sources = {}
    for name, checkpoint in study.checkpoints.items():
        sources[name] = {
            n: TensorHeader(tuple(checkpoint.tensors[raw].shape), checkpoint.tensors[raw].dtype, raw in checkpoint.made)
            for n, raw in align_within(checkpoint, study.layout, spec.merged_places[name]).items()
        }
    if study.shared is not None:
        table = study.layout.word_embeddings
        for headers in sources.values():
            shape = (len(study.shared), *headers[table].shape[1:])
            headers[table] = TensorHeader(shape, headers[table].dtype, made=True)
        target[f"{table}, shared rows"] = TensorHeader((len(study.shared), *target[table].shape[1:]), dtype)
    read = [header for headers in sources.values() for header in headers.values()]
    sizes = [header.n_bytes for header in read]
    made = sum(header.n_bytes for header in read if header.made)
    device = spec.evaluation.device
    held: ResidentBytes = resident_bytes(
        study.method,
        target,
        sources,
        base=content.merge.base,
        chunk_elements=chunk_for(torch.device(device), len(sources)),
        as_mergekit=content.merge.options.get("arithmetic") == "mergekit",
        transferred=device != "cpu",
    )
    in_system = not device.startswith("cuda")  # Apple's GPUs work in the system's memory
    texts = 0
    if tokens is None and (in_system or spec.prefix.boundaries):
        tokens = sum(c.tokens for c in count_tokens(study).values())
    if in_system:
        held_texts = (text for c in study.collections for text in (*c.query_texts, *c.doc_texts))
        texts = sum(map(sys.getsizeof, held_texts))
    chunk = min(CHUNK_DOCUMENTS, max(len(c.doc_texts) for c in study.collections))
    if study.racing is not None:
        chunk += sum(_kept_documents(c, study.racing.looks.hits) for c in study.collections)
    host = free_memory("cpu")
    plan = MemoryPlan(
        sources=0,
        model=held.model,
        workspace=held.workspace,
        batches=batch_bytes(content.evaluation.batch_tokens, study.layout.hidden_size),
        embeddings=chunk * study.layout.hidden_size * 4,
        texts=texts + 4 * (tokens or 0) if in_system else 0,
        prefixes=0,
        libraries=LIBRARY_BYTES if in_system and content.workers.kind == "ray" else 0,
        workers=content.workers.count if in_system else 1,
        study=texts,
        available=host if in_system else free_memory(device),
        residency="device",
        why="",
        on_host=0,
        prefixes_on_host=0,
        boundaries=[],
        mapped=0,
        host=host,
    )
    count = content.workers.count
    room = (plan.available - plan.needed) // plan.workers
    kept, why = choose_residency(spec.residency, device, sizes, room=room, host=host // count)
    plan = replace(plan, residency=kept, why=why)
    if kept == "device":
        plan = replace(plan, sources=held.sources)
    elif kept == "pinned":
        plan = replace(plan, on_host=count * page_locked(sizes))
    elif in_system:
        plan = replace(plan, sources=made, mapped=held.sources - made)
    else:
        plan = replace(plan, on_host=count * made, mapped=held.sources - made)
    found = prefix_room(
        spec.prefix,
        device,
        tokens=math.ceil((tokens or 0) / LEAST_USEFUL),
        room=(plan.available - plan.needed) // plan.workers,
        host=(host - plan.on_host) // count,
    )
    return replace(plan, prefixes=found.device, prefixes_on_host=count * found.host, boundaries=list(found.boundaries))


def _kept_documents(collection: Collection, hits: int) -> int:
    """Documents whose embeddings a raced trial keeps until its end, at most."""
    if collection.candidates is not None or collection.pooled is not None:
        return len(collection.doc_ids)
    return min(len(collection.doc_ids), sum(len(grades) + hits for grades in collection.qrels.values()))


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
        return ", ".join(f"{c:g}" for c in choices)
    how = ", log" if dimension.log else f", step {dimension.step:g}" if dimension.step else ""
    return f"{dimension.low:g} … {dimension.high:g}{how}"


def _mib(n_bytes: int) -> str:
    return f"{n_bytes / (1 << 20):,.1f}" if n_bytes < 10 << 20 else f"{n_bytes / (1 << 20):,.0f}"


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"
