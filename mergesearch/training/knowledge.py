"""Knowledge adapters: what a model learns of a domain from its bare documents.

RE-AdaptIR's Ψ (Fleshman and Van Durme 2024, appendix A): DoRA of rank 32 with alpha 64 and dropout .05 on the
projections to queries, keys and values and those up and down, AdamW at 2e-4 with linear decay, batches of 4 passages
of at most 1,024 tokens, one epoch. Decoders predict the next token, as there; encoders the masked ones.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from mergesearch.sources.checkpoint import file_hash
from mergesearch.training import harness
from mergesearch.training.adapters import AdapterSettings, attach, save_adapter
from mergesearch.training.base import Base, TrainingSettings
from mergesearch.training.documents import TokenStore, document_files, read_documents, write_tokens
from mergesearch.training.objectives import Collate, Examples, Objective, check_learns, choose_objective, load_with_head
from mergesearch.training.resumable import SAVE_EVERY_S, TrainedOnly, first_and_last, train_once, train_resumably

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

LONGEST = 1024
"""Tokens of a document that are read, where the model has as many positions."""


@dataclass(frozen=True)
class KnowledgeSettings(TrainingSettings):
    """How an adapter is trained; the defaults are the paper's.

    Attributes:
        adapter: its shape.
        objective: `auto`, `next_token` or `masked`.
        max_length: tokens of a document; None for 1,024, or as many as the model has positions.
        epochs: passes over the documents, may be a fraction.
        steps: optimizer steps in place of `epochs`.
        tokens: no more token ids than these.
        batch_size: documents at a time.
        accumulate: batches per optimizer step.
        learning_rate: AdamW's at the start; it decays linearly to zero.
        mask_probability: share of the tokens that are predicted, for `masked`.
        seed: adapter, order of the documents, masks and dropout.
        dtype: of the frozen weights and of the computation: `auto` is bfloat16 on a GPU that has it, else float32.
            The adapter itself is float32.
        checkpointing: compute activations again in the backward pass, which takes less memory and more time.
    """

    adapter: AdapterSettings = field(default_factory=AdapterSettings)
    objective: str = "auto"
    tokens: int | None = None
    batch_size: int = 4
    accumulate: int = 1
    learning_rate: float = 2e-4
    mask_probability: float = 0.15

    above_zero: ClassVar = (*TrainingSettings.above_zero, "tokens", "accumulate", "mask_probability")


@dataclass(frozen=True)
class Adapted:
    """A finished training.

    Attributes:
        folder: of the adapter.
        objective: what was learned.
        documents: that were read.
        examples: documents that were trained on, a document in two passes counted twice.
        steps: of the optimizer.
        losses: logged losses, the first and the last.
        before: whether it had been finished by an earlier process.
    """

    folder: Path
    objective: str
    documents: int
    examples: int
    steps: int
    losses: tuple[float, float]
    before: bool = False


def train_knowledge_adapter(
    model: str,
    documents: Sequence[Path],
    out: Path,
    settings: KnowledgeSettings | None = None,
    *,
    device: str = "auto",
    restart: bool = False,
    save_every_s: float = SAVE_EVERY_S,
    reading: harness.Progress | None = None,
    progress: harness.Progress | None = None,
) -> Adapted:
    """Train a knowledge adapter and leave it as a folder that PEFT and mergesearch read.

    It is an adapter of the bare encoder: the language-model head that it was trained with is dropped, with what that
    head learned if it had to be made anew.

    A process that is killed loses a minute: the same call goes on, and ends with the adapter that an undisturbed one
    would have made (to the bit on a CPU with as many threads).

    Args:
        model: the pretrained model, as a study file names a source: a folder, `package:NAME` or a hub id.
        documents: files, or folders, see `documents.read_documents`.
        out: a folder that is empty or does not exist yet; it appears whole or not at all.
        settings: how it is trained.
        device: `cpu`, `cuda`, … or `auto`.
        restart: throw away what an earlier process left of this training.
        save_every_s: seconds between checkpoints.
        reading: called with the number of documents tokenised, and 0 as it is not known how many there are.
        progress: called after each optimizer step.

    Raises:
        MergesearchError: for a missing extra, settings that are not positive, an `out` that exists, a training that
            was begun with other settings, or one that diverged.
        SourceError: for a model that cannot be read or has no head for the objective.
        CollectionError: for documents that cannot be read.
        MemoryPlanError: the device does not hold it.
    """
    settings = settings or KnowledgeSettings()
    harness.require_extra("accelerate", "peft")
    settings.check()
    files = document_files(documents)
    harness.refuse_file(out)
    with harness.quiet_and_seeded(settings.seed):
        prepared = _prepare(model, settings, device)
        asked = prepared.asked(files)

        def train(work: Path) -> dict[str, Any]:
            store = _tokens(prepared, files, work / "documents", reading)
            return _train(prepared, store, work / "checkpoints", out, asked, save_every_s, progress)

        record, before = train_once(out, asked, prepared.check_memory, train, restart=restart)
    counts = {name: record[name] for name in ("documents", "examples", "steps")}
    return Adapted(out, prepared.objective, **counts, losses=first_and_last(record), before=before)


@dataclass(frozen=True)
class _Prepared:
    """A training of which everything is known that headers and configs say."""

    base: Base
    settings: KnowledgeSettings
    tokenizer: Any
    objective: Objective
    shortest: int

    def asked(self, files: Sequence[Path]) -> dict[str, Any]:
        """Everything that decides the adapter's numbers."""
        return self.base.asked(
            "knowledge_adapter",
            self.settings,
            tokenizer_sha256=harness.text_hash(self.tokenizer.backend_tokenizer.to_str()),
            documents_sha256=[file_hash(file) for file in files],
            objective=self.objective,
        )

    def check_memory(self) -> None:
        """Refuse what the device does not hold."""
        settings, remedy = self.settings, "a smaller --batch-size (with --accumulate)"
        self.base.check_memory(settings, texts=settings.batch_size, head=True, remedy=remedy)


