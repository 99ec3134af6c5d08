"""The interface between the controller and whoever evaluates trials."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from mergesearch.evaluation.racing import Rival
from mergesearch.evaluation.result import TrialResult
from mergesearch.recipe import MergeRecipe


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


@dataclass(frozen=True)
class Outcome:
    """What became of a task: a result, or a failure with its reason.

    Attributes:
        task: what was asked for.
        worker: who worked on it.
        result: the scores; None when the task failed.
        failure: why there is no result.
        worker_died: the failure says nothing about the recipe: another worker may succeed.
        recipe_at_fault: the coefficients build no merge, or one that cannot be scored. Every worker would find
            the same, and other recipes may do well.
    """

    task: Task
    worker: str
    result: TrialResult | None = None
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
    def submit(self, task: Task, worker: str | None = None) -> str:
        """Give a task to an idle worker, the named one or any; returns the worker's name."""

    @abstractmethod
    def wait(self) -> list[Outcome]:
        """Block until a submitted task has an outcome, or until a worker that was rebuilt is idle.

        Called while a task is out or nobody is idle. An empty list means that somebody has become idle.

        Raises:
            WorkerError: the last worker is lost and cannot be replaced.
        """

    @abstractmethod
    def close(self) -> None:
        """Give up unfinished tasks and free all memory; harmless when called again."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
