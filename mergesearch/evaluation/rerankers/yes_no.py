"""Decoders that are asked whether a document fits a query, and answer yes or no.

Zhang et al., "Qwen3 Embedding" (https://arxiv.org/abs/2506.05176): the score is p(yes) after a softmax over yes and no
at the last position, which is σ of their log-odds, the raw score. sentence-transformers calls the log-odds
`LogitScore`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mergesearch.evaluation.heads import tokens_in_fp32
from mergesearch.evaluation.joining import Form, OneText
from mergesearch.evaluation.rerankers import Family, Reading, answer_ids, family, kept_logits, tensors

if TYPE_CHECKING:
    from torch import Tensor

    from mergesearch.evaluation.inputs import Features
    from mergesearch.evaluation.rerank_settings import RerankSettings
    from mergesearch.evaluation.reranker_files import RerankerFiles

_INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
_TEMPLATE = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
    "<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}<|im_end|>\n"
    "<|im_start|>assistant\n<think>\n\n</think>\n\n"
)


@family("yes_no")
class YesNo(Family):
    """Any model of `AutoModelForCausalLM` that was trained to answer; the default prompt is Qwen3-Reranker's."""

    title = "a decoder that answers yes or no"
    head = "causal_lm"
    causal = True
    max_length = 8192
    reads = frozenset({"template", "instruction", "tokens"})

    def recognises(self, files: RerankerFiles) -> bool:
        """A `CrossEncoder` with a `LogitScore` over a language model; config.json alone does not tell it."""
        return files.answers is not None

    def form(self, settings: RerankSettings, files: RerankerFiles) -> Form:  # noqa: ARG002
        """The published prompt, up to where the answer begins."""
        template = settings.template or _TEMPLATE
        return OneText(template.replace("{instruction}", settings.instruction or _INSTRUCTION))

    def activation(self, files: RerankerFiles) -> str:
        """The published score."""
        return files.activation or "sigmoid"

    def open(self, model: Any, tokenizer: Any, settings: RerankSettings, files: RerankerFiles) -> Reading:
        """See the base class."""
        if settings.tokens is None and files.answers is not None:
            ids = [number for number in files.answers if number is not None]
        else:
            form = self.form(settings, files)
            assert isinstance(form, OneText)
            end = form.template.rpartition("}")[2]
            ids = answer_ids(tokenizer, settings.tokens or ("no", "yes"), end)
        tokens_in_fp32(model, ids)

        def score(inputs: Features) -> Tensor:
            logits: Tensor = model(**tensors(inputs), **kept_logits(model, 1), use_cache=False).logits[:, -1]
            return logits[:, -1] - logits[:, 0] if len(ids) == 2 else logits[:, 0]

        words = tokenizer.convert_ids_to_tokens(ids)
        return Reading(score, (words[0] if len(ids) == 2 else "", words[-1]))
