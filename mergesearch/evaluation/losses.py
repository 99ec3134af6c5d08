"""The loss of a model on a few examples, by which LM-Cocktail weighs sources (https://arxiv.org/abs/2311.13534).

The paper leaves both losses open; these are those of its code (FlagEmbedding, research/LM_Cocktail): the mean over
batches of the mean within a batch, where the last batch may be smaller and counts as much as the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch.nn.functional import cross_entropy, normalize

from mergesearch.errors import EvaluationError, SourceError
from mergesearch.evaluation.loading import quiet_loading
from mergesearch.evaluation.planned import DTYPES

if TYPE_CHECKING:
    from pathlib import Path

    from mergesearch.evaluation.encoder import Encoder
    from mergesearch.evaluation.examples import ExampleSet

T = TypeVar("T")

LONGEST = 2048
"""Tokens of an example for a language model; what is longer is cut at its end."""


def contrastive_loss(
    encoder: Encoder,
    examples: ExampleSet,
    *,
    max_query_length: int | None = None,
    max_document_length: int | None = None,
) -> float:
    """Cross-entropy in nats of every query's own positive among the positives and negatives of its batch.

    Similarities are those that the template ranks by, divided by the temperature.

    Args:
        encoder: the model, under the weights it holds at the moment.
        examples: retrieval examples.
        max_query_length: tokens per query, instead of the template's.
        max_document_length: tokens per document, instead of the template's.
    """
    prompts, shown = examples.prompts, examples.retrieval
    asked = [e.query for e in shown]
    texts = [text for e in shown for text in (e.positive, *e.negatives)]
    queries = encoder.plan(asked, "query", prompt=prompts.get("query"), max_length=max_query_length)
    passages = encoder.plan(texts, "document", prompt=prompts.get("document"), max_length=max_document_length)
    starts = np.cumsum([0, *(1 + len(e.negatives) for e in shown)])
    losses = []
    for batch in _batches(range(len(shown)), examples.batch_size):
        first, last = batch[0], batch[-1] + 1
        # Encoded in the same batches as published: dividing by the temperature makes rounding twenty times larger.
        queries_QE = encoder.encode_batch(queries, np.arange(first, last))
        passages_PE = encoder.encode_batch(passages, np.arange(starts[first], starts[last]))
        if encoder.settings.similarity == "cosine" and not encoder.settings.normalize:
            queries_QE, passages_PE = normalize(queries_QE, dim=1), normalize(passages_PE, dim=1)
        positives_Q = torch.from_numpy(starts[first:last] - starts[first]).to(encoder.device)
        losses.append(cross_entropy(queries_QE @ passages_PE.T / examples.temperature, positives_Q).item())
    return _mean(losses)


def language_model_loss(
    folder: Path,
    tokenizer: Path,
    examples: ExampleSet,
    *,
    dtype: str = "float32",
    device: str = "cpu",
    trust_remote_code: bool = False,
) -> float:
    """Cross-entropy in nats per token of the outputs, and of the end token behind each, given their inputs.

    Args:
        folder: the causal language model.
        tokenizer: folder of the tokenizer, the same for every model that is compared.
        examples: completions; input and output are joined by a space.
        dtype: of weights and arithmetic.
        device: a torch device.
        trust_remote_code: run Python code that lies in the folders.

    Raises:
        SourceError: the model is no causal language model, or its files lack the head.
        EvaluationError: an input is so long that nothing of its output is left.
    """
    from transformers import AutoTokenizer  # takes seconds

    words = AutoTokenizer.from_pretrained(tokenizer, local_files_only=True, trust_remote_code=trust_remote_code)
    if words.eos_token_id is None:
        raise SourceError([f"the tokenizer of {tokenizer} has no end token, which a language-model loss needs."])
    model = _load(folder, dtype, device, trust_remote_code)
    losses = []
    for batch in _batches(examples.completions, examples.batch_size):
        total, n_tokens = 0.0, 0
        for example in batch:
            prompt = _tokens(words, example.input)
            ids = [*_tokens(words, f"{example.input} {example.output}"), words.eos_token_id][:LONGEST]
            if len(ids) <= len(prompt):
                raise EvaluationError(f"the input {example.input[:60]!r}… has {len(prompt):,} tokens: shorten it.")
            # The first token is predicted from nothing, so it counts with the input where there is none.
            start = max(1, len(prompt))
            logits = _logits(model, ids)[start - 1 : -1]
            total += cross_entropy(logits, torch.tensor(ids[start:], device=device), reduction="sum").item()
            n_tokens += len(ids) - start
        losses.append(total / n_tokens)
    return _mean(losses)


def _load(folder: Path, dtype: str, device: str, trust_remote_code: bool) -> Any:
    from transformers import AutoModelForCausalLM

    what = f"{folder} is no causal language model"
    try:
        with quiet_loading():
            model, info = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=DTYPES[dtype],
                local_files_only=True,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
            )
    except (OSError, ValueError) as error:
        raise SourceError([f"{what}: {error}"]) from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise SourceError([f"{what}: its files lack the language-model head ({', '.join(missing[:3])})."])
    model = model.to(device).eval().requires_grad_(False)
    # Under causal attention the prediction after the first token is the same whatever comes later.
    if not torch.equal(_logits(model, [1, 2])[0], _logits(model, [1, 3])[0]):
        raise SourceError([f"{what}: its tokens see what comes after them. Use `loss: contrastive`."])
    return model


@torch.inference_mode()
def _logits(model: Any, ids: Sequence[int]) -> torch.Tensor:
    logits: torch.Tensor = model(input_ids=torch.tensor([ids], device=model.device)).logits[0]
    return logits.float()


def _tokens(tokenizer: Any, text: str) -> list[int]:
    """Token ids without the end token that tokenizers of embedding models append."""
    ids: list[int] = tokenizer.encode(text)
    return ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids


def _batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _mean(losses: Sequence[float]) -> float:
    return sum(losses) / len(losses)
