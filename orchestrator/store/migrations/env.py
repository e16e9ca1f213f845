"""Alembic's entry: the connection comes from `orchestrator.store.migrate`."""

from __future__ import annotations

from alembic import context
from sqlmodel import SQLModel

import orchestrator.store.tables  # noqa: F401 - registers the tables

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=SQLModel.metadata,
    render_as_batch=connection.dialect.name == "sqlite",
    compare_type=True,
)
# The caller's transaction is the only one.
context.run_migrations()
