"""Store tests run on both databases."""

from tests.databases import database_url, postgres, sqlite_template, store

__all__ = ["database_url", "postgres", "sqlite_template", "store"]
