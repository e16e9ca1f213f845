"""Instances, their requests for capacity and what they were given."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Index, UniqueConstraint, text
from sqlmodel import Field, SQLModel

from orchestrator.store.tables.columns import big, document, id_key, listed, live_unique, refers


class InstanceRow(SQLModel, table=True):
    """One VM of a tenant."""

    __tablename__ = "instance"
    __table_args__ = (live_unique("instance_name", "tenant_id", "name"), listed("instance_list"))
    id: str = id_key()
    tenant_id: str = refers("tenant.id", index=False)
    name: str = Field(max_length=63)
    generation: int = big(1)
    state: str = Field(max_length=16)
    desired: str = Field(max_length=8)
    type_name: str = Field(max_length=63)
    image_id: str = refers("image.id", index=False)
    vcpus: int
    memory_mib: int = big()
    page_size_kib: int
    threads_per_core: int
    gpus: int
    gpu_model: str | None = Field(default=None, max_length=9)
    disk_gib: int
    isolation: str = Field(max_length=16)
    firmware: str = Field(max_length=8)
    #: The text itself lies sealed in a table of its own.
    user_data_bytes: int = 0
    host_id: str | None = refers("host.id", nullable=True)
    placement: dict[str, Any] | None = document(None, nullable=True)
    error: dict[str, Any] | None = document(None, nullable=True)
    evidence: dict[str, Any] | None = document(None, nullable=True)
    failures: int = 0
    on_drain: str = Field(default="stop", max_length=8)
    drain_deadline_s: int | None = None
    #: When, why and with what loss it was last built anew on another host.
    rebuilt: dict[str, Any] | None = document(None, nullable=True)
    operation_id: str | None = Field(default=None, max_length=44)
    created_ms: int = big()
    updated_ms: int = big()


class RequestRow(SQLModel, table=True):
    """One wait for capacity."""

    __tablename__ = "request"
    __table_args__ = (
        Index(
            "request_waiting",
            "submitted_ms",
            "id",
            sqlite_where=text("state = 'waiting'"),
            postgresql_where=text("state = 'waiting'"),
        ),
        listed("request_list", "submitted_ms"),
        Index("request_all", "submitted_ms", "id"),
    )
    id: str = id_key()
    tenant_id: str = refers("tenant.id", index=False)
    instance_id: str = refers("instance.id")
    state: str = Field(max_length=16)
    on_no_capacity: str = Field(max_length=8)
    reason: dict[str, Any] | None = document(None, nullable=True)
    reason_ms: int | None = big(None, nullable=True)
    submitted_ms: int = big()
    decided_ms: int | None = big(None, nullable=True)


class ClaimRow(SQLModel, table=True):
    """One unit of one host that one instance holds; the database refuses a second holder."""

    __tablename__ = "claim"
    __table_args__ = (UniqueConstraint("host_id", "kind", "unit", name="claim_unit"),)
    id: str = id_key()
    host_id: str = refers("host.id")
    kind: str = Field(max_length=16)
    unit: str = Field(max_length=64)
    tenant_id: str = refers("tenant.id")
    instance_id: str = refers("instance.id")
