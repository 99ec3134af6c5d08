"""Runs migrations on the connection that `mergesearch.storage.schema` hands over, inside its transaction."""

from __future__ import annotations

from alembic import context

from mergesearch.storage.tables import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    # Optuna keeps its own state in `alembic_version`.
    version_table="mergesearch_alembic_version",
    transactional_ddl=True,
)
context.run_migrations()
