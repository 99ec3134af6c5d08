"""Who drives a study: processes that show by heartbeats that they live, and hold leases on trials while they do.

A coordinator's heartbeat keeps all its leases alive. One that is silent for longer than its lease is gone as far as
the others can know, and they take its trials over; should it wake up, its results come too late (see
`StudyStore.finish`). Whoever looks from the same machine need not wait: there the process is seen to have ended.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Literal

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from mergesearch.errors import StorageError
from mergesearch.storage.tables import CoordinatorRow, StudyRow, TrialRow, in_utc

logger = logging.getLogger(__name__)

LEASE_SECONDS = 60.0
"""How long a coordinator may be silent before others take over its trials; MERGESEARCH_LEASE_SECONDS overrides it."""
BEATS_PER_LEASE = 6

Wanted = Literal["run", "pause", "drain", "stop"]
"""What is wanted of the coordinators of a study: to go on, to begin nothing, to end what is in flight and then
themselves, to end at once."""


@dataclass(frozen=True)
class CoordinatorState:
    """A process that drives a study, or did.

    Attributes:
        id: ascending in the order of their starts.
        session: what the server knows its connections by.
        host: the name of its machine.
        pid: its process id there.
        started_at: when it opened the study, in UTC by the database's clock.
        silent_seconds: since its last heartbeat, by the database's clock.
        alive: it may still bring results; False once it has ended, was seen to be gone, or was silent for too long.
        trials: unfinished trials that it holds.
    """

    id: int
    session: str
    host: str
    pid: int
    started_at: datetime
    silent_seconds: float
    alive: bool
    trials: int

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} (since {self.started_at:%Y-%m-%dT%H:%M:%S}Z)"


def lease_seconds() -> float:
    """How long this process may be silent.

    Raises:
        StorageError: MERGESEARCH_LEASE_SECONDS is not a positive number.
    """
    text = os.environ.get("MERGESEARCH_LEASE_SECONDS") or str(LEASE_SECONDS)
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise StorageError(f"MERGESEARCH_LEASE_SECONDS is {text!r}; it must be a number of seconds above 0.")
    return seconds


def coordinators(engine: sa.Engine, study_id: int) -> list[CoordinatorState]:
    """All coordinators that have not ended by themselves or still hold trials, in the order of their starts."""
    held = (
        sa.select(TrialRow.coordinator_id, sa.func.count().label("trials"))
        .where(TrialRow.study_id == study_id, TrialRow.outcome.is_(None))
        .group_by(TrialRow.coordinator_id)
        .subquery()
    )
    query = (
        sa.select(CoordinatorRow, sa.func.coalesce(held.c.trials, 0), sa.func.now())
        .outerjoin(held, held.c.coordinator_id == CoordinatorRow.id)
        .where(CoordinatorRow.study_id == study_id)
        .where(CoordinatorRow.ended_at.is_(None) | held.c.trials.is_not(None))
        .order_by(CoordinatorRow.id)
    )
    with Session(engine) as session:
        return [_state(row, trials, now) for row, trials, now in session.execute(query)]


def _state(row: CoordinatorRow, trials: int, now: datetime) -> CoordinatorState:
    silent = (in_utc(now) - in_utc(row.heartbeat_at)).total_seconds()
    # A heartbeat of the future was sent before the database's clock was set back, and not repeated since.
    alive = row.ended_at is None and abs(silent) <= row.lease_seconds and not _seen_gone(row)
    return CoordinatorState(
        row.id, row.session, row.host, row.pid, in_utc(row.started_at), max(silent, 0.0), alive, trials
    )


def new_session() -> str:
    """A name for the connections of a coordinator, of at most 63 characters, which the server cuts off."""
    return f"mergesearch {secrets.token_hex(4)} {os.getpid()}@{socket.gethostname()}"[:63]


class Membership:
    """This process among the coordinators of a study, from construction until `close` or its end.

    Attributes:
        id: of the coordinator.
    """

    def __init__(self, engine: sa.Engine, study_id: int, session: str) -> None:
        self._engine, self._study_id = engine, study_id
        lease = lease_seconds()
        row = CoordinatorRow(
            study_id=study_id,
            session=session,
            host=socket.gethostname(),
            machine=_machine(),
            pid=os.getpid(),
            process_started=_start_of(os.getpid()) or 0.0,
            lease_seconds=lease,
        )
        with Session(engine) as transaction, transaction.begin():
            transaction.add(row)
            transaction.flush()
            self.id = row.id
        self._wanted: Wanted = "run"
        self._closed = threading.Event()
        self.beat()
        self._thread = threading.Thread(
            target=self._beat_on, args=(lease / BEATS_PER_LEASE,), name="mergesearch-heartbeat", daemon=True
        )
        self._thread.start()

    @property
    def wanted(self) -> Wanted:
        """What was wanted of this coordinator at its last heartbeat."""
        return self._wanted

    def beat(self) -> None:
        """Show that this process lives, and hear what is wanted of it."""
        with Session(self._engine) as session, session.begin():
            beating = sa.update(CoordinatorRow).where(CoordinatorRow.id == self.id)
            session.execute(beating.values(heartbeat_at=sa.func.now()))
            query = sa.select(StudyRow.wanted, StudyRow.wanted_of).where(StudyRow.id == self._study_id)
            found = session.execute(query).first()
        if found is not None:
            bound = found.wanted == "pause" or found.wanted_of >= self.id
            self._wanted = found.wanted if bound else "run"

    def close(self) -> None:
        """End the heartbeat, and give all leases up; harmless when called again."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._thread.join()
        try:
            with Session(self._engine) as session, session.begin():
                ending = sa.update(CoordinatorRow).where(CoordinatorRow.id == self.id)
                session.execute(ending.values(ended_at=sa.func.now()))
        except SQLAlchemyError:  # it will be found silent instead
            logger.debug("coordinator %d could not say that it ends", self.id, exc_info=True)

    def _beat_on(self, interval: float) -> None:
        while not self._closed.wait(interval):
            try:
                self.beat()
                if self._engine.dialect.name == "postgresql":
                    end_sessions(self._engine, self._study_id, self.id)
            except SQLAlchemyError:
                logger.debug("a heartbeat of coordinator %d did not get through", self.id, exc_info=True)


