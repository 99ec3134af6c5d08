"""A study as it goes on: read again and again from its database, with few statements each time."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from mergesearch.evaluation.result import GPU_SECONDS_ATTR, IMPORTED_ATTR
from mergesearch.results.choose import best_optimism
from mergesearch.results.pace import Ended, Pace, pace
from mergesearch.search.ledger import violation
from mergesearch.search.strategy import SOURCE_ATTR
from mergesearch.storage.coordinators import CoordinatorState
from mergesearch.storage.reader import Lease, StudyReader
from mergesearch.storage.record import PLANNED, StudyRecord
from mergesearch.study_recipes import UNIFORM_AVERAGE

LOOK_BACK = 64
"""Trials, counted from the newest, whose workers are known as such while they have no trial."""
LUCK_SHARE = 0.02
"""Of the time, at most, goes into resampling for the luck in the best score."""


@dataclass(frozen=True)
class Mark:
    """A trial with its dev score, a selection score; None while it has none."""

    number: int
    label: str
    value: float | None


@dataclass(frozen=True)
class WorkerState:
    """A worker, and the trial that it has: number and label; None where it has none now.

    `coordinator` is the id of the process that it works for.
    """

    name: str
    coordinator: int
    trial: int | None
    label: str


@dataclass(frozen=True)
class Snapshot:
    """How far a study is at one moment.

    Attributes:
        study: its name.
        file: what the study file was called when the study was run last.
        counts: trials by state: `complete`, `running`, `orphaned` (whoever drove it is gone), `pruned`, `fail`.
        done: trials that ended and count against `planned`.
        planned: trials that the study will have, at most; None where nobody knows.
        seconds_left: until it ends, about; None where that cannot be said.
        best: the highest dev score that guards keep.
        luck: how much of it is luck on average; None while that is not known of this best.
        marks: each source alone and the uniform average, as far as they were begun.
        tokens: encoded in all.
        tokens_per_second: encoded lately, by all workers; None while nobody drives the study and no trial has ended.
        gpu_hours: what all trials that ended have held GPUs for; `gpu_hours_granted` is None for any number.
        workers: those that have a trial, and those that had one lately, by name.
        coordinators: the processes that drive the study now.
        wanted: what they are told to do: `run`, `pause`, `drain` or `stop`.
        on_queries: what dev scores are on, where that is not judged queries alone; see `evaluation.labels`.
    """

    study: str
    file: str
    counts: Mapping[str, int]
    done: int
    planned: int | None
    seconds_left: float | None
    best: Mark | None
    luck: float | None
    marks: tuple[Mark, ...]
    tokens: int
    tokens_per_second: float | None
    gpu_hours: float
    gpu_hours_granted: float | None
    workers: tuple[WorkerState, ...]
    coordinators: tuple[CoordinatorState, ...]
    wanted: str
    on_queries: str = ""

    @property
    def over(self) -> bool:
        """Nobody drives the study, and nothing runs."""
        return not self.coordinators and not self.counts.get("running")

    @property
    def news(self) -> tuple[object, ...]:
        """Equal for two moments between which nothing happened that is worth a line."""
        drivers = tuple(c.id for c in self.coordinators)
        return dict(self.counts), self.best, self.marks, drivers, self.wanted


@dataclass(frozen=True)
class _Trial:
    """What is wanted of a trial.

    `mark` says that others are measured by it, `again` that its score was known, `kept` that guards keep it.
    """

    number: int
    state: str
    label: str
    value: float | None
    mark: bool
    again: bool
    kept: bool
    tokens: int
    gpu_seconds: float
    start: datetime | None
    end: datetime | None

    @property
    def finished(self) -> bool:
        return self.state != "running"


class Watch:
    """Reads one study again and again.

    What a reading asks the database for does not grow with the study, except where trials have ended since the last
    one: then the luck in the best score is worked out anew, and that no more often than `LUCK_SHARE` allows.

    Args:
        store: the study, opened by a reader or by its coordinator.
    """

    def __init__(self, store: StudyReader) -> None:
        self._store = store
        self._known: dict[int, _Trial] = {}  # by number; those that have ended never change
        self._last_run: StudyRecord | None = None
        self._drivers: set[int] = set()  # when `_last_run` was read
        self._luck: float | None = None
        self._luck_of = (-1, 0)  # the best trial and the trials that had ended when `_luck` was worked out
        self._luck_next = -math.inf

    def read(self) -> Snapshot:
        """The study as it is now.

        Raises:
            StorageError: the database cannot be reached, or the study was deleted.
        """
        trials = self._trials()
        leases = self._store.leases(trials[-1].number + 1 - LOOK_BACK if trials else 0)
        coordinators = tuple(c for c in self._store.coordinators() if c.alive)  # after the leases, as in `read_status`
        drivers = {c.id for c in coordinators}
        driven = {lease.number: lease for lease in leases if lease.coordinator in drivers}
        running = {t.number: t.label for t in trials if not t.finished}
        orphaned = {lease.number for lease in leases if lease.held and lease.number not in driven} & running.keys()
        counts = Counter(t.state for t in trials)
        counts.update(orphaned=len(orphaned), running=-len(orphaned))

        last_run = self._as_run(drivers)
        limits = _Limits.of(last_run)
        counting = [t for t in trials if t.finished and limits.counts(t)]
        recent = [t for t in counting[-LOOK_BACK:] if t.number in driven and driven[t.number].epoch <= 1]
        speed = pace([e for e in map(_ended, recent) if e is not None], counts["running"])
        wanted = self._store.wants()
        gpu_hours = sum(t.gpu_seconds for t in trials) / 3600
        scored = [(t.value, -t.number, t) for t in trials if t.value is not None and t.kept]
        found = Snapshot(
            study=last_run.name,
            file=last_run.file_name,
            counts={state: n for state, n in counts.items() if n},
            done=len(counting),
            planned=limits.planned,
            seconds_left=None if wanted == "pause" else limits.left(coordinators, len(counting), gpu_hours, speed),
            best=_mark(max(scored)[-1]) if scored else None,
            luck=None,
            marks=_marks(trials),
            tokens=sum(t.tokens for t in trials),
            tokens_per_second=None if speed is None else speed.tokens,
            gpu_hours=gpu_hours,
            gpu_hours_granted=limits.gpu_hours,
            workers=_workers(driven.values(), running),
            coordinators=coordinators,
            wanted=wanted,
            on_queries=self._store.record.on_queries,
        )
        return replace(found, luck=self._luck_in(found))

    def _trials(self) -> list[_Trial]:
        trials = self._store.trials()
        for t in trials:
            if t.number not in self._known or not self._known[t.number].finished:
                attrs, state = t.user_attrs, t.state.name.lower()
                self._known[t.number] = _Trial(
                    number=t.number,
                    state=state,
                    label=str(attrs.get("label", "")),
                    value=t.value if state == "complete" else None,
                    mark=SOURCE_ATTR in attrs or attrs.get("anchor") == UNIFORM_AVERAGE,
                    again="duplicate_of" in attrs or IMPORTED_ATTR in attrs,
                    kept=not violation(t),
                    tokens=attrs.get("tokens") or 0,
                    gpu_seconds=attrs.get(GPU_SECONDS_ATTR, 0.0),
                    start=t.datetime_start,
                    end=t.datetime_complete,
                )
        return [self._known[t.number] for t in trials]

    def _as_run(self, drivers: set[int]) -> StudyRecord:
        """What the study was run with last; only who starts to drive it can change that."""
        if self._last_run is None or not drivers <= self._drivers:
            self._last_run, self._drivers = self._store.last_run(), drivers
        return self._last_run

    def _luck_in(self, found: Snapshot) -> float | None:
        """The luck in the best score, or None while it was last worked out for another one."""
        if found.best is None:
            return None
        now, ended = time.monotonic(), sum(found.counts.get(state, 0) for state in ("complete", "pruned", "fail"))
        if self._luck_of != (found.best.number, ended) and (now >= self._luck_next or found.over):
            self._luck, self._luck_of = best_optimism(self._store), (found.best.number, ended)
            self._luck_next = now + (time.monotonic() - now) / LUCK_SHARE
        return self._luck if self._luck_of[0] == found.best.number else None


@dataclass(frozen=True)
class _Limits:
    """What ends a study, as far as its last run was told: trials, and minutes of a session, and GPU-hours."""

    planned: int | None
    budget: int | None
    minutes: float | None
    gpu_hours: float | None

    @classmethod
    def of(cls, record: StudyRecord) -> _Limits:
        search = record.other.get("search", {})
        budget = search.get("trials")
        return cls(record.other.get(PLANNED, budget), budget, search.get("minutes"), search.get("gpu_hours"))

    def counts(self, trial: _Trial) -> bool:
        """Whether a trial counts against `planned`: a budget is for evaluations, and a grid's points are all tried."""
        if self.planned is None or self.planned != self.budget:
            return True
        return trial.state != "fail" and not trial.again

    def left(
        self, coordinators: Sequence[CoordinatorState], done: int, gpu_hours: float, speed: Pace | None
    ) -> float | None:
        """Seconds until the first limit is reached, about; None where that cannot be said."""
        if not coordinators or (speed is None and (self.planned is not None or self.gpu_hours is not None)):
            return None
        seconds = []
        if self.minutes is not None:
            since = datetime.now(UTC) - min(c.started_at for c in coordinators)
            seconds.append(60 * self.minutes - since.total_seconds())
        if speed is not None and self.planned is not None:
            seconds.append((self.planned - done) / speed.trials)
        if speed is not None and self.gpu_hours is not None and speed.gpu_seconds:
            seconds.append(3600 * (self.gpu_hours - gpu_hours) / speed.gpu_seconds)
        return max(0.0, min(seconds)) if seconds else None


