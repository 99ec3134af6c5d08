"""Finding, making and comparing a study when its store is opened."""

from __future__ import annotations

import json
import uuid
from dataclasses import replace
from typing import Any

import optuna
import sqlalchemy as sa
from optuna.study import StudyDirection
from optuna.trial import TrialState
from sqlalchemy.orm import Session

from mergesearch.errors import ResumeError, StorageError, unknown
from mergesearch.storage.engine import Database, redact_urls
from mergesearch.storage.record import StudyRecord, changes, check_resumable, plain
from mergesearch.storage.tables import (
    CoordinatorRow,
    HistoryRow,
    LateResultRow,
    LossRow,
    ReadingRow,
    ScoreRow,
    StudyRow,
    TrialRow,
    in_utc,
    study_system_attributes,
    study_user_attributes,
    trials,
)
from mergesearch.storage.transaction import joined
from mergesearch.storage.trials import single_value

UID_KEY = "mergesearch:uid"
"""System attribute of Optuna's study that pairs it with our row."""

LOGICAL_ID_KEY = "mergesearch:logical_id"
"""System attribute of Optuna's trials that pairs them with our rows."""

METRIC_NAMES_KEY = "study:metric_names"
"""Where Optuna keeps the names of a study's objectives; its own `set_metric_names` warns of being experimental."""

RESUMED = "resumed with changes"
"""An event of a study's history: it was gone on with, and something that may differ did."""

OUTCOMES = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "fail"}
"""What our own table says of a trial that has ended."""


def find_study(database: Database, storage: optuna.storages.RDBStorage, name: str) -> tuple[int, StudyRow] | None:
    """Optuna's id and our row of a study; None where there is no study of this name.

    Raises:
        ResumeError: a study of this name was made by another program.
    """
    try:
        optuna_id = storage.get_study_id_from_name(name)
    except KeyError:
        return None
    uid = storage.get_study_system_attrs(optuna_id).get(UID_KEY)
    with Session(storage.engine) as session:
        row = session.scalar(sa.select(StudyRow).where(StudyRow.uid == uid)) if uid else None
    if row is None:
        raise ResumeError(
            f"{database.shown} holds a study {name!r} that mergesearch did not make. Give yours another name."
        )
    return optuna_id, row


def create_study(storage: optuna.storages.RDBStorage, record: StudyRecord) -> None:
    """Makes the study in Optuna's tables and ours, in one transaction."""
    uid = str(uuid.uuid4())
    attributes = {"study_file": record.study_file, "mergesearch_versions": dict(record.versions)}

    def write(session: Session, study: Any) -> None:
        study_id = study.study_id
        session.execute(
            sa.insert(study_system_attributes).values(study_id=study_id, key=UID_KEY, value_json=json.dumps(uid))
        )
        rows = [{"study_id": study_id, "key": k, "value_json": json.dumps(v)} for k, v in attributes.items()]
        session.execute(sa.insert(study_user_attributes), rows)
        session.add(
            StudyRow(
                uid=uid,
                name=record.name,
                score_relevant=plain(record.score_relevant),
                other=plain(record.other),
                study_file=record.study_file,
                file_name=record.file_name,
                versions=plain(record.versions),
            )
        )

    _remove_deleted_studies(storage.engine)
    with joined(storage, "studies", write):
        storage.create_new_study([StudyDirection.MAXIMIZE] * max(1, len(record.objectives)), record.name)


def resume_study(database: Database, engine: sa.Engine, row: StudyRow, now: StudyRecord, *, write: bool) -> None:
    """Compares a stored study with what is asked for, and notes what may differ and does.

    Raises:
        ResumeError: something that can change a score differs.
    """
    stored = record_of(row)
    check_resumable(stored, now, where=database.shown, made=f"{in_utc(row.created_at):%Y-%m-%d %H:%M} UTC")
    changed = changes(as_last_run(engine, row), now)
    if not write or not changed:
        return
    detail = {
        "changed": changed,
        "other": plain(now.other),
        "versions": plain(now.versions),
        "file_name": now.file_name,
        "study_file": now.study_file,
    }
    with Session(engine) as session, session.begin():
        session.add(HistoryRow(study_id=row.id, event=RESUMED, detail=detail))


def name_metric(storage: optuna.storages.RDBStorage, optuna_id: int, record: StudyRecord | None) -> None:
    """Tells Optuna's tools what the values of the trials are, unless they know."""
    if record and record.metric and METRIC_NAMES_KEY not in storage.get_study_system_attrs(optuna_id):
        names = [f"{record.metric} {name}" for name in record.objectives] or [record.metric]
        storage.set_study_system_attr(optuna_id, METRIC_NAMES_KEY, names)


def is_alive() -> sa.ColumnElement[bool]:
    """SQL: Optuna's side of a `StudyRow` is still there."""
    attribute = study_system_attributes
    quoted = sa.literal('"') + StudyRow.uid + sa.literal('"')  # Optuna keeps values as JSON
    return sa.exists().where(attribute.c.key == UID_KEY, attribute.c.value_json == quoted)


