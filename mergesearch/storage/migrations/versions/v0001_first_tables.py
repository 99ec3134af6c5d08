"""First tables.

Revision ID: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "mergesearch_studies",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("uid", sa.String(36), nullable=False, unique=True),
        sa.Column("name", sa.String(512), nullable=False, index=True),
        sa.Column("score_relevant", sa.JSON, nullable=False),
        sa.Column("other", sa.JSON, nullable=False),
        sa.Column("study_file", sa.Text, nullable=False),
        sa.Column("file_name", sa.Text, nullable=False),
        sa.Column("versions", sa.JSON, nullable=False),
        _now("created_at"),
    )
    op.create_table(
        "mergesearch_history",
        sa.Column("id", sa.Integer, primary_key=True),
        _belongs_to("study_id", "mergesearch_studies"),
        sa.Column("event", sa.String(64), nullable=False),
        sa.Column("detail", sa.JSON, nullable=False),
        _now("at"),
    )
    op.create_table(
        "mergesearch_trials",
        sa.Column("id", sa.Integer, primary_key=True),
        _belongs_to("study_id", "mergesearch_studies", index=False),
        sa.Column("logical_id", sa.String(255), nullable=False),
        sa.Column("optuna_trial_id", sa.Integer, nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("recipe", sa.JSON, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("lease_epoch", sa.Integer, nullable=False),
        sa.Column("lease_owner", sa.Text),
        sa.Column("leased_at", sa.DateTime(timezone=True)),
        sa.Column("outcome", sa.String(16)),
        sa.Column("value", sa.Double),
        sa.Column("reason", sa.Text),
        sa.Column("seconds", sa.JSON),
        sa.Column("tokens", sa.BigInteger),
        sa.Column("worker", sa.Text),
        sa.Column("notes", sa.JSON),
        _now("created_at"),
        sa.Column("finished_at", sa.DateTime(timezone=True)),
        sa.UniqueConstraint("study_id", "logical_id", name="uq_mergesearch_trials_logical_id"),
        sa.UniqueConstraint("study_id", "number", name="uq_mergesearch_trials_number"),
    )
    op.create_index("ix_mergesearch_trials_fingerprint", "mergesearch_trials", ["study_id", "fingerprint"])
    op.create_table(
        "mergesearch_query_sets",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("digest", sa.String(64), nullable=False, unique=True),
        sa.Column("query_ids", sa.JSON, nullable=False),
    )
    op.create_table(
        "mergesearch_scores",
        sa.Column("id", sa.Integer, primary_key=True),
        _belongs_to("trial_id", "mergesearch_trials", index=False),
        sa.Column("position", sa.Integer, nullable=False),
        *_scores(),
        sa.UniqueConstraint("trial_id", "collection", "metric", name="uq_mergesearch_scores_trial"),
    )
    op.create_table(
        "mergesearch_late_results",
        sa.Column("id", sa.Integer, primary_key=True),
        _belongs_to("trial_id", "mergesearch_trials"),
        sa.Column("epoch", sa.Integer),
        sa.Column("worker", sa.Text),
        sa.Column("value", sa.Double),
        sa.Column("reason", sa.Text, nullable=False),
        _now("at"),
    )
    op.create_table(
        "mergesearch_test_readings",
        sa.Column("id", sa.Integer, primary_key=True),
        _belongs_to("study_id", "mergesearch_studies"),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("fingerprint", sa.String(64)),
        sa.Column("command", sa.Text, nullable=False),
        sa.Column("split", sa.Text, nullable=False),
        *_scores(),
        _now("at"),
    )


def downgrade() -> None:
    for name in ("test_readings", "late_results", "scores", "query_sets", "trials", "history", "studies"):
        op.drop_table(f"mergesearch_{name}")


def _now(name: str) -> sa.Column[object]:
    return sa.Column(name, sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False)


def _belongs_to(name: str, table: str, *, index: bool = True) -> sa.Column[int]:
    return sa.Column(name, sa.Integer, sa.ForeignKey(f"{table}.id", ondelete="CASCADE"), nullable=False, index=index)


def _scores() -> tuple[sa.Column[object], ...]:
    return (
        sa.Column("collection", sa.String(255), nullable=False),
        sa.Column("metric", sa.String(64), nullable=False),
        sa.Column("weight", sa.Double, nullable=False),
        sa.Column("query_set_id", sa.Integer, sa.ForeignKey("mergesearch_query_sets.id"), nullable=False),
        sa.Column("scores", sa.LargeBinary, nullable=False),
    )
