"""Retrievers: embeddings are kept of a merge, and others' are predicted from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from mergesearch.evaluation.kept import Keeper, KeptEmbeddings
from mergesearch.surrogate.bank import CollectionBank, EmbeddingBank

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mergesearch.evaluation.pipeline import RetrievalEvaluator
    from mergesearch.merging.resident import ResidentMerger
    from mergesearch.recipe import MergeRecipe


class EmbeddingPredictor:
    """See `screening.Predictor`. Predictions are worked out on the encoder's device.

    Args:
        merger: builds merges.
        retrieval: encodes them.
    """

    def __init__(self, merger: ResidentMerger, retrieval: RetrievalEvaluator) -> None:
        self._merger = merger
        self._retrieval = retrieval

    def read(self, content: bytes) -> KeptEmbeddings:
        """What was stored."""
        return KeptEmbeddings.from_bytes(content)

    def compact(self, kept: KeptEmbeddings) -> KeptEmbeddings:
        """Projected where they are large."""
        return kept.compact()

    def evaluate(self, recipe: MergeRecipe) -> tuple[KeptEmbeddings, int]:
        """Encode everything."""
        self._retrieval.use_prompts(recipe.prompts)
        self._merger.apply(recipe)
        keeper = Keeper(self._retrieval.collections)
        self._retrieval.evaluate(keeper=keeper)
        return keeper.result(), self._retrieval.n_tokens

    def aligned(
        self, recipes: Mapping[str, MergeRecipe], found: Mapping[str, KeptEmbeddings]
    ) -> tuple[dict[str, KeptEmbeddings], int]:
        """The merges with equal rows: documents that one has kept and another has not are encoded."""
        tokens = 0
        aligned = dict(found)
        for i, prepared in enumerate(self._retrieval.collections):
            union = _union([kept.collections[i].rows for kept in found.values()])
            for key, kept in aligned.items():
                mine = kept.collections[i]
                missing = np.setdiff1d(union, mine.rows, assume_unique=True)
                if not len(missing):
                    continue
                self._retrieval.use_prompts(recipes[key].prompts)
                self._merger.apply(recipes[key])
                filled = mine.filled(missing, self._retrieval.embed(i, missing).cpu())
                tokens += int(prepared.documents.lengths[np.searchsorted(prepared.document_rows, missing)].sum())
                collections = (*kept.collections[:i], filled, *kept.collections[i + 1 :])
                aligned[key] = KeptEmbeddings(collections)
        return aligned, tokens

    def bank(self, keys: Sequence[str], kept: Sequence[KeptEmbeddings]) -> EmbeddingBank:
        """Embeddings side by side."""
        banks = []
        device = self._retrieval.encoder.device
        for i, prepared in enumerate(self._retrieval.collections):
            whole = [merge.collections[i].whole() for merge in kept]
            banks.append(
                CollectionBank(
                    queries=torch.stack([queries.to(device) for queries, _ in whole]),
                    documents=torch.stack([documents.to(device) for _, documents in whole]),
                    judgements=prepared.judgements,
                    weight=prepared.source.weight,
                    normalize=self._retrieval.encoder.settings.similarity != "dot",
                    document_rows=kept[0].collections[i].rows,
                    exclude=prepared.exclude,
                    candidates=prepared.candidates,
                )
            )
        return EmbeddingBank(keys, banks)


def _union(rows: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    union = rows[0]
    for other in rows[1:]:
        if len(other) != len(union) or (other != union).any():
            union = np.union1d(union, other)
    return union
