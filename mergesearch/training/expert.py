"""Experts: a retriever fine-tuned on queries and documents, as an adapter or whole.

Synthesize-Train-Merge's settings (Khattab et al. 2026, table 9): LoRA of rank 16 with alpha 32 on all linear layers,
AdamW at 5e-5 (for .6B parameters) with 100 steps of warm-up, texts of at most 512 tokens, one epoch, InfoNCE over the
batch with a hard negative.
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from mergesearch.errors import CollectionError, MergesearchError, Problem, SourceError
from mergesearch.sources.checkpoint import Checkpoint
from mergesearch.sources.config import refuse_foreign_modules
from mergesearch.sources.locate import locate
from mergesearch.training import harness
from mergesearch.training.adapters import ALL, AdapterSettings, attach, save_adapter
from mergesearch.training.base import Base, Trained, TrainingSettings
from mergesearch.training.contrastive import contrastive_trainer, model_prompts
from mergesearch.training.pairs import (
    Columns,
    TrainingPairs,
    lay_out,
    mine_bm25,
    mine_with_model,
    read_pairs,
    store_columns,
)
from mergesearch.training.resumable import SAVE_EVERY_S, first_and_last, train_once, train_resumably

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from peft import PeftModel
    from transformers import TrainerCallback

NONE, BM25 = "none", "bm25"
_WARMUP = 100
_LONGEST = 512


@dataclass(frozen=True)
class ExpertSettings(TrainingSettings):
    """How an expert is trained.

    Attributes:
        adapter: its shape; None trains the whole model and leaves a whole model.
        split: of pairs that are BEIR folders.
        negatives: hard negatives of each example.
        mine: where they come from beside those given: `bm25`, a model as a study file names a source, or `none`.
        positives: examples of a query at most, each with another relevant document.
        query_prompt: put before queries; None for the model's own.
        document_prompt: put before documents; None for the model's own.
        max_length: tokens of a text; None for 512, or as many as the model has positions.
        epochs: passes over the examples, may be a fraction.
        steps: optimizer steps in place of `epochs`.
        batch_size: examples that are each other's negatives.
        mini_batch: examples that are encoded at a time, for batches larger than memory.
        learning_rate: AdamW's, at its highest, after a warm-up of 100 steps (a tenth of all where that is less).
        temperature: what cosines are divided by.
        seed: adapter, examples, their order and dropout.
        dtype: as in `KnowledgeSettings`; whole models are trained and left in float32.
        checkpointing: as in `KnowledgeSettings`.
    """

    adapter: AdapterSettings | None = field(
        default_factory=lambda: AdapterSettings("lora", rank=16, alpha=32, dropout=0.0, targets=ALL)
    )
    split: str = "train"
    negatives: int = 1
    mine: str = BM25
    positives: int = 1
    query_prompt: str | None = None
    document_prompt: str | None = None
    batch_size: int = 64
    mini_batch: int | None = None
    learning_rate: float = 5e-5
    temperature: float = 0.05

    above_zero: ClassVar = (*TrainingSettings.above_zero, "positives", "mini_batch", "temperature")

    def check(self) -> None:
        """Refuse impossible settings, as every training does, and fewer than no negatives."""
        super().check()
        if self.negatives < 0:
            raise MergesearchError(f"examples cannot have {self.negatives} negatives; give 0 or more")


def train_expert(
    model: str,
    pairs: Sequence[Path],
    out: Path,
    settings: ExpertSettings | None = None,
    *,
    device: str = "auto",
    restart: bool = False,
    save_every_s: float = SAVE_EVERY_S,
    preparing: harness.Progress | None = None,
    progress: harness.Progress | None = None,
    passes: Path | None = None,
) -> Trained:
    """Fine-tune a retriever with InfoNCE and leave an adapter, or a whole model.

    A process that is killed loses a minute: the same call goes on, and ends with what an undisturbed one would have
    made (to the bit on a CPU with as many threads).

    Args:
        model: a sentence-transformers model, as a study file names a source.
        pairs: BEIR folders or jsonl files, see `pairs.read_pairs`; negatives are mined in each by itself.
        out: a folder that is empty or does not exist yet; it appears whole or not at all.
        settings: how it is trained.
        device: `cpu`, `cuda`, … or `auto`.
        restart: throw away what an earlier process left of this training.
        save_every_s: seconds between checkpoints.
        preparing: called with (collections mined, collections) while negatives are looked for.
        progress: called after each optimizer step.
        passes: a folder of this training alone, where the adapter is left as it is after each whole pass over the
            examples, under the pass's number from 1 on; whole models are not.

    Raises:
        MergesearchError: for a missing extra, impossible settings, an `out` that exists, a training that was begun with
            other settings, or one that diverged.
        SourceError: for a model that cannot be read or does not say how texts become vectors.
        CollectionError: for pairs that cannot be read, or are fewer than one batch.
        MemoryPlanError: the device does not hold it.
    """
    settings = settings or ExpertSettings()
    harness.require_extra("accelerate", "datasets", *(["peft"] if settings.adapter else []))
    settings.check()
    harness.refuse_file(out)
    with harness.quiet_and_seeded(settings.seed):
        prepared = _prepare(model, settings, device)
        read = [read_pairs(path, split=settings.split) for path in pairs]
        asked = prepared.asked(read)

        def train(work: Path) -> dict[str, Any]:
            columns = _examples(prepared, read, work / "examples.json", preparing)
            if len(columns["query"]) < settings.batch_size:
                found = f"{len(columns['query'])} examples do not fill one batch of {settings.batch_size}"
                raise CollectionError([f"{found}; give more pairs or a smaller batch"])
            return _train(prepared, columns, work / "checkpoints", out, asked, save_every_s, progress, passes)

        record, before = train_once(out, asked, prepared.check_memory, train, restart=restart)
    return Trained(out, record["examples"], record["steps"], first_and_last(record), before)


@dataclass(frozen=True)
class _Prepared:
    """A training of which everything is known that headers and configs say."""

    base: Base
    settings: ExpertSettings
    miner: Path | None

    def asked(self, read: Sequence[TrainingPairs]) -> dict[str, Any]:
        """Everything that decides the expert's numbers."""
        given = [json.dumps(pairs.negatives, sort_keys=True) for pairs in read]
        return self.base.asked(
            "expert",
            self.settings,
            base_settings_sha256=harness.settings_hash(self.base.folder),
            pairs_sha256=[pairs.collection.content_hash for pairs in read],
            negatives_sha256=[harness.text_hash(text) for text in given],
            miner_sha256=self.miner and Checkpoint.open("miner", self.miner).content_hash,
        )

    def check_memory(self) -> None:
        """Refuse what the device does not hold."""
        settings = self.settings
        texts = settings.mini_batch or settings.batch_size * (2 + settings.negatives)
        remedy = "--mini-batch (the batch stays as large)"
        self.base.check_memory(settings, texts=texts, head=False, remedy=remedy)

    def load(self, folder: Path) -> Any:
        """The model itself, or the miner."""
        from sentence_transformers import SentenceTransformer

        refuse_foreign_modules(folder)
        dtype = {"dtype": self.base.dtype}
        model = SentenceTransformer(str(folder), device=self.base.device, local_files_only=True, model_kwargs=dtype)
        model.max_seq_length = self.base.max_length
        return model


