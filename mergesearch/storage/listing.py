"""The studies of a database."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.orm import Session

from mergesearch.errors import StorageError
from mergesearch.evaluation.objectives import EXCESS_ATTR
from mergesearch.storage import schema
from mergesearch.storage.engine import Database
from mergesearch.storage.opening import is_alive, record_of
from mergesearch.storage.tables import HistoryRow, StudyRow, TrialRow, in_utc, trial_user_attributes


@dataclass(frozen=True)
class StudySummary:
    """A study in one line.

    Attributes:
        name: the study.
        file_name: what the file that made it was called.
        created_at: when, by the database's clock, in UTC.
        complete: trials with a score.
        pruned: trials that were stopped before their last query.
        failed: trials that ended without one.
        unfinished: trials that run, or that a dead coordinator left.
        best_value: the highest score that guards keep; None before the first.
        on_queries: what scores are on, where that is not judged queries alone; see `evaluation.labels`.
    """

    name: str
    file_name: str
    created_at: datetime
    complete: int
    pruned: int
    failed: int
    unfinished: int
    best_value: float | None
    on_queries: str = ""


@dataclass(frozen=True)
class References:
    """What the studies of a database need of what can be made again.

    Attributes:
        embeddings: names of artifacts.
        study_files: the texts that the studies were made and gone on with.
    """

    embeddings: frozenset[str]
    study_files: tuple[str, ...]


def references(url: str) -> References:
    """What must not be cleaned away while the studies of a database are there.

    Raises:
        StorageError: there is no such database, no study in it, or no access.
    """
    database, engine = _open(url)
    with database.friendly(), Session(engine) as session:
        alive = sa.select(StudyRow.id).where(is_alive())
        names = sa.select(TrialRow.embeddings).where(TrialRow.study_id.in_(alive), TrialRow.embeddings.is_not(None))
        texts = list(session.scalars(sa.select(StudyRow.study_file).where(is_alive())))
        later = session.scalars(sa.select(HistoryRow.detail).where(HistoryRow.study_id.in_(alive)))
        texts += [detail["study_file"] for detail in later if "study_file" in detail]
        return References(frozenset(session.scalars(names)), tuple(texts))


def list_studies(url: str) -> list[StudySummary]:
    """The studies that mergesearch keeps in a database, oldest first.

    Raises:
        StorageError: there is no such database, no study in it, or no access.
    """
    database, engine = _open(url)

    def count(condition: sa.ColumnElement[bool]) -> sa.ColumnElement[int]:
        return sa.func.count(TrialRow.id).filter(condition)

    query = (
        sa.select(
            StudyRow.name,
            StudyRow.file_name,
            StudyRow.created_at,
            count(TrialRow.outcome == "complete"),
            count(TrialRow.outcome == "pruned"),
            count(TrialRow.outcome == "fail"),
            count(TrialRow.outcome.is_(None)),
            sa.func.max(TrialRow.value).filter(TrialRow.outcome == "complete"),
        )
        .outerjoin(TrialRow, TrialRow.study_id == StudyRow.id)
        .where(is_alive())
        .group_by(StudyRow.id, StudyRow.name, StudyRow.file_name, StudyRow.created_at)
        .order_by(StudyRow.id)
    )
    with database.friendly(), Session(engine) as session:
        guarded = _highest_kept(session)
        rows = session.execute(sa.select(StudyRow).where(is_alive())).scalars()
        on = {row.name: record_of(row).on_queries for row in rows}
        return [
            StudySummary(
                name,
                file_name,
                in_utc(made),
                complete,
                pruned,
                failed,
                unfinished,
                guarded.get(name, best),
                on.get(name, ""),
            )
            for name, file_name, made, complete, pruned, failed, unfinished, best in session.execute(query)
        ]


def _highest_kept(session: Session) -> dict[str, float | None]:
    """Of studies with guards the highest score of a trial that these keep, by name."""
    attribute = trial_user_attributes.c
    query = (
        sa.select(StudyRow.name, TrialRow.value, attribute.value_json)
        .join(TrialRow, TrialRow.study_id == StudyRow.id)
        .join(trial_user_attributes, attribute.trial_id == TrialRow.optuna_trial_id)
        .where(is_alive(), attribute.key == EXCESS_ATTR, TrialRow.outcome == "complete")
    )
    found: dict[str, float | None] = {}
    for name, value, excess in session.execute(query):
        known = found.setdefault(name, None)
        if all(lost <= 0 for lost in json.loads(excess).values()) and (known is None or value > known):
            found[name] = value
    return found


def _open(url: str) -> tuple[Database, sa.Engine]:
    database = Database.parse(url)
    if database.path is not None and not database.path.is_file():
        raise StorageError(f"there is no study database {database.path}. Start one: mergesearch run STUDY.yaml")
    engine = database.engine()
    schema.prepare(database, engine, create=False)
    return database, engine
