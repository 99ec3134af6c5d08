"""Encoders that read query and document together and end in a classification head.

Nogueira and Cho, "Passage Re-ranking with BERT" (https://arxiv.org/abs/1901.04085), and sentence-transformers'
`CrossEncoder`. With one label its logit is the score. With two (monoBERT: not relevant, relevant) the raw score is the
log-odds of the second, of which log σ is the published log-probability.
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


@family("cross_encoder")
class CrossEncoder(Family):
    """Any encoder of `AutoModelForSequenceClassification`."""

    title = "an encoder with a classification head"
    head = "sequence_classification"
    reads = frozenset({"query_template", "document_template"})

    def recognises(self, files: RerankerFiles) -> bool:
        """See the base class."""
        both_halves = bool(files.config.get("is_encoder_decoder"))
        return files.architecture.endswith("ForSequenceClassification") and not (both_halves or reads_leftwards(files))

    def form(self, settings: RerankSettings, files: RerankerFiles) -> Form:
        """Query and document as they are, behind the prompt that sentence-transformers' files name."""
        return TwoTexts(
            settings.query_template or f"{files.prompt}{{query}}", settings.document_template or "{document}"
        )

    def activation(self, files: RerankerFiles) -> str:
        """What sentence-transformers would apply to one label; log σ for two."""
        return "log_sigmoid" if _n_labels(files.config) == 2 else files.activation or "sigmoid"

    def open(self, model: Any, tokenizer: Any, settings: RerankSettings, files: RerankerFiles) -> Reading:  # noqa: ARG002
        """See the base class."""
        n_labels = model.config.num_labels
        if n_labels > 2:
            raise EvaluationError(
                f"the classification head has {n_labels} labels, so it is not said which of them is the score. Take a "
                "template with one label, or with two (not relevant, relevant)."
            )
        classes_in_fp32(model)

        def score(inputs: Features) -> Tensor:
            logits: Tensor = model(**tensors(inputs)).logits
            return logits[:, 0] if n_labels == 1 else logits[:, 1] - logits[:, 0]

        return Reading(score)


def _n_labels(config: Any) -> int:
    """As transformers reads config.json: labels are counted, and two where none are named."""
    if config.get("id2label"):
        return len(config["id2label"])
    return int(config.get("num_labels", 2))