def _prepare(model: str, settings: ExpertSettings, device: str) -> _Prepared:
    base = Base.open(model, settings, device=device, longest=_LONGEST)
    if not (base.folder / "modules.json").is_file():
        message = "no modules.json; experts are trained from a folder that says how embeddings are pooled"
        raise SourceError([Problem(message, model)])
    mines = settings.negatives and settings.mine not in (NONE, BM25)
    return _Prepared(base, settings, locate(settings.mine) if mines else None)


def _prompts(settings: ExpertSettings, model: Any) -> harness.Prompts:
    own = model_prompts(model)
    given = {"query": settings.query_prompt, "document": settings.document_prompt}
    return {side: own[side] if prompt is None else prompt for side, prompt in given.items()}


def _examples(
    prepared: _Prepared, read: Sequence[TrainingPairs], file: Path, preparing: harness.Progress | None
) -> Columns:
    """What is trained on: from the work folder where it was made before, for mining takes long."""
    if file.is_file():
        stored: Columns = json.loads(file.read_text(encoding="utf-8"))
        return stored
    settings = prepared.settings
    miner = prepared.load(prepared.miner) if prepared.miner else None
    columns: Columns = {}
    for done, pairs in enumerate(read):
        if preparing:
            preparing(done, len(read))
        mined: dict[str, list[str]] = {}
        if miner is not None:
            prompts = _prompts(settings, miner)
            mined = mine_with_model(pairs, settings.negatives, miner, prompts, settings.batch_size)
        elif settings.negatives and settings.mine == BM25:
            mined = mine_bm25(pairs, settings.negatives, settings.seed)
        made = lay_out(pairs, mined, negatives=settings.negatives, positives=settings.positives, seed=settings.seed)
        for name, texts in made.items():
            columns.setdefault(name, []).extend(texts)
    store_columns(columns, file)
    return columns


