"""Database URLs, engines, and errors that say what to do; passwords stay out of every text made here.

SQLite files keep the default rollback journal: write-ahead logging needs shared memory, which network file
systems do not give, and leaves the newest trials in a second file that a copied database would lack.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus, unquote

import optuna
import sqlalchemy as sa
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, InterfaceError, OperationalError, PendingRollbackError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from mergesearch.errors import StorageError
from mergesearch.storage.coordinators import lease_seconds
from mergesearch.storage.patience import ConnectionLostError

SQLITE_WAIT_SECONDS = 30
"""How long a statement waits for another program's write; `?timeout=` in the URL overrides it."""

CONNECT_SECONDS = 10
"""How long a PostgreSQL server may take to answer; `?connect_timeout=` in the URL overrides it."""

SHORTEST_TRANSACTION_SECONDS = 10.0
"""So long a transaction may rest between two messages, however short leases are: a busy machine has pauses."""

_SECRET_KEYS = frozenset({"password", "sslpassword", "passfile"})
_CREDENTIALS = re.compile(r"(://[^\s:/@]*):\S*@")
_SECRET_QUERY = re.compile(r"((?:password|sslpassword|passfile)=)[^\s&\"']*", re.IGNORECASE)
_URL = re.compile(r"\S*://\S*")


def redact(text: str) -> str:
    """The text with the passwords of all database URLs in it replaced by `***`."""
    return _SECRET_QUERY.sub(r"\1***", _CREDENTIALS.sub(r"\1:***@", text))


def redact_urls(value: Any) -> Any:
    """Plain JSON types with `redact` applied to the URLs in all texts and to nothing else.

    For names, settings and whatever else is compared later: a word there may be equal to somebody's password,
    and has to stay what it is.
    """
    if isinstance(value, str):
        return _URL.sub(lambda url: redact(url[0]), value)
    if isinstance(value, Mapping):
        return {redact_urls(k): redact_urls(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [redact_urls(v) for v in value]
    return value


class _OptunaStorage(optuna.storages.RDBStorage):
    """Optuna's, which would leave its connections open where it cannot be made."""

    def __init__(self, url: str, **options: Any) -> None:
        try:
            super().__init__(url, **options)
        except BaseException:
            if hasattr(self, "engine"):
                self.engine.dispose()
            raise


@dataclass(frozen=True)
class Database:
    """A database that studies can be kept in: an SQLite file or a PostgreSQL database.

    Attributes:
        url: with the driver named (`postgresql://` means psycopg 3 with every SQLAlchemy version).
        session: what the server is told that its connections are for; empty for the program's name.
    """

    url: URL
    session: str = ""

    @classmethod
    def parse(cls, text: str) -> Database:
        """The database that a URL names.

        Raises:
            StorageError: not a URL, or a kind of database that studies cannot be kept in.
        """
        try:
            url = make_url(text)
        except (ArgumentError, ValueError):
            raise StorageError(
                f"{redact(text)!r} is not a database URL. For a file write sqlite:///study.db, for a server "
                "postgresql://user:password@host:5432/database (special characters in it %-encoded)."
            ) from None
        if url.drivername in ("postgresql", "postgres"):
            url = url.set(drivername="postgresql+psycopg")
        kind = url.get_backend_name()
        if kind not in ("sqlite", "postgresql"):
            raise StorageError(
                f"{redact(text)}: studies are kept in SQLite (sqlite:///study.db) or PostgreSQL "
                f"(postgresql://…), not in {kind!r}: elsewhere nothing would stop two coordinators "
                "from driving one study."
            )
        database = cls(url)
        if kind == "sqlite" and database.path is None:
            raise StorageError(
                f"{text!r} is a database in memory, which ends with the process. Name a file: sqlite:///study.db"
            )
        return database

    @property
    def is_sqlite(self) -> bool:
        """An SQLite file, for one coordinator process."""
        return self.url.get_backend_name() == "sqlite"

    @property
    def path(self) -> Path | None:
        """The SQLite file; None for a server or a database in memory."""
        name = self.url.database
        if not self.is_sqlite or not name or name == ":memory:" or "mode=memory" in str(self.url):
            return None
        return Path(unquote(name.removeprefix("file:").partition("?")[0]))

    @property
    def shown(self) -> str:
        """The URL as it may be printed: no password, no driver."""
        shown = redact(self.url.render_as_string(hide_password=True))
        return shown.replace("postgresql+psycopg:", "postgresql:", 1)

    @property
    def engine_options(self) -> dict[str, Any]:
        """Keyword arguments for `create_engine`: time limits, and idle connections tested before use."""
        if self.is_sqlite:
            limit = {} if "timeout" in self.url.query else {"timeout": SQLITE_WAIT_SECONDS}
            return {"connect_args": limit}
        # In a database without an encoding of its own the driver would return bytes for text.
        # A client that is stopped, or cut off, in the middle of a transaction would hold its locks for ever.
        lease = round(1000 * max(lease_seconds(), SHORTEST_TRANSACTION_SECONDS))
        wanted = {
            "connect_timeout": CONNECT_SECONDS,
            "client_encoding": "utf8",
            "application_name": self.session or "mergesearch",
            "options": f"-c idle_in_transaction_session_timeout={lease}",
            "tcp_user_timeout": lease,  # a server whose machine is gone acknowledges nothing
            "keepalives_idle": 30,
            "keepalives_interval": 10,
            "keepalives_count": 3,
        }
        arguments = {key: value for key, value in wanted.items() if key not in self.url.query}
        return {"connect_args": arguments, "pool_pre_ping": True}

    def engine(self) -> sa.Engine:
        """An engine that keeps no idle connections, for locks and schema work."""
        with self.friendly():
            return sa.create_engine(self.url, poolclass=NullPool, **self.engine_options)

    def optuna_storage(self, *, create_tables: bool) -> optuna.storages.RDBStorage:
        """Optuna's storage on this database. It writes to a database whose tables are not complete."""
        # Optuna puts its schema version into the URL with str.format, so braces are doubled to survive that.
        url = self.url.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}")
        with self.friendly():
            try:
                return _OptunaStorage(url, engine_kwargs=self.engine_options, skip_table_creation=not create_tables)
            except RuntimeError as error:  # tables of another version of Optuna, which says what to run
                raise StorageError(f"{self.shown}: {self.without_secrets(str(error))}") from None

    def without_secrets(self, text: str) -> str:
        """Free text with this database's password, and those of URLs in it, replaced by `***`.

        Not for what is compared or looked up later: see `redact_urls`.
        """
        secrets = "|".join(re.escape(s) for s in self._secrets())
        # Whole words only: the password `postgres` leaves `postgresql` readable.
        return redact(re.sub(rf"(?<!\w)(?:{secrets})(?!\w)", "***", text) if secrets else text)

    @contextmanager
    def friendly(self) -> Iterator[None]:
        """Turns what database drivers raise into `StorageError`s that name the remedy.

        The original exception is not chained: its text may hold what must not be printed.
        """
        try:
            yield
        except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
            raise self._explain(error) from None
        except ImportError as error:
            raise StorageError(self._explain_missing_driver(error)) from None

    def _secrets(self) -> list[str]:
        plain = [str(self.url.password)] if self.url.password else []
        plain += [str(v) for k, v in self.url.query.items() if k.lower() in _SECRET_KEYS]
        return sorted({form for s in plain for form in (s, quote(s, safe=""), quote_plus(s))}, key=len)[::-1]

    def _explain_missing_driver(self, error: ImportError) -> str:
        driver = self.url.get_driver_name()
        remedy = 'pip install "mergesearch[postgres]"' if driver == "psycopg" else f"pip install {driver}"
        return f"{self.shown}: the driver {driver!r} is not installed ({error.name or driver}). Run: {remedy}"

    def _explain(self, error: BaseException) -> StorageError:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, SQLAlchemyError):
            cause = cause.__cause__ or cause.__context__
        original = getattr(cause, "orig", None) or cause or error
        said = self.without_secrets(" ".join(str(original).split()))
        lower = said.lower()
        for sign, advice in _SQLITE_ADVICE if self.is_sqlite else _POSTGRES_ADVICE:
            if sign in lower:
                kind = ConnectionLostError if sign in _SOON_OVER else StorageError
                return kind(f"{self.shown}: {advice} (the database said: {said})")
        lost = isinstance(cause, OperationalError | InterfaceError | PendingRollbackError)
        if not self.is_sqlite and (lost or getattr(cause, "connection_invalidated", False)):
            return ConnectionLostError(
                f"{self.shown}: the server cannot be reached or dropped the connection. Check host, port and "
                f"network; the same command goes on where it stopped. (The driver said: {said})"
            )
        return StorageError(f"{self.shown}: {said}")


