"""Our own tables, beside Optuna's in the same database.

Optuna's tables hold parameters, state, value and small attributes, and refuse changes to finished trials.
What is larger, what comes later, and what makes every trial end exactly once lives here. Rows refer to
Optuna's by plain numbers without foreign keys, so that optuna-dashboard may delete a study; a unique id
stored on both sides tells a study from a later one of the same name or number.

Times are the database's clock, in UTC. Changes here need a new file in migrations/versions.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from optuna.trial import TrialState
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

# Optuna's, whose layout has not changed since 3.2: only what is read or written past it.
studies = sa.table("studies", sa.column("study_id"), sa.column("study_name"))
trials = sa.table(
    "trials",
    sa.column("trial_id"),
    sa.column("study_id"),
    sa.column("number"),
    sa.column("state", sa.Enum(TrialState, name="trialstate")),
    sa.column("datetime_start", sa.DateTime),
    sa.column("datetime_complete", sa.DateTime),
)
study_user_attributes = sa.table(
    "study_user_attributes", sa.column("study_id"), sa.column("key"), sa.column("value_json")
)
study_system_attributes = sa.table(
    "study_system_attributes", sa.column("study_id"), sa.column("key"), sa.column("value_json")
)
trial_user_attributes = sa.table(
    "trial_user_attributes", sa.column("trial_id"), sa.column("key"), sa.column("value_json")
)
trial_system_attributes = sa.table(
    "trial_system_attributes", sa.column("trial_id"), sa.column("key"), sa.column("value_json")
)
trial_params = sa.table(
    "trial_params",
    sa.column("trial_id"),
    sa.column("param_name"),
    sa.column("param_value", sa.Double),
    sa.column("distribution_json"),
)
trial_intermediate_values = sa.table(
    "trial_intermediate_values",
    sa.column("trial_id"),
    sa.column("step"),
    sa.column("intermediate_value", sa.Double),
    sa.column("intermediate_value_type", sa.Enum("FINITE", name="trialintermediatevaluetype")),
)


class Base(DeclarativeBase):
    """Root of our table classes."""


def in_utc(at: datetime) -> datetime:
    """A time of the database with its zone: SQLite keeps UTC without saying so."""
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)


def _now() -> Mapped[datetime]:
    return mapped_column(sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False)


def _belongs_to(table: str) -> Mapped[int]:
    return mapped_column(sa.ForeignKey(f"{table}.id", ondelete="CASCADE"), nullable=False, index=True)


class StudyRow(Base):
    """A study: what made it, what may never change while it lives, and what is wanted of those who drive it.

    `wanted` is `run`, `pause`, `drain` or `stop`; the last two bind coordinators up to the id `wanted_of` only. `uid`
    is also a system attribute of Optuna's study; a row without that counterpart is of a deleted study.
    """

    __tablename__ = "mergesearch_studies"

    id: Mapped[int] = mapped_column(primary_key=True)
    uid: Mapped[str] = mapped_column(sa.String(36), unique=True)
    name: Mapped[str] = mapped_column(sa.String(512), index=True)
    score_relevant: Mapped[dict[str, Any]] = mapped_column(sa.JSON)
    other: Mapped[dict[str, Any]] = mapped_column(sa.JSON)
    study_file: Mapped[str] = mapped_column(sa.Text)
    file_name: Mapped[str] = mapped_column(sa.Text)
    versions: Mapped[dict[str, Any]] = mapped_column(sa.JSON)
    wanted: Mapped[str] = mapped_column(sa.String(16), server_default="run")
    wanted_of: Mapped[int] = mapped_column(server_default="0")
    created_at: Mapped[datetime] = _now()


class CoordinatorRow(Base):
    """A process that drives a study or did. It is alive while its heartbeat is younger than its lease.

    `session` is what the server knows its connections by (PostgreSQL's `application_name`). `machine` names the set of
    processes among which `pid` and `process_started` (its age by the machine's own count) tell whether it still exists:
    those of a user on a boot of a machine, or of a container on it.
    """

    __tablename__ = "mergesearch_coordinators"

    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = _belongs_to("mergesearch_studies")
    session: Mapped[str] = mapped_column(sa.Text)
    host: Mapped[str] = mapped_column(sa.Text)
    machine: Mapped[str] = mapped_column(sa.Text)
    pid: Mapped[int]
    process_started: Mapped[float] = mapped_column(sa.Double)
    lease_seconds: Mapped[float] = mapped_column(sa.Double)
    started_at: Mapped[datetime] = _now()
    heartbeat_at: Mapped[datetime] = _now()
    ended_at: Mapped[datetime | None] = mapped_column(sa.DateTime(timezone=True))


class HistoryRow(Base):
    """Something that happened to a study: it was resumed, and what was different then."""

    __tablename__ = "mergesearch_history"

    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = _belongs_to("mergesearch_studies")
    event: Mapped[str] = mapped_column(sa.String(64))
    detail: Mapped[dict[str, Any]] = mapped_column(sa.JSON)
    at: Mapped[datetime] = _now()


class TrialRow(Base):
    """A logical trial: written with Optuna's trial in one transaction, ended with it in one transaction.

    `outcome` is NULL while the trial runs, then `complete`, `pruned` or `fail`, and never changes again. `lease_epoch`
    counts the leases given; only the newest may end the trial. It lives as long as the coordinator that holds it.
    """

    __tablename__ = "mergesearch_trials"
    __table_args__ = (
        sa.UniqueConstraint("study_id", "logical_id", name="uq_mergesearch_trials_logical_id"),
        sa.UniqueConstraint("study_id", "number", name="uq_mergesearch_trials_number"),
        sa.Index("ix_mergesearch_trials_fingerprint", "study_id", "fingerprint"),
        sa.Index(
            "ix_mergesearch_trials_open",
            "study_id",
            postgresql_where=sa.text("outcome IS NULL"),
            sqlite_where=sa.text("outcome IS NULL"),
        ),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(sa.ForeignKey("mergesearch_studies.id", ondelete="CASCADE"), nullable=False)
    logical_id: Mapped[str] = mapped_column(sa.String(255))
    optuna_trial_id: Mapped[int]
    number: Mapped[int]
    fingerprint: Mapped[str] = mapped_column(sa.String(64))
    recipe: Mapped[dict[str, Any]] = mapped_column(sa.JSON)
    attempts: Mapped[int] = mapped_column(default=0)
    coordinator_id: Mapped[int | None]
    lease_epoch: Mapped[int] = mapped_column(default=0)
    lease_owner: Mapped[str | None] = mapped_column(sa.Text)
    leased_at: Mapped[datetime | None] = mapped_column(sa.DateTime(timezone=True))
    outcome: Mapped[str | None] = mapped_column(sa.String(16))
    value: Mapped[float | None] = mapped_column(sa.Double)
    reason: Mapped[str | None] = mapped_column(sa.Text)
    seconds: Mapped[dict[str, float] | None] = mapped_column(sa.JSON(none_as_null=True))
    tokens: Mapped[int | None] = mapped_column(sa.BigInteger)
    worker: Mapped[str | None] = mapped_column(sa.Text)
    notes: Mapped[list[str] | None] = mapped_column(sa.JSON(none_as_null=True))
    layer_tokens: Mapped[int | None] = mapped_column(sa.BigInteger)
    looks: Mapped[list[list[float]] | None] = mapped_column(sa.JSON(none_as_null=True))
    estimate: Mapped[float | None] = mapped_column(sa.Double)
    stopped_by: Mapped[int | None]
    embeddings: Mapped[str | None] = mapped_column(sa.String(64))
    fusion: Mapped[float | None] = mapped_column(sa.Double)
    created_at: Mapped[datetime] = _now()
    finished_at: Mapped[datetime | None] = mapped_column(sa.DateTime(timezone=True))


class QuerySetRow(Base):
    """A list of query ids that scores refer to; stored once, never changed."""

    __tablename__ = "mergesearch_query_sets"

    id: Mapped[int] = mapped_column(primary_key=True)
    digest: Mapped[str] = mapped_column(sa.String(64), unique=True)
    query_ids: Mapped[list[str]] = mapped_column(sa.JSON)


class ScoreRow(Base):
    """Scores of one trial on one collection: little-endian float64, one per query of the query set.

    `looks` holds those after every look but the last, one look after the other: little-endian float32, NaN for queries
    not looked at; NULL without looks, and of trials that were stopped.
    """

    __tablename__ = "mergesearch_scores"
    __table_args__ = (sa.UniqueConstraint("trial_id", "collection", "metric", name="uq_mergesearch_scores_trial"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    trial_id: Mapped[int] = mapped_column(sa.ForeignKey("mergesearch_trials.id", ondelete="CASCADE"), nullable=False)
    position: Mapped[int]
    collection: Mapped[str] = mapped_column(sa.String(255))
    metric: Mapped[str] = mapped_column(sa.String(64))
    weight: Mapped[float] = mapped_column(sa.Double)
    query_set_id: Mapped[int] = mapped_column(sa.ForeignKey("mergesearch_query_sets.id"))
    scores: Mapped[bytes] = mapped_column(sa.LargeBinary)
    looks: Mapped[bytes | None] = mapped_column(sa.LargeBinary)


class LateResultRow(Base):
    """A result that came after its trial had ended, or under a lease that had been given to another."""

    __tablename__ = "mergesearch_late_results"

    id: Mapped[int] = mapped_column(primary_key=True)
    trial_id: Mapped[int] = _belongs_to("mergesearch_trials")
    epoch: Mapped[int | None]
    worker: Mapped[str | None] = mapped_column(sa.Text)
    value: Mapped[float | None] = mapped_column(sa.Double)
    reason: Mapped[str] = mapped_column(sa.Text)
    at: Mapped[datetime] = _now()


class ReadingRow(Base):
    """One reading of a test split: who was scored, by which command, and the scores."""

    __tablename__ = "mergesearch_test_readings"

    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = _belongs_to("mergesearch_studies")
    subject: Mapped[str] = mapped_column(sa.Text)
    fingerprint: Mapped[str | None] = mapped_column(sa.String(64))
    command: Mapped[str] = mapped_column(sa.Text)
    split: Mapped[str] = mapped_column(sa.Text)
    collection: Mapped[str] = mapped_column(sa.String(255))
    metric: Mapped[str] = mapped_column(sa.String(64))
    weight: Mapped[float] = mapped_column(sa.Double)
    query_set_id: Mapped[int] = mapped_column(sa.ForeignKey("mergesearch_query_sets.id"))
    scores: Mapped[bytes] = mapped_column(sa.LargeBinary)
    at: Mapped[datetime] = _now()


class LossRow(Base):
    """The loss of one source on one set of examples, measured once."""

    __tablename__ = "mergesearch_losses"
    __table_args__ = (
        sa.UniqueConstraint("study_id", "content_hash", "examples", name="uq_mergesearch_losses_content_hash"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = _belongs_to("mergesearch_studies")
    source: Mapped[str] = mapped_column(sa.Text)
    content_hash: Mapped[str] = mapped_column(sa.String(255))
    examples: Mapped[str] = mapped_column(sa.String(64))
    loss: Mapped[float] = mapped_column(sa.Double)
    at: Mapped[datetime] = _now()
