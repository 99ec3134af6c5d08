"""What trials save: layers that were not run, looks after which they ended, embeddings that were kept.

Revision ID: 0003
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

TRIALS = "mergesearch_trials"
SCORES = "mergesearch_scores"


def upgrade() -> None:
    op.add_column(TRIALS, sa.Column("layer_tokens", sa.BigInteger))
    op.add_column(TRIALS, sa.Column("looks", sa.JSON))
    op.add_column(TRIALS, sa.Column("embeddings", sa.String(64)))
    op.add_column(TRIALS, sa.Column("estimate", sa.Double))
    op.add_column(TRIALS, sa.Column("stopped_by", sa.Integer))
    op.add_column(SCORES, sa.Column("looks", sa.LargeBinary))


def downgrade() -> None:
    op.drop_column(SCORES, "looks")
    for name in ("stopped_by", "estimate", "embeddings", "looks", "layer_tokens"):
        op.drop_column(TRIALS, name)
