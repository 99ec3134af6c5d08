"""Losses of sources on a study's examples.

Revision ID: 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "mergesearch_losses",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column(
            "study_id",
            sa.Integer,
            sa.ForeignKey("mergesearch_studies.id", ondelete="CASCADE"),
            nullable=False,
            index=True,
        ),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("content_hash", sa.String(255), nullable=False),
        sa.Column("examples", sa.String(64), nullable=False),
        sa.Column("loss", sa.Double, nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.UniqueConstraint("study_id", "content_hash", "examples", name="uq_mergesearch_losses_content_hash"),
    )


def downgrade() -> None:
    op.drop_table("mergesearch_losses")
