"""The migrations make exactly the tables that the code knows; running them again changes nothing."""

from __future__ import annotations

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlmodel import SQLModel

from orchestrator.model.errors import InvalidInputError
from orchestrator.store import migrate
from orchestrator.store.engine import Database


def test_migrated_schema_is_the_tables(store):
    with store.database.reading() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        differences = [
            each
            for each in compare_metadata(context, SQLModel.metadata)
            # SQLite's foreign keys have no names to be compared by.
            if not (store.database.kind == "sqlite" and str(each[0]).endswith("_fk"))
        ]
    assert differences == []


def test_bringing_it_up_again_keeps_what_is_there(store):
    before = store.prepare()
    assert store.prepare() == before
    assert migrate.is_current(store.database)


@pytest.mark.parametrize("url", ["sqlite://", "mysql://x/y", "nonsense", "sqlite:///:memory:"])
def test_a_wrong_url_is_refused_without_being_shown(url):
    with pytest.raises(InvalidInputError) as refused:
        Database(url)
    assert refused.value.code == "store.url"
    assert "nonsense" not in str(refused.value)
