"""What a re-ranker's scores were fused with: its share λ in the scores of a trial.

Revision ID: 0005
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

TRIALS = "mergesearch_trials"


def upgrade() -> None:
    op.add_column(TRIALS, sa.Column("fusion", sa.Double))


def downgrade() -> None:
    op.drop_column(TRIALS, "fusion")
