"""Alembic's migrations; `orchestrator.store.migrate` runs them."""