def _mark(trial: _Trial) -> Mark:
    return Mark(trial.number, trial.label, trial.value)


def _marks(trials: Sequence[_Trial]) -> tuple[Mark, ...]:
    """What every merge is measured by; of an anchor that was begun again, the trial with a score or the last one."""
    found: dict[str, Mark] = {}
    for t in trials:
        if t.mark and (t.label not in found or found[t.label].value is None):
            found[t.label] = _mark(t)
    return tuple(found.values())


def _ended(trial: _Trial) -> Ended | None:
    if trial.start is None or trial.end is None:
        return None
    return Ended(trial.start, trial.end, trial.tokens, trial.gpu_seconds)


def _workers(leases: Iterable[Lease], labels: Mapping[int, str]) -> tuple[WorkerState, ...]:
    """Workers by name; `leases` in number order, `labels` of the trials that run."""
    found: dict[tuple[str, int], WorkerState] = {}
    for lease in leases:
        if lease.worker is not None and lease.coordinator is not None:
            key = lease.worker, lease.coordinator
            if lease.held and lease.number in labels:
                found[key] = WorkerState(*key, lease.number, labels[lease.number])
            else:
                found.setdefault(key, WorkerState(*key, None, ""))
    return tuple(found[key] for key in sorted(found, key=lambda k: (len(k[0]), k)))
