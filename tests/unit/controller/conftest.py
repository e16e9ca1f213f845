"""Controller tests run on both databases."""

import shutil

import pytest

from orchestrator.store.engine import Database
from orchestrator.store.store import Store
from tests.databases import database_url, postgres, sqlite_template, store
from tests.unit.controller.platform import Platform

__all__ = ["database_url", "platform", "postgres", "sqlite_template", "store"]


@pytest.fixture
def platform(store, tmp_path) -> Platform:
    return Platform(store, tmp_path)


@pytest.fixture
def sqlite_platform(sqlite_template, tmp_path):
    """For what does not hang on the database, and is asked often."""
    path = tmp_path / "bulkhead.db"
    shutil.copy(sqlite_template, path)
    database = Database(f"sqlite:///{path}")
    yield Platform(Store(database), tmp_path)
    database.dispose()
