"""Column kinds that all tables share. Table classes do not validate; values are checked before they come."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, BigInteger, ForeignKeyConstraint, Index, LargeBinary, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlmodel import Field

#: JSON on both databases; PostgreSQL's binary form can be compared and indexed.
JSON_TYPE = JSON().with_variant(JSONB(), "postgresql")


def id_key(**more: Any) -> Any:
    """A text primary key that holds one of our ids."""
    return Field(primary_key=True, max_length=44, **more)


def refers(target: str, *, nullable: bool = False, index: bool = True, **more: Any) -> Any:
    """A reference to another table's id."""
    extra = {"default": None, **more} if nullable else more
    return Field(foreign_key=target, nullable=nullable, index=index, max_length=44, **extra)


def big(default: Any = ..., **more: Any) -> Any:
    """A 64-bit number: milliseconds, sequence numbers, generations, sizes."""
    return Field(default=default, sa_type=BigInteger, **more)


def blob(default: Any = ..., **more: Any) -> Any:
    """Exact bytes."""
    return Field(default=default, sa_type=LargeBinary, **more)


def document(default: Any = ..., **more: Any) -> Any:
    """A JSON value."""
    return Field(default=default, sa_type=JSON_TYPE, **more)


def live_unique(name: str, *columns: str) -> Index:
    """An index that lets a name be taken again once its holder is deleted."""
    alive = text("state <> 'deleted'")
    return Index(name, *columns, unique=True, sqlite_where=alive, postgresql_where=alive)


def listed(name: str, born: str = "created_ms") -> Index:
    """An index in the order of a tenant's list, for its pages; what asks for the tenant alone uses it too."""
    return Index(name, "tenant_id", born, "id")


__all__ = ["ForeignKeyConstraint", "big", "blob", "document", "id_key", "listed", "live_unique", "refers"]
