"""Alembic's environment and steps for our own tables; run by `mergesearch.storage.schema` only."""
