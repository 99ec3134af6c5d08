"""Screenings on a worker: what evaluated merges left, from the artifact store or worked out again."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from mergesearch.artifacts import Artifacts
from mergesearch.errors import StorageError
from mergesearch.evaluation.reranking import RerankEvaluator
from mergesearch.surrogate.screening import Bank, screen
from mergesearch.workers.pool import EvaluatedMerge, ScreeningResult, ScreeningTask
from mergesearch.workers.predicting_embeddings import EmbeddingPredictor
from mergesearch.workers.predicting_pairs import PairPredictor

if TYPE_CHECKING:
    from mergesearch.evaluation.pipeline import RetrievalEvaluator
    from mergesearch.merging.resident import ResidentMerger
    from mergesearch.recipe import MergeRecipe

logger = logging.getLogger(__name__)

MOST_HELD = 64
"""Merges of which a worker keeps in memory what was kept, between screenings."""


class Kept(Protocol):
    """What is kept of one merge."""

    def to_bytes(self) -> bytes:
        """As a file."""


K = TypeVar("K", bound=Kept)


class Predictor(Protocol[K]):
    """What is kept of merges, and how others are predicted from it."""

    def read(self, content: bytes) -> K | None:
        """What `Kept.to_bytes` wrote; None where it is of other texts or pairs than are scored here."""

    def compact(self, kept: K) -> K:
        """Made smaller where it is large, for good: it is what is stored and what is predicted from."""

    def evaluate(self, recipe: MergeRecipe) -> tuple[K, int]:
        """What is to be kept of a merge, worked out again, and the tokens that it took."""

    def aligned(self, recipes: Mapping[str, MergeRecipe], found: Mapping[str, K]) -> tuple[dict[str, K], int]:
        """The merges with what any of them has kept, and the tokens that the missing took."""

    def bank(self, keys: Sequence[str], kept: Sequence[K]) -> Bank:
        """Of aligned merges."""


class Screener:
    """Answers screenings with one worker's model, for what is missing, and on its device.

    Args:
        merger: builds merges.
        pipeline: evaluates them.
        artifacts: where what trials left is kept.
    """

    def __init__(
        self, merger: ResidentMerger, pipeline: RetrievalEvaluator | RerankEvaluator, artifacts: Artifacts
    ) -> None:
        self._predictor: Predictor[Any] = (
            PairPredictor(merger, pipeline)
            if isinstance(pipeline, RerankEvaluator)
            else EmbeddingPredictor(merger, pipeline)
        )
        self._artifacts = artifacts
        self._held: OrderedDict[str, Kept] = OrderedDict()

    def save(self, recipe: MergeRecipe, kept: Kept) -> str:
        """Keep what a trial left; returns its name, which is empty where it cannot be kept.

        A trial is not lost for want of room: what it left can be worked out again. What is made smaller because it is
        large is so from now on, for what is predicted must not depend on who has it in memory.
        """
        kept = self._predictor.compact(kept)
        self._hold(recipe.fingerprint, kept)
        try:
            return self._artifacts.write(kept.to_bytes())
        except StorageError as error:
            logger.warning("%s; what predictions need of the merge will be worked out again", error)
            return ""

    def answer(self, task: ScreeningTask) -> ScreeningResult:
        """Work out a screening, on all that any of the merges has kept."""
        restored: dict[str, str] = {}
        tokens = 0
        found = {}
        for key, merge in task.merges.items():
            kept = self._load(merge)
            if kept is None:
                kept, spent = self._predictor.evaluate(merge.recipe)
                kept = self._predictor.compact(kept)
                tokens += spent
                restored[key] = self.save(merge.recipe, kept)
            found[key] = kept
        recipes = {key: merge.recipe for key, merge in task.merges.items()}
        aligned, more = self._predictor.aligned(recipes, found)
        for key, kept in aligned.items():
            self._hold(recipes[key].fingerprint, kept)
        keys = task.screening.keys
        measured = np.stack([task.merges[key].scores for key in keys])
        bank = self._predictor.bank(keys, [aligned[key] for key in keys])
        return ScreeningResult(screen(task.screening, bank, measured, task.outside), tokens + more, restored)

    def _load(self, merge: EvaluatedMerge) -> Kept | None:
        fingerprint = merge.recipe.fingerprint
        held = self._held.get(fingerprint)
        if held is not None:
            self._held.move_to_end(fingerprint)
            return held
        try:
            content = self._artifacts.read(merge.embeddings) if merge.embeddings else None
        except StorageError as error:
            logger.warning("%s; what predictions need of the merge is worked out again", error)
            content = None
        if content is None:
            return None
        kept: Kept | None = self._predictor.read(content)
        if kept is not None:
            self._hold(fingerprint, kept)
        return kept

    def _hold(self, fingerprint: str, kept: Kept) -> None:
        self._held[fingerprint] = kept
        self._held.move_to_end(fingerprint)
        while len(self._held) > MOST_HELD:
            self._held.popitem(last=False)
