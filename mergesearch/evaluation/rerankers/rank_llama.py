"""Decoders that read query and document together and end in a classification head over the last token.

Ma et al., "Fine-Tuning LLaMA for Multi-Stage Text Retrieval" (https://arxiv.org/abs/2310.08319).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mergesearch.errors import EvaluationError
from mergesearch.evaluation.heads import classes_in_fp32
from mergesearch.evaluation.joining import Form, TwoTexts
from mergesearch.evaluation.rerankers import Family, Reading, family, reads_leftwards, tensors

if TYPE_CHECKING:
    from torch import Tensor

    from mergesearch.evaluation.inputs import Features
    from mergesearch.evaluation.rerank_settings import RerankSettings
    from mergesearch.evaluation.reranker_files import RerankerFiles


@family("rank_llama")
class RankLlama(Family):
    """Any decoder of `AutoModelForSequenceClassification` with one label."""

    title = "a decoder with a classification head"
    head = "sequence_classification"
    causal = True
    reads = frozenset({"query_template", "document_template"})

    def recognises(self, files: RerankerFiles) -> bool:
        """See the base class."""
        return files.architecture.endswith("ForSequenceClassification") and reads_leftwards(files)

    def form(self, settings: RerankSettings, files: RerankerFiles) -> Form:
        """`query: …` and `document: …`, as published; a `CrossEncoder`'s own prompt comes before them."""
        return TwoTexts(
            settings.query_template or f"{files.prompt}query: {{query}}",
            settings.document_template or "document: {document}",
        )

    def activation(self, files: RerankerFiles) -> str:
        """The published score is the logit."""
        return files.activation or "identity"

    def open(self, model: Any, tokenizer: Any, settings: RerankSettings, files: RerankerFiles) -> Reading:  # noqa: ARG002
        """See the base class."""
        if model.config.num_labels != 1 or not hasattr(model, "score"):
            raise EvaluationError(
                f"{type(model).__name__} with {model.config.num_labels} labels is no RankLLaMA: it should have one "
                "label, read off the last token. Take another template, or name another family."
            )
        classes_in_fp32(model)

        def score(inputs: Features) -> Tensor:
            # Padding goes before a text. transformers would look for the last token by its id, and read another one
            # where texts end in what also pads.
            hidden = model.base_model(**tensors(inputs), use_cache=False).last_hidden_state
            logits: Tensor = model.score(hidden[:, -1])
            return logits[:, 0]

        return Reading(score)
