"""The studies of a database."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.orm import Session

from mergesearch.errors import StorageError
from mergesearch.storage import schema
from mergesearch.storage.engine import Database
from mergesearch.storage.opening import is_alive
from mergesearch.storage.tables import StudyRow, TrialRow, in_utc


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
        best_value: the highest score; None before the first.
    """

    name: str
    file_name: str
    created_at: datetime
    complete: int
    pruned: int
    failed: int
    unfinished: int
    best_value: float | None


def list_studies(url: str) -> list[StudySummary]:
    """The studies that mergesearch keeps in a database, oldest first.

    Raises:
        StorageError: there is no such database, no study in it, or no access.
    """
    database = Database.parse(url)
    if database.path is not None and not database.path.is_file():
        raise StorageError(f"there is no study database {database.path}. Start one: mergesearch run STUDY.yaml")
    engine = database.engine()
    schema.prepare(database, engine, create=False)

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
        return [
            StudySummary(name, file_name, in_utc(made), complete, pruned, failed, unfinished, best)
            for name, file_name, made, complete, pruned, failed, unfinished, best in session.execute(query)
        ]