def want(engine: sa.Engine, study_id: int, wanted: Wanted) -> None:
    """Say what is wanted of the coordinators of a study; `drain` and `stop` do not bind those that start later."""
    # Not of the whole table: SQLite gives ids again that belonged to a study that is gone.
    newest = sa.select(sa.func.coalesce(sa.func.max(CoordinatorRow.id), 0)).where(CoordinatorRow.study_id == study_id)
    with Session(engine) as session, session.begin():
        session.execute(
            sa.update(StudyRow).where(StudyRow.id == study_id).values(wanted=wanted, wanted_of=newest.scalar_subquery())
        )


def take_over(
    engine: sa.Engine, study_id: int, by: int, known: Collection[tuple[int, int]], *, alone: bool
) -> list[TrialRow]:
    """Give the unfinished trials of coordinators that are gone to another one, in number order.

    Those that it has without knowing are among them: they were given to it, and the answer was lost.

    Args:
        engine: on the study's database.
        study_id: the study.
        by: id of the coordinator that takes them.
        known: leases that it knows to hold, as trial number and epoch.
        alone: no other coordinator can be alive: something else makes sure of it.
    """
    if alone:
        gone = TrialRow.coordinator_id != by
    else:
        # Whoever was stopped and goes on may find itself silent for too long.
        left = [c for c in coordinators(engine, study_id) if not c.alive and c.id != by]
        gone = TrialRow.coordinator_id.in_([c.id for c in left])
    unheard = (TrialRow.coordinator_id == by) & sa.tuple_(TrialRow.number, TrialRow.lease_epoch).not_in(known)
    query = (
        sa.select(TrialRow)
        .where(TrialRow.study_id == study_id, TrialRow.outcome.is_(None))
        .where(TrialRow.coordinator_id.is_(None) | gone | unheard)
        .order_by(TrialRow.number)
        .with_for_update(skip_locked=True)  # what another coordinator is taking over right now is its own
    )
    with Session(engine, expire_on_commit=False) as session, session.begin():
        rows = list(session.scalars(query))
        for row in rows:
            row.coordinator_id = by
            row.lease_epoch += 1  # what its last holder may still bring is too late
        return rows


def end_sessions(engine: sa.Engine, study_id: int, by: int) -> None:
    """End what coordinators that are gone have open in PostgreSQL.

    One that was stopped between two messages may hold locks that everybody else waits for.
    """
    left = [c.session for c in coordinators(engine, study_id) if not c.alive and c.id != by]
    if left:
        query = sa.text(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND application_name = ANY(:sessions)"
        )
        with engine.connect() as connection:
            connection.execute(query, {"sessions": left})


def _seen_gone(row: CoordinatorRow) -> bool:
    return row.machine == _machine() != "" and _start_of(row.pid) != row.process_started


def _start_of(pid: int) -> float | None:
    """When a process of this machine began, in clock ticks since the boot; None where it is not there any more."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else float(fields[19])  # a zombie has ended, whether or not anybody has noticed


@cache
def _machine() -> str:
    """Equal for processes that can see each other by process id: same boot, same container, same user."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        # Other users' processes are hidden where /proc is mounted with `hidepid`, as on machines that many log in to.
        return f"{boot} {Path('/proc/self/ns/pid').readlink()} {os.getuid()}"
    except OSError:
        return ""  # not Linux: only silence tells
