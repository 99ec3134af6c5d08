"""What memory a study needs, from headers and texts alone; and the refusal of what cannot be held."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import torch

from mergesearch.errors import MemoryPlanError
from mergesearch.evaluation.collection import Collection
from mergesearch.evaluation.kept import MOST_WHOLE
from mergesearch.evaluation.pipeline import CHUNK_DOCUMENTS
from mergesearch.evaluation.spread import devices, largest_share
from mergesearch.evaluation.tokens import LEAST_USEFUL
from mergesearch.merging.plan import ResidentBytes, resident_bytes
from mergesearch.merging.resident import chunk_for
from mergesearch.sources.alignment import align_within
from mergesearch.sources.weights import Kept
from mergesearch.study import Study
from mergesearch.surrogate.bank import SHORTLIST, bank_bytes
from mergesearch.surrogate.pairs import pair_bank_bytes
from mergesearch.token_counts import count_tokens, pairs_of
from mergesearch.workers.prefix_memory import prefix_room
from mergesearch.workers.residency import batch_bytes, choose_residency, free_memory, page_locked
from mergesearch.workers.screening import MOST_HELD

LIBRARY_BYTES = 700 << 20
"""What a process with torch, transformers and optuna takes before any weight is loaded, about."""


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
        banks: embeddings of evaluated merges and what is made of them to predict others, estimated.
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
        banks_on_host: the host's memory that such embeddings take in the workers of one machine, beside a GPU.
        gpus: of one worker; with several, everything is that of the one with the largest share of the model.
    """

    PARTS: ClassVar = (
        "sources",
        "model",
        "workspace",
        "batches",
        "embeddings",
        "texts",
        "banks",
        "prefixes",
        "libraries",
    )

    sources: int
    model: int
    workspace: int
    batches: int
    embeddings: int
    texts: int
    banks: int
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
    banks_on_host: int
    gpus: int

    @property
    def needed(self) -> int:
        """Bytes that the study and all workers on this memory need together."""
        parts: list[int] = [getattr(self, name) for name in self.PARTS]
        return self.study + self.workers * sum(parts)

    @property
    def fits(self) -> bool:
        """Whether there is enough."""
        return self.needed <= self.available and self.needed_on_host <= self.host

    @property
    def needed_on_host(self) -> int:
        """Bytes of the host's memory that the workers of one machine need together, beside a GPU."""
        return self.on_host + self.prefixes_on_host + self.banks_on_host

    def describe(self) -> str:
        """Where the sources are kept, and why, in one line."""
        slow = ""
        if self.mapped > self.host:
            slow = f"; of {mib(self.mapped)} MiB what exceeds the free {mib(self.host)} is read anew for every trial"
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
        return f"reused: hidden states after layers {layers}, {mib(kept)} MiB per worker{run}"


