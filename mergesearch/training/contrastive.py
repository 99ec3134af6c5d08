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
from mergesearch.training import harness

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


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
    harness.require_positive(
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        max_length=max_length,
        temperature=temperature,
    )
    harness.refuse_existing(out)
    if not (model_folder / "modules.json").is_file():
        message = "no modules.json; contrastive training needs a folder that says how embeddings are pooled"
        raise SourceError([Problem(message, str(model_folder))])
    harness.encoder_folder(model_folder)
    if len(pairs) < batch_size:
        raise CollectionError([Problem(f"{len(pairs)} training pairs do not fill one batch of {batch_size}")])

    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    class _Trainer(SentenceTransformerTrainer):  # type: ignore[misc]  # sentence-transformers is untyped here
        def add_model_card_callback(self, *_: Any) -> None:
            """No card: it would search the training texts for examples, under a progress bar of its own."""

    with harness.quiet_and_seeded(seed), tempfile.TemporaryDirectory() as scratch:
        model = SentenceTransformer(
            str(model_folder), device=device, local_files_only=True, model_kwargs={"dtype": torch.float32}
        )
        model.max_seq_length = max_length
        for module in list(model)[1:]:
            module.requires_grad_(False)
        encoder = model[0].auto_model
        harness.prepare(model, encoder.get_input_embeddings(), train_embeddings=train_embeddings)
        columns = {"query": [q for q, _ in pairs], "document": [d for _, d in pairs]}
        trainer = _Trainer(
            model=model,
            args=SentenceTransformerTrainingArguments(
                **harness.arguments(
                    scratch,
                    device=device,
                    steps=steps,
                    batch_size=batch_size,
                    learning_rate=learning_rate,
                    seed=seed,
                ),
                batch_sampler="no_duplicates",
                prompts=_prompts(model),
            ),
            train_dataset=Dataset.from_dict(columns),
            loss=MultipleNegativesRankingLoss(model, scale=1.0 / temperature),
        )
        loss = harness.train(trainer, progress)
        record = {
            "kind": "contrastive",
            "pairs": len(pairs),
            "steps": steps,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "max_length": max_length,
            "temperature": temperature,
            "train_embeddings": train_embeddings,
            "seed": seed,
            "training_loss": loss,
        }
        return harness.save(model_folder, encoder, out, record)


def _prompts(model: Any) -> dict[str, str] | None:
    """The model's prompt for each training column, looked up under the names its encode methods use."""
    names = {"query": ("query",), "document": ("document", "passage", "corpus")}
    found = {column: next((p for n in keys if (p := model.prompts.get(n))), "") for column, keys in names.items()}
    return {column: prompt for column, prompt in found.items() if prompt} or None
