"""Brings a database's schema up to this version; safe to repeat, and from several controllers at once."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text

from orchestrator.store.engine import Database

#: Any fixed number: who holds this advisory lock migrates.
_LOCK = 0x62756C6B


def config() -> Config:
    """Alembic's configuration, without a file."""
    made = Config()
    made.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return made


def upgrade(database: Database, revision: str = "head") -> None:
    """Run the migrations that are missing."""
    made = config()
    with database.writing() as connection:
        if database.kind == "postgresql":
            connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
        made.attributes["connection"] = connection
        command.upgrade(made, revision)


def is_current(database: Database) -> bool:
    """Tell whether the schema is this version's."""
    head = ScriptDirectory.from_config(config()).get_current_head()
    with database.reading() as connection:
        return MigrationContext.configure(connection).get_current_revision() == head
