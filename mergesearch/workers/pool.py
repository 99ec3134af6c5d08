"""The interface between the controller and whoever evaluates trials."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from mergesearch.evaluation.racing import Rival
from mergesearch.evaluation.result import TrialResult
from mergesearch.recipe import MergeRecipe
from mergesearch.surrogate.report import ScreeningReport
from mergesearch.surrogate.screening import Screening

if TYPE_CHECKING:
    from mergesearch.workers.evaluator_spec import BatchProgress, EvaluatorSpec


@dataclass(frozen=True)
class Task:
    """One logical trial to evaluate.

    Attributes:
        number: the trial's number in the study.
        recipe: what is evaluated.
        rivals: complete trials that this one is raced against, best first; none for one that is scored whole.
    """

    number: int
    recipe: MergeRecipe
    rivals: tuple[Rival, ...] = ()

    def __str__(self) -> str:
        return f"trial {self.number}"


@dataclass(frozen=True)
class EvaluatedMerge:
    """A merge that others are predicted from.

    Attributes:
        recipe: how it is built.
        embeddings: their name in the artifact store; empty where none were kept.
        scores: per query, float64 [Q], the queries of all collections side by side.
    """

    recipe: MergeRecipe
    embeddings: str
    scores: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ScreeningTask:
    """Predict many merges from the embeddings of a few; what the artifact store lacks is encoded again.

    Attributes:
        number: below zero, so that no trial's task has it.
        screening: what is asked.
        merges: by the screening's keys.
        outside: scores per query, float64 [Q], of references that are not among these.
    """

    number: int
    screening: Screening
    merges: Mapping[str, EvaluatedMerge]
    outside: Mapping[str, NDArray[np.float64]]

    def __str__(self) -> str:
        return f"a prediction from {len(self.merges)} merges"


@dataclass(frozen=True)
class ScreeningResult:
    """A screening's report, and what it cost.

    Attributes:
        report: the answer.
        tokens: encoded for embeddings that were missing.
        restored: by key, names of embeddings that had to be made again.
    """

    report: ScreeningReport
    tokens: int
    restored: Mapping[str, str]


@dataclass(frozen=True)
class Outcome:
    """What became of a task: a result, or a failure with its reason.

    Attributes:
        task: what was asked for.
        worker: who worked on it.
        result: the scores of a trial, or a screening's answer; None when the task failed.
        failure: why there is no result.
        worker_died: the failure says nothing about the recipe: another worker may succeed.
        recipe_at_fault: the coefficients build no merge, or one that cannot be scored. Every worker would find
            the same, and other recipes may do well.
    """

    task: Task | ScreeningTask
    worker: str
    result: TrialResult | ScreeningResult | None = None
    failure: str | None = None
    worker_died: bool = False
    recipe_at_fault: bool = False


class WorkerPool(ABC):
    """Workers that evaluate tasks. Their number may change while the pool is open: workers die and are rebuilt.

    A caller may submit a task whenever a worker is `idle`, and calls `wait` when it has nothing to submit. Every
    submitted task comes back from `wait` exactly once, as a result or as a failure, unless the pool is closed
    first or `wait` raises. A pool is used from one thread; it never touches the study database.
    """

    @property
    @abstractmethod
    def idle(self) -> tuple[str, ...]:
        """Names of the workers that a task can be given to now."""

    @property
    def free(self) -> int:
        """How many further tasks can be submitted now."""
        return len(self.idle)

    @abstractmethod
    def submit(self, task: Task | ScreeningTask, worker: str | None = None) -> str:
        """Give a task to an idle worker, the named one or any; returns the worker's name."""

    @abstractmethod
    def wait(self, timeout: float | None = None) -> list[Outcome]:
        """Block until a submitted task has an outcome, until a worker that was rebuilt is idle, or for a while.

        Called while a task is out or nobody is idle. An empty list means that somebody has become idle, or that
        `timeout` seconds are over; a pool that evaluates in the calling thread may take longer.

        Raises:
            WorkerError: the last worker is lost and cannot be replaced.
        """

    def rest(self, seconds: float) -> None:
        """Let time pass while no task is out. A pool that loses workers notices it meanwhile.

        Raises:
            WorkerError: the last worker is lost and cannot be replaced.
        """
        time.sleep(seconds)

    def adapt(self, spec: EvaluatorSpec, progress: BatchProgress | None = None) -> None:
        """Serve another study of equal `spec.resident`; sources and model stay where they are.

        Tasks that have no outcome are given up.

        Raises:
            CollectionError, WorkerError: the study's collections cannot be read.
        """
        raise NotImplementedError(f"{type(self).__name__} serves one study")

    @abstractmethod
    def close(self) -> None:
        """Give up unfinished tasks and free all memory; harmless when called again."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
