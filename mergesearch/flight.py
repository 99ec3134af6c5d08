"""The trials of a coordinator that have begun and not ended: which are with a worker, and which wait for one."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from optuna.trial import FrozenTrial, TrialState

from mergesearch.workers.pool import Task


@dataclass
class OpenTrial:
    """A trial that has begun and not ended.

    `raced` says whether it may be stopped; anchors may not. `deaths` says how workers died of it in this process.
    `since` is when its worker got it, and `gpu_seconds` what its earlier workers were held for.
    """

    task: Task
    label: str
    fingerprint: str
    raced: bool
    epoch: int = 0
    since: float = 0.0
    gpu_seconds: float = 0.0
    deaths: list[str] = field(default_factory=list)

    @property
    def number(self) -> int:
        """The trial's number in the study."""
        return self.task.number


class Flight:
    """A coordinator's open trials.

    Args:
        gpus: that a worker holds.

    Attributes:
        waiting: trials for the next idle worker, in their order.
    """

    def __init__(self, gpus: float) -> None:
        self.waiting: deque[OpenTrial] = deque()
        self._gpus = gpus
        self._with_worker: dict[int, OpenTrial] = {}
        self._last: dict[str, int] = {}

    @property
    def flying(self) -> int:
        """How many trials are with a worker."""
        return len(self._with_worker)

    def start(self, trial: OpenTrial, worker: str) -> None:
        """A worker has got a trial."""
        trial.since = time.monotonic()
        self._last[worker] = trial.number
        self._with_worker[trial.number] = trial

    def land(self, number: int) -> OpenTrial:
        """A trial is with its worker no more."""
        trial = self._with_worker.pop(number)
        trial.gpu_seconds += self._held(trial)
        return trial

    def last(self, worker: str) -> int | None:
        """The trial that a worker was given last."""
        return self._last.get(worker)

    def forget(self, worker: str) -> None:
        """A worker is gone; its successor starts with nothing."""
        self._last.pop(worker, None)

    def gpu_seconds(self) -> float:
        """What the open trials have held GPUs for, in this process."""
        waiting = sum(t.gpu_seconds for t in self.waiting)
        return waiting + sum(t.gpu_seconds + self._held(t) for t in self._with_worker.values())

    def is_held(self, fingerprint: str, history: Sequence[FrozenTrial], *, before: float = math.inf) -> bool:
        """Whether a worker has the recipe, here or, for a trial of a lower number than `before`, elsewhere.

        Of two coordinators that have taken over trials of an equal recipe, only one waits for the other.
        """
        if any(trial.fingerprint == fingerprint for trial in self._with_worker.values()):
            return True
        ours = {trial.number for trial in self.waiting}
        return any(
            t.state == TrialState.RUNNING
            and t.number < before
            and t.number not in ours
            and t.user_attrs.get("recipe") == fingerprint
            for t in history
        )

    def _held(self, trial: OpenTrial) -> float:
        return (time.monotonic() - trial.since) * self._gpus