def check_memory(study: Study) -> MemoryPlan:
    """Refuse a study that the device cannot hold.

    Raises:
        MemoryPlanError: with what is needed, part by part, and what is there.
    """
    plan = memory_plan(study)
    if plan.needed_on_host > plan.host:
        banks = f", {mib(plan.banks_on_host)} MiB for embeddings of trials" if plan.banks_on_host else ""
        raise MemoryPlanError(
            f"{mib(plan.on_host)} MiB of the host's memory are needed for the sources and "
            f"{mib(plan.prefixes_on_host)} MiB for `workers.prefix_cache`{banks}, {mib(plan.host)} MiB are available. "
            "Use fewer workers, `workers.residency: mapped`, or a smaller `workers.prefix_cache`."
        )
    if not plan.fits:
        parts = ", ".join(f"{name} {mib(getattr(plan, name))}" for name in plan.PARTS)
        elsewhere = plan.residency == "device" and plan.needed - plan.workers * plan.sources <= plan.available
        granted = plan.needed - plan.workers * plan.prefixes <= plan.available
        remedy = "`workers.residency: auto`, which keeps sources elsewhere" if elsewhere else "a larger device"
        remedy = "a smaller `workers.prefix_cache`" if granted else remedy
        raise MemoryPlanError(
            f"{mib(plan.study)} + {plan.workers} × ({parts}) = {mib(plan.needed)} MiB are needed, "
            f"{mib(plan.available)} MiB are available. Use fewer workers, "
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
    reranks = content.evaluation.rerank is not None
    chunk = 0 if reranks else min(CHUNK_DOCUMENTS, max(len(c.doc_texts) for c in study.collections))
    if study.racing is not None and not reranks:
        chunk += sum(_kept_documents(c, study.racing.looks.hits) for c in study.collections)
    host = free_memory("cpu")
    there = (device,) if in_system else devices(device, spec.gpus)
    share = largest_share(study.layout, len(there))
    banks, held_embeddings = _banks(study)
    plan = MemoryPlan(
        sources=0,
        model=math.ceil(share * held.model),
        workspace=held.workspace,
        batches=batch_bytes(content.evaluation.batch_tokens, study.layout.hidden_size),
        embeddings=chunk * study.layout.hidden_size * 4,
        texts=texts + 4 * (tokens or 0) if in_system else 0,
        banks=banks + held_embeddings if in_system else banks,
        prefixes=0,
        libraries=LIBRARY_BYTES if in_system and content.workers.kind == "ray" else 0,
        workers=study.workers if in_system else 1,
        study=texts,
        available=host if in_system else min(map(free_memory, there)),
        residency="device",
        why="",
        on_host=0,
        prefixes_on_host=0,
        boundaries=[],
        mapped=0,
        host=host,
        banks_on_host=0,
        gpus=len(there),
    )
    count = study.workers
    plan = replace(plan, banks_on_host=0 if in_system else count * held_embeddings)
    room = (plan.available - plan.needed) // plan.workers
    kept, why = choose_residency(spec.residency, device, sizes, room=int(room / share), host=host // count)
    plan = replace(plan, residency=kept, why=why)
    if kept == "device":
        plan = replace(plan, sources=math.ceil(share * held.sources))
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
        host=(host - plan.on_host - plan.banks_on_host) // count,
    )
    return replace(plan, prefixes=found.device, prefixes_on_host=count * found.host, boundaries=list(found.boundaries))


def _banks(study: Study) -> tuple[int, int]:
    """What predicting merges takes on a worker's device, and the embeddings it holds between predictions; about."""
    if study.artifacts is None:
        return 0, 0
    n, size = min(MOST_HELD, study.planned_trials or MOST_HELD), study.layout.hidden_size
    if study.family is not None:
        pairs = sum(pairs_of(study).values())
        return 0, pair_bank_bytes(n, pairs) + 4 * n * pairs  # predictions of pairs are made on the host
    on_device = held = 0
    for collection in study.collections:
        queries, documents = len(collection.query_ids), len(collection.doc_ids)
        if documents > MOST_WHOLE:
            documents = _kept_documents(collection, SHORTLIST)
        on_device += bank_bytes(n, queries, documents, size)
        held += 2 * n * (queries + documents) * size
    return on_device, held


def worker_memory(study: Study) -> int:
    """Bytes of its machine's memory that one worker needs, about, whatever the machine: what Ray places workers by.

    Sources in mapped files are left out, and so are hidden states that are kept where there happens to be room.
    """
    content = study.parsed.content
    granted = content.workers.prefix_cache
    held = content.workers.residency if content.workers.residency == "device" else "auto"
    alone = {"kind": "ray", "count": 1, "gpus": 1, "device": "cpu", "residency": held}
    alone["prefix_cache"] = "off" if granted == "auto" else granted
    content = content.model_copy(update={"workers": content.workers.model_copy(update=alone)})
    on_cpu = replace(study, parsed=replace(study.parsed, content=content))
    plan = memory_plan(on_cpu)
    if study.evaluator_spec().evaluation.device.startswith("cuda"):
        return plan.libraries + plan.model + plan.texts  # the model is loaded here before it goes to the GPU
    return plan.needed - plan.study


def _kept_documents(collection: Collection, hits: int) -> int:
    """Documents whose embeddings a raced trial keeps until its end, at most."""
    if collection.candidates is not None or collection.pooled is not None:
        return len(collection.doc_ids)
    return min(len(collection.doc_ids), sum(len(grades) + hits for grades in collection.qrels.values()))


def mib(n_bytes: int) -> str:
    """A number of bytes in MiB, for people."""
    return f"{n_bytes / (1 << 20):,.1f}" if n_bytes < 10 << 20 else f"{n_bytes / (1 << 20):,.0f}"