_SQLITE_ADVICE = (
    ("database is locked", "locked by another program that is writing. Let it end, then run this again."),
    ("readonly database", "read-only. Make file and folder writable, or name another file with --storage."),
    (
        "unable to open",
        "the file cannot be opened. Its folder must exist, and file and folder be accessible.",
    ),
    ("not a database", "the file is there but is not an SQLite database. Name another one with --storage."),
    ("disk is full", "no space left on the disk. Free some; the same command then goes on where it stopped."),
    ("disk i/o error", "the disk failed to read or write. Check space and the file system."),
    ("malformed", "the file is damaged. Restore a copy, or start a new study in another file."),
)

_POSTGRES_ADVICE = (
    ("password authentication failed", "user or password refused. Check them (%-encode special characters)."),
    ("no password supplied", "a password is needed: postgresql://user:password@host/database"),
    ("database system is starting up", "the server is starting. Run this again in a moment."),
    ("idle-in-transaction timeout", "this process was stopped for so long that the server ended what it was doing."),
    ("system is shutting down", "the server is being stopped. Run this again when it is back."),
    ("too many clients", "the server has no connection left. Raise max_connections or stop other clients."),
    ("no space left", "the server's disk is full. Free some space; the same command then goes on where it stopped."),
    ("permission denied", "the user may not write here. GRANT CREATE, SELECT, INSERT, UPDATE, DELETE to it."),
    ("read-only transaction", "the server is a read-only replica. Name the primary."),
    ("does not exist", "the database, user or a table of it does not exist. Create it: createdb NAME"),
)

_SOON_OVER = frozenset(
    {
        "database system is starting up",
        "idle-in-transaction timeout",
        "system is shutting down",
        "too many clients",
    }
)
