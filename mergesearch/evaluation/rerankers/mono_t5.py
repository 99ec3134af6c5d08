"""Encoder-decoders whose first word is an answer: relevant or not.

Nogueira et al., "Document Ranking with a Pretrained Sequence-to-Sequence Model" (https://arxiv.org/abs/2003.06713): the
score is log p(▁true) after a softmax over ▁false and ▁true, which is log σ of their log-odds, the raw score. Bonifacio
et al., "mMARCO" (https://arxiv.org/abs/2108.13897), read ▁no and ▁yes off mT5.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from mergesearch.evaluation.heads import tokens_in_fp32
from mergesearch.evaluation.joining import Form, OneText
from mergesearch.evaluation.rerankers import Family, Reading, answer_ids, family, tensors

if TYPE_CHECKING:
    from torch import Tensor

    from mergesearch.evaluation.inputs import Features
    from mergesearch.evaluation.rerank_settings import RerankSettings
    from mergesearch.evaluation.reranker_files import RerankerFiles

_ANSWERS = {"mt5": ("no", "yes"), "umt5": ("no", "yes")}


@family("mono_t5")
class MonoT5(Family):
    """Any model of `AutoModelForSeq2SeqLM`."""

    title = "an encoder-decoder that answers true or false"
    head = "seq2seq_lm"
    max_length = 512
    reads = frozenset({"template", "tokens"})

    def recognises(self, files: RerankerFiles) -> bool:
        """See the base class."""
        return files.architecture.endswith("ForConditionalGeneration") and "t5" in files.model_type

    def form(self, settings: RerankSettings, files: RerankerFiles) -> Form:
        """The published text, and the tokenizer's end token."""
        return OneText(
            settings.template or f"{files.prompt}Query: {{query}} Document: {{document}} Relevant:", ends=True
        )

    def activation(self, files: RerankerFiles) -> str:  # noqa: ARG002
        """The published score."""
        return "log_sigmoid"

    def open(self, model: Any, tokenizer: Any, settings: RerankSettings, files: RerankerFiles) -> Reading:
        """See the base class."""
        answers = settings.tokens or _ANSWERS.get(files.model_type, ("false", "true"))
        ids = answer_ids(tokenizer, answers, "")
        tokens_in_fp32(model, ids)
        start = model.config.decoder_start_token_id
        if start is None:
            start = tokenizer.pad_token_id

        def score(inputs: Features) -> Tensor:
            given = tensors(inputs)
            first = torch.full((len(given["input_ids"]), 1), start, device=given["input_ids"].device)
            logits: Tensor = model(**given, decoder_input_ids=first, use_cache=False).logits[:, 0]
            return logits[:, 1] - logits[:, 0]

        no, yes = tokenizer.convert_ids_to_tokens(ids)
        return Reading(score, (no, yes))
