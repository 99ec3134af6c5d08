"""A worker that remembers, on disk, what it has evaluated."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from mergesearch.evaluation.pipeline import PreparedCollection
from mergesearch.evaluation.result import CollectionScores, TrialResult
from mergesearch.recipe import MergeRecipe
from mergesearch.study import Study
from mergesearch.workers.evaluator import TrialEvaluator, attempt
from mergesearch.workers.pool import Outcome, ScreeningTask, Task, WorkerPool


class Evaluated(WorkerPool):
    """One worker in this process that remembers, on disk, what it has evaluated.

    Attributes:
        known: results by the fingerprint of their recipe.
        seconds: spent on evaluations and screenings.
    """

    def __init__(self, study: Study, cache: Path) -> None:
        spec = replace(study.evaluator_spec(), artifacts=str(cache / "embeddings"))
        self._evaluator = TrialEvaluator(spec)
        identity = json.dumps(study.score_relevant()["evaluation"], sort_keys=True, default=str)
        self._file = cache / f"{study.name}.jsonl"
        self._identity = identity
        self.known: dict[str, TrialResult] = dict(self._read())
        self._task: Task | ScreeningTask | None = None
        self.seconds = 0.0

    @property
    def idle(self) -> tuple[str, ...]:
        return () if self._task else ("local",)

    @property
    def prepared(self) -> tuple[PreparedCollection, ...]:
        """The collections that merges are scored on."""
        return tuple(self._evaluator.pipeline.collections)

    def submit(self, task: Task | ScreeningTask, worker: str | None = None) -> str:
        self._task = task
        return worker or "local"

    def wait(self, timeout: float | None = None) -> list[Outcome]:
        task, self._task = self._task, None
        assert task is not None
        if isinstance(task, Task) and task.recipe.fingerprint in self.known:
            return [Outcome(task, "local", self.known[task.recipe.fingerprint])]
        started = time.perf_counter()
        outcome = attempt(self._evaluator, task, "local")
        self.seconds += time.perf_counter() - started
        if isinstance(task, Task) and isinstance(outcome.result, TrialResult):
            self._keep(task.recipe, outcome.result)
        return [outcome]

    def close(self) -> None:
        self._task = None

    def _read(self) -> Iterator[tuple[str, TrialResult]]:
        if not self._file.is_file():
            return
        for line in self._file.read_text(encoding="utf-8").splitlines():
            known = json.loads(line)
            if known["identity"] != self._identity:
                continue
            scores = tuple(
                CollectionScores(c["name"], c["metric"], tuple(c["ids"]), np.array(c["scores"]), c["weight"])
                for c in known["collections"]
            )
            yield known["recipe"], TrialResult(scores, {}, known["tokens"], embeddings=known["embeddings"])

    def _keep(self, recipe: MergeRecipe, result: TrialResult) -> None:
        self.known[recipe.fingerprint] = result
        collections = [
            {
                "name": c.collection,
                "metric": c.metric,
                "ids": c.query_ids,
                "scores": c.scores.tolist(),
                "weight": c.weight,
            }
            for c in result.collections
        ]
        entry = {
            "identity": self._identity,
            "recipe": recipe.fingerprint,
            "tokens": result.tokens,
            "embeddings": result.embeddings,
            "collections": collections,
        }
        with self._file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(entry) + "\n")
