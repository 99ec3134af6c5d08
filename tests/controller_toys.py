"""A study to drive a controller with, and workers that do what a script says."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mergesearch.controller import Controller
from mergesearch.evaluation.result import CollectionScores, TrialResult
from mergesearch.listener import Listener, Summary
from mergesearch.resolving import resolve
from mergesearch.session import open_store
from mergesearch.storage.coordinators import Wanted
from mergesearch.storage.store import StudyStore
from mergesearch.study import Study
from mergesearch.workers.pool import Outcome, ScreeningResult, ScreeningTask, Task, WorkerPool
from tests.search_toys import toy_screener

QUERIES = ("q1", "q2", "q3")
Script = Callable[[Task, int], Outcome]


def scored(task: Task, _attempt: int) -> Outcome:
    """Scores that depend on the recipe alone."""
    seed = int(hashlib.sha256(task.recipe.fingerprint.encode()).hexdigest()[:8], 16)
    scores = CollectionScores("made", "ndcg@10", QUERIES, np.random.default_rng(seed).random(3))
    return Outcome(task, "scripted", TrialResult((scores,), {"encode": 0.1}, 10, worker="scripted"))


def failing(task: Task, _attempt: int) -> Outcome:
    """Not the recipe's fault."""
    return Outcome(task, "scripted", failure="the disk is gone")


def dying(task: Task, attempt: int) -> Outcome:
    """The worker is gone."""
    return Outcome(task, "scripted", failure=f"killed by signal 9, time {attempt}", worker_died=True)


class ScriptedPool(WorkerPool):
    """Workers that answer in a random order with what `script` says; one that dies is away for a while.

    It checks what the controller owes a pool: no more tasks than `free`, and no merge held twice.
    """

    def __init__(self, workers: int = 1, script: Script = scored, *, seed: int = 0) -> None:
        self.workers, self.script = workers, script
        self.tasks: list[Task] = []
        self.attempts: Counter[int] = Counter()
        self.evaluated: list[str] = []
        self.given: dict[str, list[Task]] = {f"scripted-{i}": [] for i in range(workers)}  # in their order
        self._busy: dict[int, str] = {}
        self._away: list[str] = []
        self._rng = np.random.default_rng(seed)

    @property
    def idle(self) -> tuple[str, ...]:
        return tuple(name for name in self.given if name not in (*self._busy.values(), *self._away))

    def submit(self, task: Task | ScreeningTask, worker: str | None = None) -> str:
        assert isinstance(task, Task)
        name = worker or self.idle[0]
        assert name in self.idle
        assert task.recipe.fingerprint not in {t.recipe.fingerprint for t in self.tasks}
        self.tasks.append(task)
        self.given[name].append(task)
        self._busy[task.number] = name
        self.attempts[task.number] += 1
        return name

    def wait(self, timeout: float | None = None) -> list[Outcome]:
        assert self.tasks or self._away, "nothing can ever happen"
        if self._away and (not self.tasks or self._rng.random() < 0.5):
            self._away.pop()
            return []
        task = self.tasks.pop(int(self._rng.integers(len(self.tasks))))
        name = self._busy.pop(task.number)
        outcome = replace(self.script(task, self.attempts[task.number]), worker=name)
        if outcome.worker_died:
            self._away.append(name)
        elif outcome.result is not None:
            self.evaluated.append(task.recipe.fingerprint)
        return [outcome]

    def close(self) -> None:
        self.tasks.clear()
        self._busy.clear()


class Diary(Listener):
    """A listener that keeps what it hears."""

    def __init__(self) -> None:
        self.heard: list[tuple[Any, ...]] = []

    def started(self, number: int, label: str) -> None:
        self.heard.append(("started", number))

    def finished(self, number: int, label: str, result: TrialResult, *, new_best: bool) -> None:
        self.heard.append(("finished", number, result.value, new_best))

    def pruned(self, number: int, label: str, result: TrialResult) -> None:
        self.heard.append(("pruned", number, result.estimate))

    def reused(self, number: int, label: str, value: float, original: int) -> None:
        self.heard.append(("reused", number, value, original))

    def failed(self, number: int, label: str, reason: str, *, retried: bool) -> None:
        self.heard.append(("failed", number, reason, retried))


@dataclass
class Bench:
    """A study, a database of its own, and calls that drive it."""

    study: Study
    url: str

    def with_search(self, **search: Any) -> Bench:
        content = self.study.parsed.content
        changed = content.model_copy(update={"search": type(content.search)(**search)})
        return Bench(resolve(replace(self.study.parsed, content=changed)), self.url)

    def drive(self, pool: WorkerPool, listener: Diary | None = None) -> Summary:
        with open_store(self.study, self.url) as store:
            return Controller(self.study, store, pool, listener or Diary()).run()

    def table(self) -> list[tuple[Any, ...]]:
        with self.store() as store:
            return [(t.number, t.state.name, t.params, t.value) for t in store.trials()]

    def store(self) -> StudyStore:
        """The database as a reader sees it."""
        return StudyStore.open(self.url, self.study.name, None, exclusive=False)

    def want(self, wanted: Wanted) -> None:
        """Say to the study's coordinators what is wanted of them."""
        with self.store() as store:
            store.want(wanted)


def check_ended(bench: Bench, pool: ScriptedPool) -> None:
    """What holds after every run: all trials have one end, no merge was scored twice, nothing is left."""
    with bench.store() as store:
        trials = store.trials()
        assert store.unfinished() == []
    assert [t.number for t in trials] == list(range(len(trials)))
    assert all(t.state.is_finished() for t in trials)
    assert len(set(pool.evaluated)) == len(pool.evaluated)
    assert pool.tasks == []


class PredictingPool(ScriptedPool):
    """Workers that predict as well, from made-up embeddings, when all trials in flight have ended.

    If `deadly`, every other prediction ends its worker.
    """

    def __init__(self, workers: int = 1, script: Script = scored, *, deadly: bool = False) -> None:
        super().__init__(workers, script)
        self.deadly = deadly
        self.asked: list[ScreeningTask] = []
        self._question: ScreeningTask | None = None

    def submit(self, task: Task | ScreeningTask, worker: str | None = None) -> str:
        if isinstance(task, Task):
            return super().submit(task, worker)
        name = worker or self.idle[0]
        assert name in self.idle
        assert self._question is None
        self._question, self._busy[task.number] = task, name
        self.asked.append(task)
        return name

    def wait(self, timeout: float | None = None) -> list[Outcome]:
        task = self._question
        if task is None or self.tasks:
            return super().wait()
        name, self._question = self._busy.pop(task.number), None
        if self.deadly and len(self.asked) % 2:
            self._away.append(name)
            return [Outcome(task, name, failure="killed by signal 9", worker_died=True)]
        return [Outcome(task, name, ScreeningResult(toy_screener(task.screening), 0, {}))]
