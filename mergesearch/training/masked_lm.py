"""Domain adaptation: masked-language modelling on unlabelled texts, starting from a retriever's encoder.

The objective is BERT's (Devlin et al. 2019, https://arxiv.org/abs/1810.04805): a share of the tokens is
selected; of these 80% are replaced by the mask token, 10% by a random token, 10% stay; all are predicted.
What is left is an encoder that knows the domain's words and has lost some of its retrieval: alone it is a
poor retriever, and it is meant to be merged with the one it came from.
"""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING, Any

import torch

from mergesearch.errors import CollectionError, Problem, SourceError
from mergesearch.training import harness
from mergesearch.training.objectives import load_with_head

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def train_masked_lm(
    model_folder: Path,
    texts: Sequence[str],
    out: Path,
    *,
    steps: int = 60,
    batch_size: int = 16,
    learning_rate: float = 5e-5,
    max_length: int = 128,
    seed: int = 0,
    mask_probability: float = 0.15,
    train_embeddings: bool = False,
    device: str = "cpu",
    progress: harness.Progress | None = None,
) -> Path:
    """Adapt the encoder in fp32 to the texts and leave a folder of the same shape as `model_folder`.

    The prediction head is the checkpoint's own where it has one and freshly drawn otherwise, its output
    matrix tied to the word embeddings in either case; it is dropped afterwards. Parameters that the objective
    does not use, such as a pooler's, are the template's.

    Args:
        model_folder: a transformers or sentence-transformers folder with a tokenizer that has a mask token.
        texts: unlabelled; each is cut to `max_length` tokens and never joined with another.
        out: a folder that is empty or does not exist yet; it appears whole or not at all.
        steps: optimizer steps; the texts are shuffled anew and used again when they run out.
        batch_size: texts per step.
        learning_rate: AdamW's, at its highest, after the warm-up.
        max_length: tokens per text, special tokens included.
        seed: head, order of the texts, and masks. On a CPU the same seed and number of threads give the same
            weights to the bit.
        mask_probability: share of the tokens that are selected, in (0, 1).
        train_embeddings: whether the word embeddings, and with them the head's output matrix, are trained.
        device: `cpu` or `cuda`.
        progress: called after each step.

    Returns:
        `out`.

    Raises:
        MergesearchError: for a missing extra, settings that are not positive, an `out` that exists, or a
            training that diverged.
        SourceError: for a model without a masked-language-model head or a tokenizer without a mask token.
        CollectionError: for fewer texts than one batch takes.
    """
    harness.require_extra("accelerate")
    schedule: dict[str, Any] = {"steps": steps, "batch_size": batch_size, "learning_rate": learning_rate}
    harness.require_positive(**schedule, max_length=max_length, mask_probability=mask_probability)
    harness.refuse_existing(out)
    folder = harness.encoder_folder(model_folder)
    if len(texts) < batch_size:
        raise CollectionError([Problem(f"{len(texts)} texts do not fill one batch of {batch_size}")])

    from transformers import AutoModel, DataCollatorForLanguageModeling, Trainer, TrainingArguments

    with harness.quiet_and_seeded(seed), tempfile.TemporaryDirectory() as scratch:
        tokenizer, model = _load(folder)
        harness.prepare(model, model.get_input_embeddings(), train_embeddings=train_embeddings)
        encoded = tokenizer(list(texts), truncation=True, max_length=max_length, return_special_tokens_mask=True)
        examples = [
            {"input_ids": ids, "special_tokens_mask": special}
            for ids, special in zip(encoded["input_ids"], encoded["special_tokens_mask"], strict=True)
        ]
        trainer = Trainer(
            model=model,
            args=TrainingArguments(**harness.arguments(scratch, device=device, seed=seed, **schedule)),
            train_dataset=examples,
            data_collator=DataCollatorForLanguageModeling(tokenizer, mlm_probability=mask_probability),
        )
        loss = harness.train(trainer, progress)
        # Built without a pooler for this objective, so it is put back into a whole encoder of the template's.
        encoder = AutoModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
        trained = {name: tensor.cpu() for name, tensor in model.base_model.state_dict().items()}
        encoder.load_state_dict({**encoder.state_dict(), **trained})
        record = {
            "kind": "masked_lm",
            "texts": len(texts),
            **schedule,
            "max_length": max_length,
            "mask_probability": mask_probability,
            "train_embeddings": train_embeddings,
            "seed": seed,
            "training_loss": loss,
        }
        return harness.save(model_folder, encoder, out, record)


def _load(folder: Path) -> tuple[Any, Any]:
    """Tokenizer, and the encoder with a prediction head tied to its word embeddings."""
    from transformers import MODEL_FOR_MASKED_LM_MAPPING, AutoConfig, AutoTokenizer

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    problems = []
    if type(config) not in MODEL_FOR_MASKED_LM_MAPPING:
        message = f"model type {config.model_type!r} has no masked-language-model head; use an encoder such as BERT"
        problems.append(Problem(message, str(folder)))
    if tokenizer.mask_token is None:
        problems.append(Problem("the tokenizer has no mask token", str(folder)))
    if problems:
        raise SourceError(problems)
    model, _ = load_with_head(folder, "masked", torch.float32)
    return tokenizer, model
