"""Contrastive fine-tuning of a retriever on (query, document) pairs with in-batch negatives.

The loss is InfoNCE over one batch (van den Oord et al. 2018, https://arxiv.org/abs/1807.03748; with in-batch
negatives Henderson et al. 2017, https://arxiv.org/abs/1705.00652):
L = -1/B Σᵢ log( exp(s(qᵢ, dᵢ)/τ) / Σⱼ exp(s(qᵢ, dⱼ)/τ) ), with s the cosine and τ the temperature.
"""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING, Any

import torch

from mergesearch.errors import CollectionError, Problem, SourceError
from mergesearch.sources.config import refuse_foreign_modules
from mergesearch.training import harness
from mergesearch.training.resumable import PlannedBatches, TrainedOnly

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from mergesearch.training.pairs import Columns


def train_contrastive(
    model_folder: Path,
    pairs: Sequence[tuple[str, str]],
    out: Path,
    *,
    steps: int = 60,
    batch_size: int = 32,
    learning_rate: float = 1e-4,
    max_length: int = 64,
    seed: int = 0,
    temperature: float = 0.05,
    train_embeddings: bool = False,
    device: str = "cpu",
    progress: harness.Progress | None = None,
) -> Path:
    """Fine-tune a sentence-transformers model in fp32 and leave a folder of the same shape.

    Only the transformer is trained. Further modules with weights, such as a Dense, keep theirs, because a
    merge takes them from its template. No batch holds a text twice, so a text is never its own negative.
    The model's own prompts are put before queries and documents.

    Args:
        model_folder: has `modules.json`, which says how embeddings are pooled.
        pairs: (query, relevant document).
        out: a folder that is empty or does not exist yet; it appears whole or not at all.
        steps: optimizer steps; the pairs are shuffled anew and used again when they run out.
        batch_size: pairs per step, and so the number of documents each query is compared with.
        learning_rate: AdamW's, at its highest, after the warm-up.
        max_length: tokens per text while training; the saved model keeps the template's own limit.
        seed: order of the pairs. On a CPU the same seed and number of threads give the same
            weights to the bit.
        temperature: what cosines are divided by.
        train_embeddings: whether the word embeddings are trained too.
        device: `cpu` or `cuda`.
        progress: called after each step.

    Returns:
        `out`.

    Raises:
        MergesearchError: for a missing extra, settings that are not positive, an `out` that exists, or a
            training that diverged.
        SourceError: for a folder without `modules.json`.
        CollectionError: for fewer pairs than one batch takes.
    """
    harness.require_extra("accelerate", "datasets")
    schedule: dict[str, Any] = {"steps": steps, "batch_size": batch_size, "learning_rate": learning_rate}
    harness.require_positive(**schedule, max_length=max_length, temperature=temperature)
    harness.refuse_existing(out)
    if not (model_folder / "modules.json").is_file():
        message = "no modules.json; contrastive training needs a folder that says how embeddings are pooled"
        raise SourceError([Problem(message, str(model_folder))])
    refuse_foreign_modules(model_folder)
    harness.encoder_folder(model_folder)
    if len(pairs) < batch_size:
        raise CollectionError([Problem(f"{len(pairs)} training pairs do not fill one batch of {batch_size}")])

    from sentence_transformers import SentenceTransformer

    with harness.quiet_and_seeded(seed), tempfile.TemporaryDirectory() as scratch:
        model = SentenceTransformer(
            str(model_folder), device=device, local_files_only=True, model_kwargs={"dtype": torch.float32}
        )
        model.max_seq_length = max_length
        for module in list(model)[1:]:
            module.requires_grad_(False)
        encoder = model[0].auto_model
        harness.prepare(model, encoder.get_input_embeddings(), train_embeddings=train_embeddings)
        trainer = contrastive_trainer(
            model,
            {"query": [q for q, _ in pairs], "document": [d for _, d in pairs]},
            harness.arguments(scratch, device=device, seed=seed, **schedule),
            temperature=temperature,
            prompts=model_prompts(model),
        )
        loss = harness.train(trainer, progress)
        record = {
            "kind": "contrastive",
            "pairs": len(pairs),
            **schedule,
            "max_length": max_length,
            "temperature": temperature,
            "train_embeddings": train_embeddings,
            "seed": seed,
            "training_loss": loss,
        }
        return harness.save(model_folder, encoder, out, record)


def contrastive_trainer(
    model: Any,
    columns: Columns,
    arguments: dict[str, Any],
    *,
    temperature: float,
    prompts: harness.Prompts,
    mini_batch: int | None = None,
) -> Any:
    """A trainer of InfoNCE over the batch, where negatives of all its queries are negatives of each.

    Which examples come when follows from seed and data alone, for a training that goes on as for one that begins.

    Args:
        model: a SentenceTransformer; what of it is to be trained requires gradients.
        columns: the examples; no batch holds a text twice.
        arguments: of `harness.arguments`.
        temperature: what cosines are divided by.
        prompts: put before `query` and `document` (and negatives).
        mini_batch: examples that are encoded at a time, for batches larger than memory (GradCache, Gao et al. 2021,
            https://arxiv.org/abs/2101.06983).
    """
    from datasets import Dataset
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer.losses import (
        CachedMultipleNegativesRankingLoss,
        MultipleNegativesRankingLoss,
    )

    class _Trainer(TrainedOnly, SentenceTransformerTrainer):  # type: ignore[misc]  # untyped here
        def add_model_card_callback(self, *_: Any) -> None:
            """No card: it would search the training texts for examples, under a progress bar of its own."""

        def get_batch_sampler(self, *positional: Any, **named: Any) -> torch.utils.data.Sampler[list[int]]:
            return PlannedBatches(super().get_batch_sampler(*positional, **named), self.args.max_steps)

    scale = 1.0 / temperature
    of_column = {name: prompts.get("query" if name == "query" else "document", "") for name in columns}
    return _Trainer(
        model=model,
        args=SentenceTransformerTrainingArguments(
            **arguments,
            batch_sampler="no_duplicates",
            prompts={name: prompt for name, prompt in of_column.items() if prompt} or None,
        ),
        train_dataset=Dataset.from_dict(columns),
        loss=MultipleNegativesRankingLoss(model, scale=scale)
        if mini_batch is None
        else CachedMultipleNegativesRankingLoss(model, scale=scale, mini_batch_size=mini_batch),
    )


def model_prompts(model: Any) -> harness.Prompts:
    """The model's own prompts for `query` and `document`, looked up under the names its encode methods use."""
    names = {"query": ("query",), "document": ("document", "passage", "corpus")}
    return {side: next((p for n in keys if (p := model.prompts.get(n))), "") for side, keys in names.items()}
