"""API tests run on SQLite; those about what the database does run on both kinds."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.store.engine import Database
from orchestrator.store.store import Store
from tests.api.deployment import Deployment, deploy
from tests.databases import database_url, postgres, sqlite_template, store

__all__ = ["database_url", "postgres", "sqlite_template", "store"]


@pytest.fixture
def sqlite_store(sqlite_template: Path, tmp_path: Path) -> Iterator[Store]:
    path = tmp_path / "bulkhead.db"
    shutil.copy(sqlite_template, path)
    database = Database(f"sqlite:///{path}")
    yield Store(database)
    database.dispose()


@pytest.fixture
def deployed(sqlite_store: Store, tmp_path: Path) -> Deployment:
    """On SQLite."""
    return deploy(sqlite_store, keys=tmp_path / "keys")


@pytest.fixture
def deployed_on_both(store: Store, tmp_path: Path) -> Deployment:
    return deploy(store, keys=tmp_path / "keys")
