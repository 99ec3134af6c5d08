"""One coordinator per study; whoever comes second is told who is there.

Both kinds of lock are freed by the system when their holder dies, however it dies. SQLite is made for one
writing process, so its lock covers the whole file; PostgreSQL's covers one study name. A connection pool that
hands out server sessions per transaction (PgBouncer in that mode) cannot keep PostgreSQL's.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import socket
from abc import ABC, abstractmethod
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from mergesearch.errors import StorageError
from mergesearch.storage.engine import Database
from mergesearch.storage.schema import advisory_key

logger = logging.getLogger(__name__)


class CoordinatorLock(ABC):
    """The right to drive a study, held from construction until `release` or the end of the process."""

    @abstractmethod
    def check(self) -> None:
        """Makes sure that the right is still held; called before every write.

        Raises:
            StorageError: it was lost and somebody else has it now.
        """

    @abstractmethod
    def release(self) -> None:
        """Gives the right back; harmless when it is called again."""


def acquire(database: Database, engine: sa.Engine, study_name: str) -> CoordinatorLock:
    """Takes the right to drive a study.

    Raises:
        StorageError: another process has it (named), or the place cannot be written.
    """
    if database.path is not None:
        return FileLock(database.path, study_name)
    return AdvisoryLock(database, engine, study_name)


# A forked child shares its parent's open file or server session, and with them the lock, which would then
# outlive the parent. (psycopg never finishes a connection in a process that did not open it.)
_held: set[int] = set()


def _forget_in_child() -> None:
    for descriptor in _held:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_forget_in_child)


class FileLock(CoordinatorLock):
    """`flock` on `<database>.lock`; the file stays and says who holds it."""

    def __init__(self, path: Path, study_name: str) -> None:
        self.path = path.with_name(path.name + ".lock")
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:
            raise StorageError(
                f"the folder {path.parent} of the study database does not exist. Run: mkdir -p {path.parent}"
            ) from None
        except OSError as error:
            raise StorageError(
                f"cannot write in the folder {path.parent} ({error.strerror}). A study needs a folder "
                "where it may create files: name another with --storage sqlite:////path/to/study.db"
            ) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise StorageError(
                f"{path} is in use by {self._holder()}. SQLite serves one coordinator: wait for that "
                "process, stop it, or give this study a file of its own (--storage sqlite:///other.db)."
            ) from None
        except OSError as error:
            os.close(descriptor)
            raise StorageError(f"{self.path} cannot be locked on this file system ({error.strerror}).") from None
        self._descriptor = descriptor
        _held.add(descriptor)
        since = datetime.now(UTC).isoformat(timespec="seconds")
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": since, "study": study_name}
        with contextlib.suppress(OSError):  # a full disk must not keep a reader of scores out
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(holder).encode(), 0)

    def check(self) -> None:
        """Does nothing: an open file's lock cannot be lost."""

    def release(self) -> None:
        """Empties the lock file and unlocks it; the file stays, since removing it would be a race."""
        if self._descriptor in _held:
            _held.discard(self._descriptor)
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)

    def _holder(self) -> str:
        try:
            holder = json.loads(self.path.read_text())
            return f"process {holder['pid']} on {holder['host']} (study {holder['study']!r}, since {holder['since']})"
        except (OSError, ValueError, KeyError, TypeError):
            return "another process"


class AdvisoryLock(CoordinatorLock):
    """PostgreSQL's session-level advisory lock, on a connection of its own."""

    def __init__(self, database: Database, engine: sa.Engine, study_name: str) -> None:
        self._database, self._engine, self._study_name = database, engine, study_name
        self._key = advisory_key(f"study:{study_name}")
        self._connection = self._take()

    def check(self) -> None:
        """Asks the server; a lock lost with its connection is taken again unless somebody else was faster."""
        try:
            self._connection.exec_driver_sql("SELECT 1")
        except SQLAlchemyError:
            logger.warning("%s: the connection was lost, connecting again", self._database.shown)
            self.release()
            self._connection = self._take()

    def release(self) -> None:
        """Gives the lock back and closes the connection."""
        _held.discard(self._descriptor)
        with contextlib.suppress(SQLAlchemyError):
            # Not left to the server, which may notice the end of a connection after the next one has begun.
            self._connection.execute(sa.select(sa.func.pg_advisory_unlock(self._key)))
        with contextlib.suppress(SQLAlchemyError):
            self._connection.close()

    def _take(self) -> sa.Connection:
        with self._database.friendly():
            connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
            try:
                self._configure(connection)
                taken = connection.scalar(sa.select(sa.func.pg_try_advisory_lock(self._key)))
                holder = "" if taken else self._holder(connection)
            except BaseException:
                connection.close()
                raise
        if taken:
            driver_connection: Any = connection.connection.driver_connection
            self._descriptor: int = driver_connection.fileno()
            _held.add(self._descriptor)
            return connection
        connection.close()
        raise StorageError(
            f"study {self._study_name!r} in {self._database.shown} is driven by {holder}. Wait for that "
            "process, stop it, or give this study another name."
        )

    def _configure(self, connection: sa.Connection) -> None:
        name = f"mergesearch {os.getpid()}@{socket.gethostname()}"[:63]  # longer names are cut by the server
        # A holder whose machine vanished is noticed in two minutes, not two hours; idling is allowed.
        settings = {
            "application_name": name,
            "tcp_keepalives_idle": "60",
            "tcp_keepalives_interval": "10",
            "tcp_keepalives_count": "6",
            "idle_session_timeout": "0",
        }
        for setting, value in settings.items():
            connection.execute(
                sa.text("SELECT set_config(name, :value, false) FROM pg_settings WHERE name = :setting"),
                {"value": value, "setting": setting},
            )

    def _holder(self, connection: sa.Connection) -> str:
        row = connection.execute(
            sa.text(
                "SELECT a.application_name, a.backend_start FROM pg_locks l "
                "JOIN pg_stat_activity a USING (pid) "
                "WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1 "
                "AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) "
                "AND l.classid::bigint = :high AND l.objid::bigint = :low"
            ),
            {"high": (self._key >> 32) & 0xFFFFFFFF, "low": self._key & 0xFFFFFFFF},
        ).first()
        if row is None or not row.application_name:
            return "another process"
        process, _, host = row.application_name.removeprefix("mergesearch ").partition("@")
        return f"process {process} on {host} (since {row.backend_start:%Y-%m-%dT%H:%M:%S%z})"
