"""Re-rankers: the logits of all pairs are kept of a merge, and others' are predicted from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from mergesearch.evaluation.kept import KeptLogits
from mergesearch.surrogate.pairs import CollectionPairs, PairBank

if TYPE_CHECKING:
    from mergesearch.evaluation.reranking import RerankEvaluator
    from mergesearch.merging.resident import ResidentMerger
    from mergesearch.recipe import MergeRecipe


class PairPredictor:
    """See `screening.Predictor`. Predictions are worked out on the CPU.

    Args:
        merger: builds merges.
        pipeline: scores their pairs.
    """

    def __init__(self, merger: ResidentMerger, pipeline: RerankEvaluator) -> None:
        self._merger = merger
        self._pipeline = pipeline

    def read(self, content: bytes) -> KeptLogits | None:
        """What was stored; None where another machine's first stage had found other candidates."""
        kept = KeptLogits.from_bytes(content)
        same = kept.candidates == tuple(c.digest for c in self._pipeline.collections)
        return kept if same else None

    def compact(self, kept: KeptLogits) -> KeptLogits:
        """As they are: 4 bytes a pair."""
        return kept

    def evaluate(self, recipe: MergeRecipe) -> tuple[KeptLogits, int]:
        """Score all pairs."""
        self._pipeline.use_prompts(recipe.prompts)
        self._merger.apply(recipe)
        keeper = self._pipeline.new_keeper()
        self._pipeline.evaluate(keeper=keeper)
        return keeper.result(), self._pipeline.n_tokens

    def aligned(
        self,
        recipes: Mapping[str, MergeRecipe],  # noqa: ARG002 - nothing is scored for it
        found: Mapping[str, KeptLogits],
    ) -> tuple[dict[str, KeptLogits], int]:
        """As they are: the first stage gives all merges the same pairs."""
        return dict(found), 0

    def bank(self, keys: Sequence[str], kept: Sequence[KeptLogits]) -> PairBank:
        """Logits side by side."""
        collections = [
            CollectionPairs(
                logits=torch.stack([merge.logits[i] for merge in kept]),
                rows=prepared.candidates.rows,
                places=prepared.places,
                first=prepared.candidates.scores,
                judgements=prepared.judgements,
                activate=self._activate,
                weight=prepared.source.weight,
            )
            for i, prepared in enumerate(self._pipeline.collections)
        ]
        return PairBank(keys, collections, self._pipeline.fusion)

    def _activate(self, logits: torch.Tensor) -> torch.Tensor:
        activated: torch.Tensor = self._pipeline.reranker.activated(logits).cpu()
        return activated
