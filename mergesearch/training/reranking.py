"""Re-rankers: an encoder that learns to score a query and a document read together.

A cross-encoder (Nogueira and Cho 2019, https://arxiv.org/abs/1901.04085) as sentence-transformers trains them: binary
cross-entropy on pairs, in which a relevant document counts as much as all negatives of its query together, AdamW at
2e-5 with a warm-up over a tenth of the steps. Negatives are drawn from the documents that BM25 ranks highest, which
are what the re-ranker will be shown.
"""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from mergesearch.errors import CollectionError, Problem, SourceError
from mergesearch.sources.config import refuse_foreign_modules
from mergesearch.training import harness
from mergesearch.training.base import Base, Trained, TrainingSettings
from mergesearch.training.pairs import TrainingPairs, lay_out, mine_bm25, read_pairs
from mergesearch.training.resumable import (
    SAVE_EVERY_S,
    PlannedBatches,
    TrainedOnly,
    first_and_last,
    train_once,
    train_resumably,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import torch
    from transformers import PretrainedConfig

_LONGEST = 512
_CLASSIFIER = "ForSequenceClassification"


@dataclass(frozen=True)
class RerankerTraining(TrainingSettings):
    """How a re-ranker is trained.

    Attributes:
        adapter: None: the whole model is trained, but for its word embeddings, which merges take from their template.
        split: of pairs that are BEIR folders.
        negatives: documents that are not relevant, for each that is.
        depth: they are drawn from so many documents that BM25 ranks highest; those that were given come before.
        positives: relevant documents of a query at most.
        max_length: tokens of a pair; None for 512, or as many as the model has positions. It becomes the re-ranker's.
        epochs: passes over the pairs, may be a fraction.
        steps: optimizer steps in place of `epochs`.
        batch_size: pairs per step.
        learning_rate: AdamW's, at its highest, after a warm-up over a tenth of the steps.
        seed: head, negatives and the order of the pairs.
    """

    adapter: None = field(default=None, init=False)
    split: str = "train"
    negatives: int = 4
    depth: int = 100
    positives: int = 1
    batch_size: int = 64
    learning_rate: float = 2e-5

    above_zero: ClassVar = (*TrainingSettings.above_zero, "negatives", "depth", "positives")


def train_reranker(
    model: str,
    pairs: Sequence[Path],
    out: Path,
    settings: RerankerTraining | None = None,
    *,
    device: str = "auto",
    restart: bool = False,
    save_every_s: float = SAVE_EVERY_S,
    preparing: harness.Progress | None = None,
    progress: harness.Progress | None = None,
) -> Trained:
    """Train a cross-encoder with one label and leave it as a folder, in float32.

    Where the encoder's files hold no head (and no pooler, where the head reads one), they are drawn and trained with
    the rest; the folder that is left holds all that its class reads. A process that is killed loses a minute: the same
    call goes on, and ends with what an undisturbed one would have made (to the bit on a CPU with as many threads).

    Args:
        model: an encoder, or a re-ranker to go on from, as a study file names a source.
        pairs: BEIR folders or jsonl files, see `pairs.read_pairs`; negatives are mined in each by itself.
        out: a folder that is empty or does not exist yet; it appears whole or not at all.
        settings: how it is trained.
        device: `cpu`, `cuda`, … or `auto`.
        restart: throw away what an earlier process left of this training.
        save_every_s: seconds between checkpoints.
        preparing: called with (collections mined, collections) while negatives are looked for.
        progress: called after each optimizer step.

    Raises:
        MergesearchError: for a missing extra, impossible settings, an `out` that exists, a training that was begun with
            other settings, or one that diverged.
        SourceError: for a model that cannot be read or is no encoder.
        CollectionError: for pairs that cannot be read, or are fewer than one batch.
        MemoryPlanError: the device does not hold it.
    """
    settings = settings or RerankerTraining()
    harness.require_extra("accelerate", "datasets")
    settings.check()
    harness.refuse_file(out)
    with harness.quiet_and_seeded(settings.seed):
        base = Base.open(model, settings, device=device, longest=_LONGEST)
        _check_encoder(base.config, model)
        read = [read_pairs(path, split=settings.split) for path in pairs]
        given = [json.dumps(p.negatives, sort_keys=True) for p in read]
        asked = base.asked(
            "reranker",
            settings,
            base_settings_sha256=harness.settings_hash(base.folder),
            pairs_sha256=[p.collection.content_hash for p in read],
            negatives_sha256=[harness.text_hash(text) for text in given],
        )

        def check() -> None:
            base.check_memory(settings, texts=settings.batch_size, head=False, remedy="a smaller --batch-size")

        def train(work: Path) -> dict[str, Any]:
            columns = labelled_pairs(read, settings, preparing)
            if len(columns["label"]) < settings.batch_size:
                found = f"{len(columns['label'])} pairs do not fill one batch of {settings.batch_size}"
                raise CollectionError([f"{found}; give more pairs or a smaller batch"])
            return _train(base, settings, columns, work / "checkpoints", out, asked, save_every_s, progress)

        record, before = train_once(out, asked, check, train, restart=restart)
    return Trained(out, record["pairs"], record["steps"], first_and_last(record), before)


def _check_encoder(config: PretrainedConfig, model: str) -> None:
    """Only encoders become cross-encoders here, and a head that is there must have one label."""
    from transformers import MODEL_FOR_MASKED_LM_MAPPING, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    encodes = type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_encoder_decoder", False)
    if not encodes or type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        message = f"model type {config.model_type!r} is no encoder that can have a classification head; BERT is one"
        raise SourceError([Problem(message, model)])
    classifies = any(name.endswith(_CLASSIFIER) for name in config.architectures or [])
    if classifies and config.num_labels != 1:
        message = f"its head has {config.num_labels} labels, a re-ranker one; give the encoder that it was made from"
        raise SourceError([Problem(message, model)])


def labelled_pairs(
    read: Sequence[TrainingPairs], settings: RerankerTraining, preparing: harness.Progress | None = None
) -> dict[str, list[Any]]:
    """Columns `query`, `document` and `label`, 1 for relevant documents and 0 for others; no pair comes twice.

    A query that has too few negatives has fewer pairs, and one that has none gets documents drawn at random.
    """
    labels: dict[tuple[str, str], int] = {}
    for done, pairs in enumerate(read):
        if preparing:
            preparing(done, len(read))
        mined = {}
        for query, found in mine_bm25(pairs, settings.depth, settings.seed).items():
            draw = random.Random(f"{settings.seed} {query}")  # noqa: S311 - sampling, no secret
            mined[query] = draw.sample(found, min(settings.negatives, len(found)))
        columns = lay_out(pairs, mined, negatives=settings.negatives, positives=settings.positives, seed=settings.seed)
        for query, relevant, *others in zip(*columns.values(), strict=True):
            labels[query, relevant] = 1
            for document in others:
                labels.setdefault((query, document), 0)
    queries, documents = ([pair[side] for pair in labels] for side in (0, 1))
    return {"query": queries, "document": documents, "label": [float(label) for label in labels.values()]}


def _train(
    base: Base,
    settings: RerankerTraining,
    columns: dict[str, list[Any]],
    checkpoints: Path,
    out: Path,
    asked: dict[str, Any],
    save_every_s: float,
    progress: harness.Progress | None,
) -> dict[str, Any]:
    n = len(columns["label"])
    steps = settings.steps or max(1, round(settings.epochs * n / settings.batch_size))
    model = _load(base)
    harness.prepare(model, model.transformers_model.get_input_embeddings(), train_embeddings=False)
    if settings.checkpointing:
        harness.enable_checkpointing(model.transformers_model)
    arguments = base.arguments(settings, checkpoints, steps=steps, warmup_steps=steps // 10)
    trainer = _trainer(model, columns, arguments, negatives=settings.negatives)
    losses = train_resumably(trainer, checkpoints, progress, save_every_s=save_every_s)
    relevant = int(sum(columns["label"]))
    record = {"asked": asked, "pairs": n, "relevant": relevant, "steps": steps, "losses": losses}
    with harness.appearing(out, model.state_dict()) as made:
        model.save_pretrained(str(made), create_model_card=False)
        for weights in made.glob("*.safetensors"):
            shutil.copymode(made / "config.json", weights)
        harness.write_record(made, record)
    return record


def _load(base: Base) -> Any:
    from sentence_transformers import CrossEncoder

    refuse_foreign_modules(base.folder)
    return CrossEncoder(
        str(harness.encoder_folder(base.folder)),
        num_labels=1,
        max_length=base.max_length,
        device=base.device,
        local_files_only=True,
        model_kwargs={"dtype": base.dtype},
    )


def _trainer(model: Any, columns: dict[str, list[Any]], arguments: dict[str, Any], *, negatives: int) -> Any:
    """A trainer of binary cross-entropy over pairs, whose order follows from seed and data alone."""
    import torch
    from datasets import Dataset
    from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments
    from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss

    class _Trainer(TrainedOnly, CrossEncoderTrainer):  # type: ignore[misc]  # untyped here
        def add_model_card_callback(self, *_: Any) -> None:
            """No card: it would search the training texts for examples, under a progress bar of its own."""

        def get_batch_sampler(self, *positional: Any, **named: Any) -> torch.utils.data.Sampler[list[int]]:
            return PlannedBatches(super().get_batch_sampler(*positional, **named), self.args.max_steps)

    return _Trainer(
        model=model,
        args=CrossEncoderTrainingArguments(**arguments),
        train_dataset=Dataset.from_dict(columns),
        loss=BinaryCrossEntropyLoss(model, pos_weight=torch.tensor(float(negatives))),
    )