def _prepare(model: str, settings: KnowledgeSettings, device: str) -> _Prepared:
    from transformers import AutoTokenizer

    base = Base.open(model, settings, device=device, longest=LONGEST)
    tokenizer = AutoTokenizer.from_pretrained(base.checkpoint.folder, local_files_only=True)
    objective = choose_objective(base.config, tokenizer, settings.objective)
    return _Prepared(base, settings, tokenizer, objective, check_learns(objective, tokenizer, base.max_length))


def _tokens(prepared: _Prepared, files: Sequence[Path], folder: Path, reading: harness.Progress | None) -> TokenStore:
    if not folder.is_dir():
        write_tokens(
            read_documents(files),
            prepared.tokenizer,
            folder,
            max_length=prepared.base.max_length,
            shortest=prepared.shortest,
            progress=(lambda done: reading(done, 0)) if reading else None,
        )
    return TokenStore.open(folder)


def _train(
    prepared: _Prepared,
    store: TokenStore,
    checkpoints: Path,
    out: Path,
    asked: dict[str, Any],
    save_every_s: float,
    progress: harness.Progress | None,
) -> dict[str, Any]:
    from transformers import Trainer, TrainingArguments

    base, settings = prepared.base, prepared.settings
    at_once = settings.batch_size * settings.accumulate
    examples = Examples(
        store,
        seed=settings.seed,
        epochs=settings.epochs,
        most=settings.steps and settings.steps * at_once,
        tokens=settings.tokens,
    )
    steps = -(-len(examples) // at_once)
    model, fresh = load_with_head(base.checkpoint.folder, prepared.objective, base.dtype)
    harness.without_dropout(model)
    model.requires_grad_(False)
    adapted = attach(model.base_model, settings.adapter)
    if settings.checkpointing:
        harness.enable_checkpointing(model)
    for name, parameter in model.named_parameters():
        if name in fresh:  # a head that knows nothing has to learn too
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)

    class _Trainer(TrainedOnly, Trainer):  # type: ignore[misc]  # transformers is untyped here
        def _get_train_sampler(self, *_: Any) -> torch.utils.data.Sampler[int]:
            return torch.utils.data.SequentialSampler(examples)  # the examples have an order of their own

    trainer = _Trainer(
        model=model,
        args=TrainingArguments(
            **base.arguments(settings, checkpoints, steps=steps, warmup_steps=0),
            gradient_accumulation_steps=settings.accumulate,
            remove_unused_columns=False,
        ),
        train_dataset=examples,
        data_collator=Collate(
            prepared.objective,
            prepared.tokenizer,
            vocab_size=int(base.config.get_text_config().vocab_size),
            seed=settings.seed,
            mask_probability=settings.mask_probability,
        ),
    )
    losses = train_resumably(trainer, checkpoints, progress, save_every_s=save_every_s)
    record = {
        "asked": asked,
        "documents": len(store),
        "left_out": store.empty,
        "examples": len(examples),
        "tokens": examples.tokens,
        "steps": steps,
        "fresh_head": sorted(fresh),
        "losses": losses,
    }
    save_adapter(adapted, base.location, out, record)
    return record
