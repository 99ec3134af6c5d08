"""What can be read of a study, by its coordinator and by anybody else."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Any, Self

import numpy as np
import optuna
import sqlalchemy as sa
from numpy.typing import NDArray
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.orm import Session

from mergesearch.errors import StorageError
from mergesearch.evaluation.result import CollectionScores, TrialResult
from mergesearch.recipe import MergeRecipe
from mergesearch.storage.coordinators import CoordinatorState, Wanted, coordinators, want
from mergesearch.storage.engine import Database
from mergesearch.storage.opening import as_last_run, record_of
from mergesearch.storage.patience import patient
from mergesearch.storage.record import StudyRecord
from mergesearch.storage.scores import QuerySets
from mergesearch.storage.tables import (
    HistoryRow,
    LateResultRow,
    LossRow,
    ReadingRow,
    ScoreRow,
    StudyRow,
    TrialRow,
    in_utc,
)
from mergesearch.storage.trials import Trials


@dataclass(frozen=True)
class UnfinishedTrial:
    """A trial that was begun and has no end yet.

    Attributes:
        number: Optuna's trial number.
        logical_id: the caller's name for it.
        recipe: what is to be evaluated.
        attempts: leases given so far.
        lease_owner: the worker of the newest lease; None when none was given.
        coordinator: id of the process that holds it, alive or not.
        epoch: of the newest lease.
    """

    number: int
    logical_id: str
    recipe: MergeRecipe
    attempts: int
    lease_owner: str | None
    coordinator: int | None
    epoch: int

    @classmethod
    def of(cls, row: TrialRow) -> UnfinishedTrial:
        """What a row says."""
        return cls(
            number=row.number,
            logical_id=row.logical_id,
            recipe=MergeRecipe.from_dict(row.recipe),
            attempts=row.attempts,
            lease_owner=row.lease_owner,
            coordinator=row.coordinator_id,
            epoch=row.lease_epoch,
        )


@dataclass(frozen=True)
class Lease:
    """Who was given a trial last.

    Attributes:
        number: Optuna's trial number.
        coordinator: id of the process that holds the trial, or did when it ended; None where it was never held.
        worker: who evaluates it, or did; None where no worker was given it, as when its recipe had a score.
        epoch: how many leases were given; above 1 it was begun more than once.
        held: it has no end yet.
    """

    number: int
    coordinator: int | None
    worker: str | None
    epoch: int
    held: bool


@dataclass(frozen=True)
class Reading:
    """One reading of a test split.

    Attributes:
        subject: who was scored, for example `winner` or `source retriever`.
        fingerprint: its recipe's fingerprint, where it has one.
        command: what read the split.
        split: the split's name.
        scores: per query.
        at: when, by the database's clock, in UTC.
    """

    subject: str
    fingerprint: str | None
    command: str
    split: str
    scores: CollectionScores
    at: datetime


class StudyReader:
    """A study in its database, as far as it can be read, and the noting of readings of test splits.

    Attributes:
        study: Optuna's study, for reading only.
        record: what the study was made with.
    """

    study: optuna.Study
    record: StudyRecord
    patience = 0.0
    """Seconds for which a lost connection is tried again."""

    def __init__(
        self, database: Database, storage: optuna.storages.RDBStorage, optuna_study_id: int, row: StudyRow
    ) -> None:
        """Takes over `storage`, which `close` closes."""
        self._database, self._storage, self._optuna_study_id, self._row = (
            database,
            storage,
            optuna_study_id,
            row,
        )
        self._query_sets = QuerySets(storage.engine)
        self._trials = Trials(storage.engine, optuna_study_id)
        self._mutex = threading.RLock()
        self._queued = 0  # trials that other programs queued, at the last look
        self.record = record_of(row)
        self.study = optuna.load_study(study_name=row.name, storage=storage)

    @patient
    def trials(self) -> list[FrozenTrial]:
        """All trials in number order, except those that other programs queued and nobody began.

        The trials are shared with a cache: do not change them.
        """
        with self._guarded():
            try:
                trials = self._trials.read()
            except KeyError:
                raise self._deleted() from None
            begun = [t for t in trials if t.state != TrialState.WAITING]
            self._queued = len(trials) - len(begun)
            return begun

    @patient
    def unfinished(self) -> list[UnfinishedTrial]:
        """The trials without an end, in number order; after a crash they are adopted and evaluated again."""
        with self._guarded(), Session(self._storage.engine) as session:
            query = self._trial_rows().where(TrialRow.outcome.is_(None)).order_by(TrialRow.number)
            return [UnfinishedTrial.of(row) for row in session.scalars(query)]

    @patient
    def leases(self, since: int) -> list[Lease]:
        """Who was given the trials without an end, and all those from number `since` on; in number order."""
        wanted = TrialRow.outcome.is_(None) | (TrialRow.number >= since)
        query = sa.select(
            TrialRow.number, TrialRow.coordinator_id, TrialRow.lease_owner, TrialRow.lease_epoch, TrialRow.outcome
        ).where(TrialRow.study_id == self._row.id, wanted)
        with self._guarded(), Session(self._storage.engine) as session:
            rows = session.execute(query.order_by(TrialRow.number))
            return [Lease(number, by, worker, epoch, end is None) for number, by, worker, epoch, end in rows]

    @patient
    def coordinators(self) -> list[CoordinatorState]:
        """Processes that drive the study, and those that ended and left trials behind, in the order of their starts."""
        with self._guarded():
            return coordinators(self._storage.engine, self._row.id)

    @patient
    def want(self, wanted: Wanted) -> None:
        """Say what is wanted of the study's coordinators; they hear it at their next heartbeat.

        `pause` holds until `run`; `drain` and `stop` do not bind those that start later.
        """
        with self._guarded():
            want(self._storage.engine, self._row.id, wanted)

    @patient
    def wants(self) -> Wanted:
        """What is wanted of the coordinators that are there."""
        with self._guarded(), Session(self._storage.engine) as session:
            wanted: Wanted = session.get_one(StudyRow, self._row.id).wanted  # type: ignore[assignment]
            return wanted

    @patient
    def last_run(self) -> StudyRecord:
        """`record`, and what may differ from run to run as the one that was started last had it."""
        with self._guarded():
            return as_last_run(self._storage.engine, self._row)

    @patient
    def recipe(self, number: int) -> MergeRecipe:
        """The recipe of a trial."""
        with self._guarded():
            return MergeRecipe.from_dict(self._trial(number).recipe)

    @patient
    def result(self, number: int) -> TrialResult | None:
        """What a trial brought back, to the bit; None while it runs and when it failed."""
        with self._guarded():
            return self._result(self._trial(number))

    @patient
    def scored(self) -> dict[int, tuple[MergeRecipe, TrialResult]]:
        """Recipe and result, as `recipe` and `result` give them, of every trial that ended with scores."""
        with self._guarded(), Session(self._storage.engine) as session:
            query = sa.select(ScoreRow).join(TrialRow, TrialRow.id == ScoreRow.trial_id)
            rows: dict[int, list[ScoreRow]] = {}
            for row in session.scalars(query.where(TrialRow.study_id == self._row.id)):
                rows.setdefault(row.trial_id, []).append(row)
            trials = session.scalars(self._trial_rows().order_by(TrialRow.number))
            return {
                t.number: (MergeRecipe.from_dict(t.recipe), self._query_sets.result(t, rows[t.id]))
                for t in trials
                if t.id in rows
            }

    @patient
    def seconds(self, number: int) -> Mapping[str, float]:
        """Wall seconds per phase of a trial; empty while it runs and when it failed."""
        with self._guarded():
            return dict(self._trial(number).seconds or {})

    @patient
    def per_query(self, number: int, collection: str, metric: str) -> tuple[tuple[str, ...], NDArray[np.float64]]:
        """Query ids and their scores, float64 [Q], of a completed trial on one collection."""
        with self._guarded():
            result = self._result(self._trial(number))
        available = result.collections if result else ()
        for found in available:
            if (found.collection, found.metric) == (collection, metric):
                return found.query_ids, found.scores
        known = ", ".join(f"{s.metric} on {s.collection!r}" for s in available) or "none"
        raise StorageError(f"trial {number} has no scores {metric} on {collection!r}; it has: {known}.")

    @patient
    def value_of(self, fingerprint: str) -> tuple[int, TrialResult] | None:
        """The first completed trial of an equal recipe, and what it brought back."""
        return self._first(fingerprint, "complete")

    @patient
    def stopped(self, fingerprint: str) -> tuple[int, TrialResult] | None:
        """The first trial of an equal recipe that was stopped after a look, and what it brought back until then."""
        return self._first(fingerprint, "pruned")

    def _first(self, fingerprint: str, outcome: str) -> tuple[int, TrialResult] | None:
        with self._guarded(), Session(self._storage.engine) as session:
            query = self._trial_rows().where(TrialRow.fingerprint == fingerprint, TrialRow.outcome == outcome)
            for row in session.scalars(query.order_by(TrialRow.number)):
                result = self._result(row)
                if result is not None:
                    return row.number, result
        return None

    @patient
    def history(self) -> list[tuple[datetime, str, dict[str, Any]]]:
        """What happened to the study, oldest first: (when, event, detail)."""
        with self._guarded(), Session(self._storage.engine) as session:
            query = sa.select(HistoryRow).where(HistoryRow.study_id == self._row.id).order_by(HistoryRow.id)
            return [(in_utc(row.at), row.event, row.detail) for row in session.scalars(query)]

    @patient
    def late_results(self, number: int) -> list[tuple[str, float | None]]:
        """(why, value) of what was handed in for a trial and could not be recorded, oldest first."""
        with self._guarded(), Session(self._storage.engine) as session:
            query = sa.select(LateResultRow).where(LateResultRow.trial_id == self._trial(number).id)
            return [(row.reason, row.value) for row in session.scalars(query.order_by(LateResultRow.id))]

    @patient
    def losses(self, examples: str) -> dict[str, float]:
        """Content hash of every source measured on a set of examples, named by its fingerprint, to its loss."""
        with self._guarded(), Session(self._storage.engine) as session:
            query = sa.select(LossRow).where(LossRow.study_id == self._row.id, LossRow.examples == examples)
            return {row.content_hash: row.loss for row in session.scalars(query)}

    @patient
    def test_readings(self) -> list[Reading]:
        """Every reading of a test split, oldest first."""
        with self._guarded(), Session(self._storage.engine) as session:
            query = sa.select(ReadingRow).where(ReadingRow.study_id == self._row.id).order_by(ReadingRow.id)
            return [
                Reading(
                    subject=row.subject,
                    fingerprint=row.fingerprint,
                    command=row.command,
                    split=row.split,
                    scores=self._query_sets.collection_scores(row),
                    at=in_utc(row.at),
                )
                for row in session.scalars(query)
            ]

    @patient
    def record_test_reading(
        self,
        collections: Iterable[CollectionScores],
        *,
        subject: str,
        split: str,
        command: str,
        fingerprint: str | None = None,
    ) -> None:
        """Notes that a test split was read, and what was seen; open to readers of the study too."""
        with self._guarded():
            rows = [
                ReadingRow(
                    study_id=self._row.id,
                    subject=subject,
                    fingerprint=fingerprint,
                    command=self._text(command),
                    split=split,
                    **self._query_sets.columns(c),
                )
                for c in collections
            ]
            with Session(self._storage.engine) as session, session.begin():
                session.add_all(rows)

    def close(self) -> None:
        """Closes the connections; harmless when called again."""
        self._storage.remove_session()
        self._storage.engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        with self._mutex, self._database.friendly():
            yield

    def _trial(self, number: int) -> TrialRow:
        with Session(self._storage.engine) as session:
            row: TrialRow | None = session.scalar(self._trial_rows().where(TrialRow.number == number))
        if row is None:
            raise StorageError(f"study {self._row.name!r} has no trial {number} that mergesearch began.")
        return row

    def _trial_rows(self) -> sa.Select[Any]:
        return sa.select(TrialRow).where(TrialRow.study_id == self._row.id)

    def _result(self, trial: TrialRow) -> TrialResult | None:
        with Session(self._storage.engine) as session:
            rows = session.scalars(sa.select(ScoreRow).where(ScoreRow.trial_id == trial.id)).all()
        return self._query_sets.result(trial, rows) if rows else None

    def _deleted(self) -> StorageError:
        return StorageError(f"study {self._row.name!r} was deleted from {self._database.shown} by another program.")

    def _text(self, text: str) -> str:
        """Free text that may be stored: no passwords, and no NUL, which PostgreSQL refuses."""
        return re.sub("\x00", "", self._database.without_secrets(text))
