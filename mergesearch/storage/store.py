"""`StudyStore`: a study in its database, for its coordinator and for its readers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.orm import Session

from mergesearch.errors import StorageError
from mergesearch.storage import lock, opening, schema
from mergesearch.storage.coordinators import Membership, Wanted, new_session
from mergesearch.storage.engine import Database
from mergesearch.storage.importing import StudyImporter
from mergesearch.storage.patience import PATIENCE_SECONDS, going_on, patient
from mergesearch.storage.record import StudyRecord
from mergesearch.storage.shown import write_shown
from mergesearch.storage.tables import LossRow, TrialRow

NOTES_ATTR = "notes"
"""Attribute of a study: what its last run was told before trusting its outcome."""

TURN_SECONDS = 5
"""So long a coordinator waits for its turn; a proposal takes a tenth of a second."""


class StudyStore(StudyImporter):
    """A study in its database.

    One store may be used by several threads; what it writes is serialised. All methods raise `StorageError`
    when the database cannot be reached or used; a coordinator's are repeated for minutes before. Whatever was not
    confirmed by a return may be repeated: every write is keyed so that a repetition changes nothing.
    """

    _lock: lock.FileLock | None = None

    @classmethod
    def open(cls, url: str, study_name: str, record: StudyRecord | None, *, exclusive: bool) -> StudyStore:
        """Opens a study, making it where it is missing and may be made.

        Args:
            url: an SQLite or PostgreSQL URL; passwords in it are kept out of everything that is stored.
            study_name: the study.
            record: what the study is made of; compared with what is stored. None opens what is there.
            exclusive: as a coordinator, who may begin and end trials; creates the database, tables and study where
                missing. SQLite serves one, PostgreSQL any number. Without it the study must exist.

        Raises:
            ResumeError: the study differs from `record` in something that can change a score (all
                differences are listed), or was not made by mergesearch.
            StorageError: no such study, another coordinator of an SQLite file (named), or no access to the database.
        """
        database = replace(Database.parse(url), session=new_session() if exclusive else "")
        if not exclusive and database.path is not None and not database.path.is_file():
            raise StorageError(f"there is no study database {database.path}. Start one: mergesearch run STUDY.yaml")
        engine = database.engine()
        with ExitStack() as undo, database.friendly():
            right = lock.FileLock(database.path, study_name) if exclusive and database.path is not None else None
            if right is not None:
                undo.callback(right.release)
            if exclusive:
                opening.probe_writing(database, engine)
            # The server is there and lets us in; should it go away now, it is waited for.
            store = going_on(
                lambda: cls._join(database, engine, study_name, record, exclusive=exclusive),
                PATIENCE_SECONDS if exclusive else 0.0,
            )
            store._lock = right
            undo.pop_all()
            return store

    @classmethod
    def _join(
        cls, database: Database, engine: sa.Engine, study_name: str, record: StudyRecord | None, *, exclusive: bool
    ) -> StudyStore:
        """What of opening may be repeated."""
        with ExitStack() as undo, database.friendly():
            schema.prepare(database, engine, create=exclusive)
            storage = database.optuna_storage(create_tables=False)
            undo.callback(storage.engine.dispose)
            with schema.one_at_a_time(database, engine, f"study:{study_name}") if exclusive else nullcontext():
                found = opening.find_study(database, storage, study_name)
                clean = opening.stored_form(database, study_name, record)
                if found is not None and clean is not None:
                    opening.resume_study(database, storage.engine, found[1], clean, write=exclusive)
                elif found is None and clean is not None and exclusive:
                    opening.create_study(storage, clean)
                    found = opening.find_study(database, storage, study_name)
                if found is None:
                    raise opening.no_such_study(database, storage, study_name)
                if exclusive:
                    opening.name_metric(storage, found[0], clean)
                    opening.settle(storage, *found)
            store = cls(database, storage, *found)
            if exclusive:
                store._membership = Membership(storage.engine, found[1].id, database.session)
                store.patience = PATIENCE_SECONDS
            undo.pop_all()
            return store

    def beside(self, study_name: str, url: str | None = None) -> StudyStore:
        """Another study, for reading: of this database, or of the one at `url`.

        Raises:
            StorageError: no such study, or no access.
        """
        own = self._database.url.render_as_string(hide_password=False)
        return StudyStore.open(url or own, study_name, None, exclusive=False)

    @property
    def coordinator(self) -> int:
        """This coordinator's id."""
        return self._member.id

    @property
    def wanted(self) -> Wanted:
        """What was wanted of this coordinator at its last heartbeat."""
        return self._member.wanted

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Inside, other coordinators that ask for a turn wait, so that what is thought of here is not overtaken.

        A courtesy and no right: nobody waits for more than `TURN_SECONDS`, nor where there is nobody to wait for.
        """
        with ExitStack() as held:
            if not self._database.is_sqlite:
                with suppress(SQLAlchemyError):  # the one whose turn it is may hang
                    connection = self._storage.engine.connect()
                    held.callback(_let_go, connection)
                    key = schema.advisory_key(f"turn:{self._row.uid}")
                    connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{TURN_SECONDS}s'")
                    connection.execute(sa.select(sa.func.pg_advisory_xact_lock(key)))
            yield

    @patient
    def keep_embeddings(self, number: int, name: str) -> None:
        """Notes under which name the embeddings of a trial are kept now."""
        with self._driving():
            row_id = self._trial(number).id
            with Session(self._storage.engine) as session, session.begin():
                session.get_one(TrialRow, row_id, with_for_update=True).embeddings = name or None

    def keep_shown(self, note: str, notes: Mapping[int, str], figures: Mapping[str, Any]) -> None:
        """Keeps what optuna-dashboard shows, see `write_shown`; tried once, for it can be done later as well.

        Args:
            note: on the study, in Markdown.
            notes: on trials, by number; other trials lose theirs.
            figures: of plotly, by names that are valid HTML ids.
        """
        with self._driving():
            texts: dict[int | None, str] = {self._key(n)[1]: self._text(text) for n, text in notes.items()}
            with Session(self._storage.engine) as session, session.begin():
                write_shown(session, self._optuna_study_id, {None: self._text(note), **texts}, figures)

    @patient
    def not_told(self, notes: Sequence[str]) -> list[str]:
        """Those of the notes on a study that were no part of what its last run was told; they are from now on."""
        now = [self._text(note) for note in notes]
        with self._driving():
            before = self.study.user_attrs.get(NOTES_ATTR, [])
            if now != before:
                self._storage.set_study_user_attr(self._optuna_study_id, NOTES_ATTR, now)
        return [note for note in now if note not in before]

    @patient
    def record_loss(self, source: str, content_hash: str, examples: str, loss: float) -> None:
        """Keeps the loss of a source on a set of examples; the first one recorded stands."""
        row = LossRow(study_id=self._row.id, source=source, content_hash=content_hash, examples=examples, loss=loss)
        with self._driving():
            try:
                with Session(self._storage.engine) as session, session.begin():
                    session.add(row)
            except IntegrityError:  # recorded before, and only the confirmation was lost
                if content_hash not in self.losses(examples):
                    raise

    def close(self) -> None:
        """Gives up leases and the right to drive the study, closes connections; harmless when called again."""
        if self._membership is not None:
            self._membership.close()
        super().close()
        if self._lock is not None:
            self._lock.release()


def _let_go(connection: sa.Connection) -> None:
    with suppress(SQLAlchemyError):  # a connection that is lost holds nothing
        connection.close()