def _train(
    prepared: _Prepared,
    columns: Columns,
    checkpoints: Path,
    out: Path,
    asked: dict[str, Any],
    save_every_s: float,
    progress: harness.Progress | None,
    passes: Path | None,
) -> dict[str, Any]:
    base, settings = prepared.base, prepared.settings
    n = len(columns["query"])
    steps = settings.steps or max(1, round(settings.epochs * n / settings.batch_size))
    model = prepared.load(base.folder)
    prompts = _prompts(settings, model)
    harness.without_dropout(model)
    encoder = model[0].auto_model
    adapted = None
    if settings.adapter is not None:
        model.requires_grad_(False)
        adapted = attach(encoder, settings.adapter)
    else:
        for module in list(model)[1:]:
            module.requires_grad_(False)
        encoder.get_input_embeddings().requires_grad_(False)
    if settings.checkpointing:
        harness.enable_checkpointing(encoder)
    trainer = contrastive_trainer(
        model,
        columns,
        base.arguments(settings, checkpoints, steps=steps, warmup_steps=min(_WARMUP, steps // 10)),
        temperature=settings.temperature,
        prompts=prompts,
        mini_batch=settings.mini_batch,
    )
    if adapted is not None and passes is not None:
        ends = {max(1, round(i * n / settings.batch_size)): i for i in range(1, math.floor(settings.epochs) + 1)}
        trainer.add_callback(_leaving_callback(adapted, base.location, passes, ends, {"asked": asked}))
    losses = train_resumably(trainer, checkpoints, progress, save_every_s=save_every_s)
    record = {"asked": asked, "prompts": prompts, "examples": n, "steps": steps, "losses": losses}
    if adapted is not None:
        save_adapter(adapted, base.location, out, record)
    else:
        harness.save(base.folder, encoder, out, record)
    return record


def _leaving_callback(
    adapted: PeftModel, base: str, passes: Path, ends: dict[int, int], record: dict[str, Any]
) -> TrainerCallback:
    """Leaves the adapter after the steps that `ends` gives the number of a pass.

    Checkpoints are written later in a step, so one that is gone on from has all its passes left already.
    """
    from transformers import TrainerCallback

    class _Leave(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
        def on_step_end(self, _args: Any, state: Any, *_: Any, **__: Any) -> None:
            if (done := ends.get(state.global_step)) is not None:
                shutil.rmtree(passes / str(done), ignore_errors=True)
                save_adapter(adapted, base, passes / str(done), {**record, "steps": state.global_step})

    return _Leave()
