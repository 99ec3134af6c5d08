"""One worker in this process: the simplest pool, and the one that shows progress within a trial."""

from __future__ import annotations

import logging

from mergesearch.workers.evaluator import TrialEvaluator, attempt
from mergesearch.workers.evaluator_spec import BatchProgress, EvaluatorSpec
from mergesearch.workers.pool import Outcome, ScreeningTask, Task, WorkerPool

logger = logging.getLogger(__name__)


class LocalPool(WorkerPool):
    """Evaluates in the calling thread, during `wait`."""

    def __init__(self, spec: EvaluatorSpec, progress: BatchProgress | None = None) -> None:
        self._evaluator: TrialEvaluator | None = TrialEvaluator(spec)
        self._progress = progress
        self._task: Task | ScreeningTask | None = None

    @property
    def idle(self) -> tuple[str, ...]:
        """The one worker while no task waits."""
        return () if self._task else ("local",)

    def submit(self, task: Task | ScreeningTask, worker: str | None = None) -> str:
        """Keep the task for the next `wait`."""
        assert worker in (None, "local")
        assert self._task is None
        self._task = task
        return "local"

    def wait(self, timeout: float | None = None) -> list[Outcome]:  # noqa: ARG002 - the evaluation takes its time
        """Evaluate the submitted task."""
        assert self._task is not None
        assert self._evaluator is not None
        task, self._task = self._task, None
        return [attempt(self._evaluator, task, "local", self._show)]

    def adapt(self, spec: EvaluatorSpec, progress: BatchProgress | None = None) -> None:
        """Keep the evaluator, for another study."""
        assert self._evaluator is not None
        self._task, self._progress = None, progress
        self._evaluator.adapt(spec)

    def close(self) -> None:
        """Drop the evaluator and with it the weights."""
        self._evaluator = self._task = None

    def _show(self, done: int, total: int) -> None:
        """Report progress; a display that fails does not fail the trial, it is not asked again."""
        if self._progress is None:
            return
        try:
            self._progress(done, total)
        except Exception:
            logger.exception("progress within trials cannot be shown any more")
            self._progress = None
