"""Decoders that score a document by how likely it makes the query.

Zhang et al., "RankingGPT" (https://arxiv.org/abs/2311.16720): the mean log-probability of the query's tokens after
`Document: {document} Query:`. As in the published code no special tokens are added, and the query is tokenised
by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from mergesearch.errors import EvaluationError
from mergesearch.evaluation.heads import vocabulary_in_fp32
from mergesearch.evaluation.joining import Form, OneText
from mergesearch.evaluation.rerankers import Family, Reading, family, kept_logits, tensors

if TYPE_CHECKING:
    from torch import Tensor

    from mergesearch.evaluation.inputs import Features
    from mergesearch.evaluation.rerank_settings import RerankSettings
    from mergesearch.evaluation.reranker_files import RerankerFiles


@family("query_likelihood")
class QueryLikelihood(Family):
    """Any model of `AutoModelForCausalLM`."""

    title = "a decoder that scores by the likelihood of the query"
    head = "causal_lm"
    causal = True
    max_query_length = 128
    max_document_length = 256

    def recognises(self, files: RerankerFiles) -> bool:  # noqa: ARG002
        """Never: a language model's files do not say that it scores by likelihood."""
        return False

    def form(self, settings: RerankSettings, files: RerankerFiles) -> Form:
        """The published text; a template must end in `{query}`.

        Raises:
            EvaluationError: it does not.
        """
        self.check_template(settings.template or "{query}")
        template = settings.template or f"{files.prompt}Document: {{document}} Query:{{query}}"
        return OneText(template, starts=False, apart=True)

    def check_template(self, template: str) -> None:
        """What is scored stands last."""
        if not template.endswith("{query}"):
            raise EvaluationError("the likelihood of a query is that of what comes last: end `template` in {query}.")

    def activation(self, files: RerankerFiles) -> str:  # noqa: ARG002
        """The published score is the mean itself."""
        return "identity"

    def open(self, model: Any, tokenizer: Any, settings: RerankSettings, files: RerankerFiles) -> Reading:  # noqa: ARG002
        """See the base class."""
        vocabulary_in_fp32(model)

        def score(inputs: Features) -> Tensor:
            counts = inputs["seconds"].tolist()
            given = tensors(inputs)
            # A token is predicted at the position before it.
            logits = model(**given, **kept_logits(model, max(counts) + 1), use_cache=False).logits
            # Pair by pair, so that the vocabulary is in fp32 for one query at a time only.
            means = [
                _log_probabilities(row[-n - 1 : -1], ids[-n:]).mean()
                for row, ids, n in zip(logits, given["input_ids"], counts, strict=True)
            ]
            return torch.stack(means)

        return Reading(score)


def _log_probabilities(logits: Tensor, ids: Tensor) -> Tensor:
    """Of every token, fp32 [T], from logits [T, V]."""
    return torch.log_softmax(logits, dim=-1).gather(1, ids[:, None])[:, 0]
