"""Rankings of the dev queries before (the template alone) and after (the chosen merge).

Trials keep scores and no rankings, so both models are encoded once more; what comes out is kept in the cache by the
content of what it depends on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from mergesearch.evaluation.result import CollectionScores
from mergesearch.recipe import MergeRecipe
from mergesearch.results.recorded import check_unchanged
from mergesearch.results.view import StudyView
from mergesearch.sources.cached import cached
from mergesearch.storage.store import StudyStore
from mergesearch.study import Study
from mergesearch.workers.evaluator import TrialEvaluator
from mergesearch.workers.evaluator_spec import BatchProgress

KIND = "rankings"
"""The folder in the cache."""
TOP = 10
"""Documents kept per query."""


@dataclass(frozen=True)
class Examples:
    """The dev split under two models: scores, and the top documents in `CollectionScores.run`."""

    before: tuple[CollectionScores, ...]
    after: tuple[CollectionScores, ...]


def encode_examples(view: StudyView, store: StudyStore, progress: BatchProgress | None = None) -> Examples | None:
    """Encode the dev split with the template alone and with the chosen merge, as far as it is not in the cache.

    Args:
        view: the study.
        store: its records.
        progress: called with (batches encoded, batches of all models).

    Returns:
        None where nothing is chosen yet.

    Raises:
        ResumeError: sources or settings are not those of the recorded study.
        SourceError: a source cannot be read.
        MemoryFullError: the models do not fit.
    """
    study, chosen = view.study, view.chosen
    if chosen is None or chosen.recipe is None:
        return None
    check_unchanged(study, store)
    recipes = {"before": study.source_alone(study.parsed.content.merge.template), "after": chosen.recipe}
    worker = _Worker(study, progress, len(recipes))
    found = {name: _ranked(study, recipe, worker) for name, recipe in recipes.items()}
    return Examples(**found)


class _Worker:
    """Loads the sources when something has to be encoded, and not before."""

    def __init__(self, study: Study, progress: BatchProgress | None, models: int) -> None:
        self._study, self._progress, self._models = study, progress, models
        self._evaluator: TrialEvaluator | None = None
        self._done = 0

    def rank(self, recipe: MergeRecipe) -> tuple[CollectionScores, ...]:
        if self._evaluator is None:
            self._evaluator = TrialEvaluator(replace(self._study.unmerged_spec(), racing=None))
            self._evaluator.pipeline.depth = max(self._evaluator.pipeline.depth, TOP)
        batches, before = self._evaluator.pipeline.n_batches, self._done

        def on_batch(done: int, _: int) -> None:
            if self._progress is not None:
                self._progress(before + done, self._models * batches)

        result = self._evaluator.evaluate(recipe, on_batch, keep_runs=True)
        self._done += batches
        return result.collections


def _ranked(study: Study, recipe: MergeRecipe, worker: _Worker) -> tuple[CollectionScores, ...]:
    settings = study.score_relevant()
    key = {
        "recipe": recipe.fingerprint,
        "evaluation": settings["evaluation"],
        "device": study.evaluator_spec().evaluation.device,
        "top": TOP,
    }

    def build(folder: Path) -> None:
        folder.mkdir()
        plain = [_plain(c) for c in worker.rank(recipe)]
        (folder / "rankings.json").write_text(json.dumps(plain), encoding="utf-8")

    read = json.loads((cached(KIND, json.loads(json.dumps(key)), build) / "rankings.json").read_text(encoding="utf-8"))
    return tuple(
        CollectionScores(**{**c, "query_ids": tuple(c["query_ids"]), "scores": np.array(c["scores"])}) for c in read
    )


def _plain(scores: CollectionScores) -> Mapping[str, object]:
    run = {query: [list(hit) for hit in hits[:TOP]] for query, hits in (scores.run or {}).items()}
    return {**asdict(replace(scores, run=None, looks=None)), "scores": scores.scores.tolist(), "run": run}
