"""A pool that answers from merges which earlier studies of the protocol have scored on the same queries.

Equal is equal beyond one study: recipes of methods without chance differ between seeds in the seed alone, and what
was scored with the same sources on the same dev sample, in batches of the same plan, need not be encoded again.
"""

from __future__ import annotations

from dataclasses import replace

from mergesearch.evaluation.result import TrialResult
from mergesearch.recipe import MergeRecipe
from mergesearch.session import Workers
from mergesearch.storage.reader import StudyReader
from mergesearch.study import Study
from mergesearch.workers.evaluator_spec import BatchProgress, EvaluatorSpec
from mergesearch.workers.pool import Outcome, ScreeningTask, Task, WorkerPool
from mergesearch.workers.residency import Residency

NOTE = "scored by an earlier study of this protocol"


class Memory:
    """Results by recipe, whatever its seed. For merges of one dev sample, by methods that draw nothing."""

    def __init__(self) -> None:
        self._results: dict[str, TrialResult] = {}

    def __len__(self) -> int:
        return len(self._results)

    def learn(self, store: StudyReader) -> None:
        """Everything that a study has scored."""
        for recipe, result in store.scored().values():
            self.add(recipe, result)

    def add(self, recipe: MergeRecipe, result: TrialResult) -> None:
        """One merge; the first result of equal ones stays, for it may have embeddings."""
        self._results.setdefault(_key(recipe), result)

    def find(self, recipe: MergeRecipe) -> TrialResult | None:
        """The result, as one that cost nothing; None for a merge that nobody has scored."""
        found = self._results.get(_key(recipe))
        return found and replace(found, seconds={}, tokens=0, layer_tokens=0, notes=(NOTE,))


def _key(recipe: MergeRecipe) -> str:
    return replace(recipe, seed=0).fingerprint


class RememberingWorkers(Workers):
    """Workers that are asked only for what `memory` does not hold."""

    def __init__(self, memory: Memory) -> None:
        super().__init__()
        self._memory = memory

    def serve(self, study: Study, progress: BatchProgress | None = None, residency: Residency = "auto") -> WorkerPool:
        """See `Workers.serve`."""
        return _RememberingPool(super().serve(study, progress, residency), self._memory)


class _RememberingPool(WorkerPool):
    """Remembered tasks come back from the next `wait`; all others go to the pool behind."""

    def __init__(self, behind: WorkerPool, memory: Memory) -> None:
        self._behind = behind
        self._memory = memory
        self._known: list[Outcome] = []

    @property
    def idle(self) -> tuple[str, ...]:
        return self._behind.idle if not self._known else ()

    def submit(self, task: Task | ScreeningTask, worker: str | None = None) -> str:
        result = self._memory.find(task.recipe) if isinstance(task, Task) else None
        if result is None:
            return self._behind.submit(task, worker)
        name = worker or self._behind.idle[0]
        self._known.append(Outcome(task, name, result))
        return name

    def wait(self, timeout: float | None = None) -> list[Outcome]:
        if self._known:
            outcomes, self._known = self._known, []
            return outcomes
        outcomes = self._behind.wait(timeout)
        for outcome in outcomes:
            if isinstance(outcome.task, Task) and isinstance(outcome.result, TrialResult):
                self._memory.add(outcome.task.recipe, outcome.result)
        return outcomes

    def rest(self, seconds: float) -> None:
        self._behind.rest(seconds)

    def adapt(self, spec: EvaluatorSpec, progress: BatchProgress | None = None) -> None:
        self._known = []
        self._behind.adapt(spec, progress)

    def close(self) -> None:
        self._known = []
        self._behind.close()
