"""Operations and idempotency keys."""

from __future__ import annotations

from typing import Any

from sqlmodel import Field, SQLModel

from orchestrator.store.tables.columns import big, document, id_key, listed, refers


class OperationRow(SQLModel, table=True):
    """One piece of work that outlives its request."""

    __tablename__ = "operation"
    __table_args__ = (listed("operation_list"),)
    id: str = id_key()
    tenant_id: str | None = refers("tenant.id", nullable=True, index=False)
    kind: str = Field(max_length=63)
    subject_kind: str = Field(max_length=32)
    subject_id: str = Field(max_length=44, index=True)
    state: str = Field(max_length=16)
    steps: list[Any] = document()
    error: dict[str, Any] | None = document(None, nullable=True)
    result: dict[str, Any] | None = document(None, nullable=True)
    principal_id: str = Field(max_length=44)
    request_id: str = Field(default="", max_length=64)
    created_ms: int = big()
    finished_ms: int | None = big(None, nullable=True)


class IdempotencyRow(SQLModel, table=True):
    """What a key made; the same key and body gives the same answer for a day."""

    __tablename__ = "idempotency_key"
    #: The platform's own calls have the empty tenant.
    tenant_id: str = Field(primary_key=True, max_length=44)
    principal_id: str = Field(primary_key=True, max_length=44)
    route: str = Field(primary_key=True, max_length=120)
    key: str = Field(primary_key=True, max_length=128)
    #: HMAC-SHA-256: bodies hold secrets, and a plain hash lets whoever has a dump try guesses.
    body_mac: str = Field(max_length=64)
    operation_id: str | None = Field(default=None, max_length=44)
    subject_id: str = Field(max_length=44)
    created_ms: int = big(index=True)
