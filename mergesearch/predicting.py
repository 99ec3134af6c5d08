"""Has a worker predict merges from recorded trials."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from mergesearch.errors import WorkerError
from mergesearch.storage.store import StudyStore
from mergesearch.surrogate.screening import Screening
from mergesearch.workers.pool import EvaluatedMerge, Outcome, ScreeningResult, ScreeningTask, WorkerPool


class Predictor:
    """Answers a strategy's questions about unevaluated merges with the workers of a study.

    Args:
        store: the study's records.
        pool: its workers.
        retries: so many workers may die of a question, and another one is asked.
        settle: takes the outcomes of trials that end meanwhile.
        died: is told which worker died of a question.
    """

    def __init__(
        self,
        store: StudyStore,
        pool: WorkerPool,
        retries: int,
        settle: Callable[[Iterable[Outcome]], None],
        died: Callable[[str], None],
    ) -> None:
        self._store = store
        self._pool = pool
        self._retries = retries
        self._settle = settle
        self._died = died
        self._asked = 0

    def predict(self, screening: Screening) -> ScreeningResult:
        """The answer; names of embeddings that had to be made again are recorded.

        Raises:
            WorkerError: it cannot be worked out.
        """
        merges, outside = self._evaluated(screening)
        reasons: list[str] = []
        while len(reasons) <= self._retries:
            self._asked += 1
            outcome = self._ask(ScreeningTask(-self._asked, screening, merges, outside))
            if isinstance(outcome.result, ScreeningResult):
                for key, name in outcome.result.restored.items():
                    self._store.keep_embeddings(int(key), name)
                return outcome.result
            reasons.append(outcome.failure or "no reason given")
            if not outcome.worker_died:
                break
            self._died(outcome.worker)
        raise WorkerError(
            f"predictions from embeddings failed: {'; '.join(dict.fromkeys(reasons))}\n"
            "Mend the cause and run the same command again; what is recorded stays."
        )

    def _evaluated(self, screening: Screening) -> tuple[dict[str, EvaluatedMerge], dict[str, NDArray[np.float64]]]:
        """The merges to predict from, and the scores of references that are not among them."""
        merges, outside = {}, {}
        for key in dict.fromkeys((*screening.keys, *screening.references)):
            result = self._store.result(int(key))
            assert result is not None
            scores = np.concatenate([c.scores for c in result.collections])
            if key in screening.keys:
                merges[key] = EvaluatedMerge(self._store.recipe(int(key)), result.embeddings, scores)
            else:
                outside[key] = scores
        return merges, outside

    def _ask(self, task: ScreeningTask) -> Outcome:
        """What became of a task; trials that end meanwhile are recorded as ever."""
        while not self._pool.idle:
            self._settle(self._pool.wait())
        self._pool.submit(task)
        found: Outcome | None = None
        while found is None:
            outcomes = self._pool.wait()
            found = next((o for o in outcomes if o.task.number == task.number), None)
            self._settle(o for o in outcomes if o.task.number != task.number)
        return found
