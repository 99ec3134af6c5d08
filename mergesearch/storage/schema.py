"""Creating and upgrading the tables, Optuna's and ours, one process at a time.

Optuna's own creation of tables fails in most of eight processes that start together, so it runs under a lock:
PostgreSQL's advisory lock, or for SQLite the coordinator's lock, which the caller holds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from mergesearch.errors import StorageError
from mergesearch.storage.engine import Database

VERSION_TABLE = "mergesearch_alembic_version"

SCHEMA_LOCK_SECONDS = 60
"""How long a process waits for another one that is creating the tables."""


def advisory_key(text: str) -> int:
    """A signed 64-bit key for PostgreSQL's advisory locks."""
    digest = hashlib.sha256(f"mergesearch:{text}".encode()).digest()
    return int.from_bytes(digest[:8], "little", signed=True)


def prepare(database: Database, engine: sa.Engine, *, create: bool) -> None:
    """Makes sure that all tables are there and as this version needs them.

    Args:
        database: where.
        engine: an engine on it.
        create: missing tables are created and old ones upgraded; for SQLite the caller holds the lock.

    Raises:
        StorageError: no tables and `create` is False, tables of another version, or no access.
    """
    with database.friendly():
        if _up_to_date(database, engine):
            return
        if not create:
            raise StorageError(_not_ready(database, engine))
        with one_at_a_time(database, engine, "schema"):
            if _up_to_date(database, engine):
                return
            database.optuna_storage(create_tables=True).engine.dispose()
            _migrate(database, engine)


def alembic_config(connection: sa.Connection | None = None) -> Config:
    """Alembic's settings; they lie in the package, so an installed wheel has them."""
    config = Config()
    config.set_main_option("script_location", "mergesearch.storage:migrations")
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def current_revision(connection: sa.Connection) -> str | None:
    """The revision of our tables; None where there are none."""
    return MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE}).get_current_revision()


def _up_to_date(database: Database, engine: sa.Engine) -> bool:
    scripts = ScriptDirectory.from_config(alembic_config())
    with engine.connect() as connection:
        inspector = sa.inspect(connection)
        ours = current_revision(connection)
        if ours is not None and ours not in {s.revision for s in scripts.walk_revisions()}:
            raise StorageError(
                f"{database.shown}: its tables were made by a newer mergesearch (revision {ours}). "
                "Run: pip install --upgrade mergesearch"
            )
        # A process killed while Optuna's tables were made may have left them without a version.
        theirs = inspector.has_table("studies") and inspector.has_table("version_info")
        stamped = MigrationContext.configure(connection).get_current_revision() is not None
        return theirs and stamped and ours == scripts.get_current_head()


def _migrate(database: Database, engine: sa.Engine) -> None:
    with engine.connect() as connection:
        if database.is_sqlite:
            # The driver begins no transaction before CREATE TABLE, and half a schema could not be mended.
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        command.upgrade(alembic_config(connection), "head")
        connection.commit()


@contextmanager
def one_at_a_time(database: Database, engine: sa.Engine, what: str) -> Iterator[None]:
    """While open, no other process is inside for the same `what`; an SQLite file has one process anyway."""
    if database.is_sqlite:
        yield
        return
    with engine.connect() as connection:
        connection.exec_driver_sql(f"SET lock_timeout = '{SCHEMA_LOCK_SECONDS}s'")
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(advisory_key(what))))
        yield
        connection.rollback()


def _not_ready(database: Database, engine: sa.Engine) -> str:
    with engine.connect() as connection:
        if current_revision(connection) is None:
            return f"{database.shown} holds no study of mergesearch yet. Start one: mergesearch run STUDY.yaml"
    return (
        f"{database.shown} was made by an older mergesearch. It is upgraded when a study in it is resumed: "
        "mergesearch run STUDY.yaml"
    )
