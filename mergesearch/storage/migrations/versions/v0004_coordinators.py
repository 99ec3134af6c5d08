"""Several coordinators may drive a study: who they are, which trials they hold, what is wanted of them.

Revision ID: 0004
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

COORDINATORS = "mergesearch_coordinators"
STUDIES = "mergesearch_studies"
TRIALS = "mergesearch_trials"


def upgrade() -> None:
    now = sa.func.now()
    op.create_table(
        COORDINATORS,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("study_id", sa.Integer, sa.ForeignKey(f"{STUDIES}.id", ondelete="CASCADE"), nullable=False),
        sa.Column("host", sa.Text, nullable=False),
        sa.Column("machine", sa.Text, nullable=False),
        sa.Column("pid", sa.Integer, nullable=False),
        sa.Column("process_started", sa.Double, nullable=False),
        sa.Column("lease_seconds", sa.Double, nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), server_default=now, nullable=False),
        sa.Column("heartbeat_at", sa.DateTime(timezone=True), server_default=now, nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True)),
    )
    op.create_index(f"ix_{COORDINATORS}_study_id", COORDINATORS, ["study_id"])
    op.add_column(STUDIES, sa.Column("wanted", sa.String(16), server_default="run", nullable=False))
    op.add_column(STUDIES, sa.Column("wanted_of", sa.Integer, server_default="0", nullable=False))
    # No foreign key: SQLite cannot add one to a table that is there.
    op.add_column(TRIALS, sa.Column("coordinator_id", sa.Integer))
    op.create_index(f"ix_{TRIALS}_open", TRIALS, ["study_id"], postgresql_where=sa.text("outcome IS NULL"),
                    sqlite_where=sa.text("outcome IS NULL"))  # fmt: skip


def downgrade() -> None:
    op.drop_index(f"ix_{TRIALS}_open", TRIALS)
    op.drop_column(TRIALS, "coordinator_id")
    op.drop_column(STUDIES, "wanted_of")
    op.drop_column(STUDIES, "wanted")
    op.drop_table(COORDINATORS)