def record_of(row: StudyRow) -> StudyRecord:
    """What the study was made with."""
    return StudyRecord(
        name=row.name,
        score_relevant=row.score_relevant,
        other=row.other,
        study_file=row.study_file,
        file_name=row.file_name,
        versions=row.versions,
    )


def no_such_study(database: Database, storage: optuna.storages.RDBStorage, name: str) -> StorageError:
    """The error for a study name that is not there, with the names that are."""
    names = [study.study_name for study in storage.get_all_studies()]
    return StorageError(f"{database.shown}: {unknown('study', name, names)}")


def settle(storage: optuna.storages.RDBStorage, optuna_id: int, row: StudyRow) -> None:
    """Mends what other programs did to the trials meanwhile; trials of other coordinators are left alone.

    A running trial that was not begun here has no recipe, so nobody could ever end it: it is failed. A trial
    of ours that another program ended keeps the end it was given.
    """
    mine = (TrialRow.optuna_trial_id, TrialRow.id, TrialRow.outcome)
    with Session(storage.engine) as session:  # Optuna's first: a row of ours is there before anybody sees its trial
        theirs = session.execute(
            sa.select(trials.c.trial_id, trials.c.state).where(trials.c.study_id == optuna_id)
        ).all()
        ours = {
            key: (row_id, end)
            for key, row_id, end in session.execute(sa.select(*mine).where(TrialRow.study_id == row.id))
        }
    for trial_id, state in theirs:
        if state == TrialState.RUNNING and trial_id not in ours:
            storage.set_trial_user_attr(trial_id, "failure", "begun by another program and left running")
            storage.set_trial_state_values(trial_id, TrialState.FAIL)
        elif state.is_finished() and trial_id in ours and ours[trial_id][1] is None:
            adopt_outcome(storage.engine, ours[trial_id][0], storage.get_trial(trial_id))


def adopt_outcome(engine: sa.Engine, row_id: int, trial: optuna.trial.FrozenTrial) -> None:
    """Takes over the end that another program gave a trial of ours."""
    with Session(engine) as session, session.begin():
        row = session.get_one(TrialRow, row_id, with_for_update=True)
        if row.outcome is None:
            row.outcome = OUTCOMES[trial.state]
            row.value = None if trial.state == TrialState.FAIL else single_value(trial.values, trial.user_attrs)
            row.reason = "ended by another program"
            row.finished_at = sa.func.now()


def as_last_run(engine: sa.Engine, row: StudyRow) -> StudyRecord:
    """What the study was made with, and what may differ as the run that was started last had it."""
    stored = record_of(row)
    with Session(engine) as session:
        resumed = sa.select(HistoryRow.detail).where(HistoryRow.study_id == row.id, HistoryRow.event == RESUMED)
        last = session.scalars(resumed.order_by(HistoryRow.id.desc()).limit(1)).first()
    if last is None:
        return stored
    return replace(stored, other=last["other"], versions=last["versions"], file_name=last["file_name"])


def _remove_deleted_studies(engine: sa.Engine) -> None:
    with Session(engine) as session, session.begin():
        # One statement, one snapshot: a study that is being made meanwhile is seen whole or not at all.
        gone = session.scalars(sa.select(StudyRow.id).where(~is_alive())).all()
        if not gone:
            return
        trials = sa.select(TrialRow.id).where(TrialRow.study_id.in_(gone))
        for child in (ScoreRow, LateResultRow):
            session.execute(sa.delete(child).where(child.trial_id.in_(trials)))
        for table in (TrialRow, CoordinatorRow, HistoryRow, ReadingRow, LossRow):
            session.execute(sa.delete(table).where(table.study_id.in_(gone)))
        session.execute(sa.delete(StudyRow).where(StudyRow.id.in_(gone)))


def probe_writing(database: Database, engine: sa.Engine) -> None:
    """Finds out at the start, and not after the first hour of work, whether the database can be written.

    Raises:
        StorageError: the server is a read-only replica.
    """
    with engine.connect() as connection:
        if database.is_sqlite:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            version = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
            connection.exec_driver_sql(f"PRAGMA user_version = {version}")
        elif connection.scalar(sa.text("SELECT current_setting('transaction_read_only')")) == "on":
            raise StorageError(f"{database.shown}: the server is a read-only replica. Name the primary.")
        connection.rollback()


def stored_form(database: Database, name: str, record: StudyRecord | None) -> StudyRecord | None:
    """A record as it may be stored, without passwords; None for None."""
    if record is None:
        return None
    return replace(
        record,
        name=name,
        score_relevant=redact_urls(record.score_relevant),
        other=redact_urls(record.other),
        study_file=database.without_secrets(record.study_file),
        file_name=redact_urls(record.file_name),
    )
