"""Screenings on a worker: embeddings of evaluated merges from the artifact store, or encoded again."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from mergesearch.artifacts import Artifacts
from mergesearch.errors import StorageError
from mergesearch.evaluation.kept import Keeper, KeptEmbeddings
from mergesearch.surrogate.bank import CollectionBank, EmbeddingBank
from mergesearch.surrogate.screening import screen
from mergesearch.workers.pool import EvaluatedMerge, ScreeningResult, ScreeningTask

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mergesearch.evaluation.pipeline import RetrievalEvaluator
    from mergesearch.merging.resident import ResidentMerger
    from mergesearch.recipe import MergeRecipe

logger = logging.getLogger(__name__)

MOST_HELD = 64
"""Merges whose embeddings a worker keeps in memory between screenings."""


class Screener:
    """Answers screenings with one worker's model, for what is missing, and on its device.

    Args:
        merger: builds merges.
        retrieval: encodes them.
        artifacts: where embeddings of trials are kept.
    """

    def __init__(self, merger: ResidentMerger, retrieval: RetrievalEvaluator, artifacts: Artifacts) -> None:
        self._merger = merger
        self._retrieval = retrieval
        self._artifacts = artifacts
        self._held: OrderedDict[str, KeptEmbeddings] = OrderedDict()

    def save(self, recipe: MergeRecipe, embeddings: KeptEmbeddings) -> str:
        """Keep a trial's embeddings; returns their name, which is empty where they cannot be kept.

        A trial is not lost for want of room for its embeddings: they can be encoded again. Those that are projected
        because they are large are so from now on, for what is predicted must not depend on who has them in memory.
        """
        embeddings = embeddings.compact()
        self._hold(recipe.fingerprint, embeddings)
        try:
            return self._artifacts.write(embeddings.to_bytes())
        except StorageError as error:
            logger.warning("%s; the embeddings will be encoded again when they are needed", error)
            return ""

    def answer(self, task: ScreeningTask) -> ScreeningResult:
        """Work out a screening, on the documents that any of the merges has kept."""
        restored: dict[str, str] = {}
        tokens = 0
        kept = {}
        for key, merge in task.merges.items():
            found = self._load(merge)
            if found is None:
                found = self._encode(merge.recipe).compact()
                tokens += self._retrieval.n_tokens
                restored[key] = self.save(merge.recipe, found)
            kept[key] = found
        aligned, more = self._aligned(task.merges, kept)
        keys = task.screening.keys
        measured = np.stack([task.merges[key].scores for key in keys])
        report = screen(task.screening, self._bank(keys, [aligned[key] for key in keys]), measured, task.outside)
        return ScreeningResult(report, tokens + more, restored)

    def _load(self, merge: EvaluatedMerge) -> KeptEmbeddings | None:
        fingerprint = merge.recipe.fingerprint
        held = self._held.get(fingerprint)
        if held is not None:
            self._held.move_to_end(fingerprint)
            return held
        try:
            content = self._artifacts.read(merge.embeddings) if merge.embeddings else None
        except StorageError as error:
            logger.warning("%s; the embeddings are encoded again", error)
            content = None
        if content is None:
            return None
        kept = KeptEmbeddings.from_bytes(content)
        self._hold(fingerprint, kept)
        return kept

    def _hold(self, fingerprint: str, kept: KeptEmbeddings) -> None:
        self._held[fingerprint] = kept
        self._held.move_to_end(fingerprint)
        while len(self._held) > MOST_HELD:
            self._held.popitem(last=False)

    def _encode(self, recipe: MergeRecipe) -> KeptEmbeddings:
        self._retrieval.use_prompts(recipe.prompts)
        self._merger.apply(recipe)
        keeper = Keeper(self._retrieval.collections)
        self._retrieval.evaluate(keeper=keeper)
        return keeper.result()

    def _aligned(
        self, merges: Mapping[str, EvaluatedMerge], found: Mapping[str, KeptEmbeddings]
    ) -> tuple[dict[str, KeptEmbeddings], int]:
        """The merges with equal rows: what one has and another lacks is encoded, and counted in tokens."""
        tokens = 0
        aligned = dict(found)
        for i, prepared in enumerate(self._retrieval.collections):
            union = _union([kept.collections[i].rows for kept in found.values()])
            for key, kept in aligned.items():
                mine = kept.collections[i]
                missing = np.setdiff1d(union, mine.rows, assume_unique=True)
                if not len(missing):
                    continue
                recipe = merges[key].recipe
                self._retrieval.use_prompts(recipe.prompts)
                self._merger.apply(recipe)
                filled = mine.filled(missing, self._retrieval.embed(i, missing).cpu())
                tokens += int(prepared.documents.lengths[np.searchsorted(prepared.document_rows, missing)].sum())
                collections = (*kept.collections[:i], filled, *kept.collections[i + 1 :])
                aligned[key] = KeptEmbeddings(collections)
                self._hold(recipe.fingerprint, aligned[key])
        return aligned, tokens

    def _bank(self, keys: Sequence[str], merges: Sequence[KeptEmbeddings]) -> EmbeddingBank:
        banks = []
        device = self._retrieval.encoder.device
        for i, prepared in enumerate(self._retrieval.collections):
            whole = [merge.collections[i].whole() for merge in merges]
            banks.append(
                CollectionBank(
                    queries=torch.stack([queries.to(device) for queries, _ in whole]),
                    documents=torch.stack([documents.to(device) for _, documents in whole]),
                    judgements=prepared.judgements,
                    weight=prepared.source.weight,
                    normalize=self._retrieval.encoder.settings.similarity != "dot",
                    document_rows=merges[0].collections[i].rows,
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
