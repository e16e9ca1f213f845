"""Principals (users, service accounts) and their tokens."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Index, UniqueConstraint, text
from sqlmodel import Field, SQLModel

from orchestrator.store.tables.columns import big, blob, document, id_key, refers

_HAS_SUBJECT = text("subject <> ''")


class PrincipalRow(SQLModel, table=True):
    """Who may ask; without a tenant it is one of the platform's."""

    __tablename__ = "principal"
    __table_args__ = (
        UniqueConstraint("tenant_id", "name", name="principal_name"),
        Index(
            "principal_subject",
            "issuer",
            "subject",
            unique=True,
            sqlite_where=_HAS_SUBJECT,
            postgresql_where=_HAS_SUBJECT,
        ),
    )
    id: str = id_key()
    tenant_id: str | None = refers("tenant.id", nullable=True)
    kind: str = Field(max_length=16)
    name: str = Field(max_length=63)
    roles: list[Any] = document()
    issuer: str = Field(default="", max_length=256)
    subject: str = Field(default="", max_length=256)
    disabled: bool = False
    created_ms: int = big()


class TokenRow(SQLModel, table=True):
    """A token's keyed hash; the secret is shown once and kept nowhere."""

    __tablename__ = "token"
    key_id: str = Field(primary_key=True, max_length=44)
    principal_id: str = refers("principal.id")
    name: str = Field(max_length=63)
    scopes: list[Any] = document()
    secret_hash: bytes = blob()
    created_ms: int = big()
    expires_ms: int = big()
    revoked_ms: int | None = big(None, nullable=True)
