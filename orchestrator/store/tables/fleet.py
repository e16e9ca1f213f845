"""Hosts, their memory, their GPUs, and orders to remove things from them."""

from __future__ import annotations

from typing import Any

from sqlalchemy import CheckConstraint, ForeignKeyConstraint, Index, UniqueConstraint, text
from sqlmodel import Field, SQLModel

from orchestrator.store.tables.columns import big, document, id_key, refers


class HostRow(SQLModel, table=True):
    """One GPU host."""

    __tablename__ = "host"
    __table_args__ = (
        CheckConstraint("used_disk_gib >= 0 AND used_disk_gib <= disk_gib", name="host_disk"),
        Index(
            "host_name",
            "name",
            unique=True,
            sqlite_where=text("state <> 'removed'"),
            postgresql_where=text("state <> 'removed'"),
        ),
    )
    id: str = id_key()
    name: str = Field(max_length=63)
    state: str = Field(max_length=16)
    generation: int = big(1)
    revision: int = big(1)
    applied_epoch: int = big(0)
    applied_revision: int = big(0)
    boot_id: str = Field(default="", max_length=64)
    agent_version: str = Field(default="", max_length=64)
    reason: str = Field(default="", max_length=512)
    disk_gib: int = big(0)
    used_disk_gib: int = big(0)
    created_ms: int = big()
    reported_ms: int | None = big(None, nullable=True)
    #: When some controller heard its agent, to the minute; between two writes only memory knows.
    heard_ms: int | None = big(None, nullable=True)
    error: dict[str, Any] | None = document(None, nullable=True)
    strays: list[Any] = document([])
    evidence: dict[str, Any] | None = document(None, nullable=True)
    drain: dict[str, Any] | None = document(None, nullable=True)
    #: The doctor's last word in short; every finding of it is a row of `host_doctor`.
    doctor: dict[str, Any] | None = document(None, nullable=True)
    doctor_asked_ms: int | None = big(None, nullable=True)
    cordoned_by: str = Field(default="", max_length=16)
    #: The operation that rebuilds its instances elsewhere, while one does.
    evacuation_id: str | None = Field(default=None, max_length=44)


class HostDoctorRow(SQLModel, table=True):
    """What a host's doctor found last, whole: read only when somebody looks."""

    __tablename__ = "host_doctor"
    host_id: str = Field(primary_key=True, foreign_key="host.id", max_length=44)
    boot_id: str = Field(default="", max_length=128)
    findings: list[Any] = document([])
    passes_left_out: int = big(0)


class HostFactsRow(SQLModel, table=True):
    """What a host is made of, apart from its row: this is large and stays, the row is written often."""

    __tablename__ = "host_facts"
    host_id: str = Field(primary_key=True, foreign_key="host.id", max_length=44)
    #: SHA-256 of its CPUs' part, hex: what most hosts of a fleet have in common.
    topology: str = Field(max_length=64)
    facts: dict[str, Any] = document({})


class HostMemoryRow(SQLModel, table=True):
    """Pages of one size on one node; the database refuses to give out more than there are."""

    __tablename__ = "host_memory"
    __table_args__ = (CheckConstraint("used >= 0 AND used <= total", name="host_memory_used"),)
    host_id: str = Field(primary_key=True, foreign_key="host.id", max_length=44)
    node: int = Field(primary_key=True)
    page_size_kib: int = Field(primary_key=True)
    total: int = big()
    used: int = big(0)


class GpuEdgeRow(SQLModel, table=True):
    """A step that a GPU may take; anything else breaks a foreign key."""

    __tablename__ = "gpu_edge"
    before: str = Field(primary_key=True, max_length=16)
    after: str = Field(primary_key=True, max_length=16)


class GpuRow(SQLModel, table=True):
    """One GPU of the pool."""

    __tablename__ = "gpu"
    __table_args__ = (
        ForeignKeyConstraint(["previous", "state"], ["gpu_edge.before", "gpu_edge.after"], name="gpu_step"),
        UniqueConstraint("host_id", "address", name="gpu_address"),
        Index("gpu_list", "created_ms", "id"),
        CheckConstraint(
            "(state IN ('claimed', 'exposed', 'releasing')) = (instance_id IS NOT NULL) OR "
            "state IN ('quarantined', 'missing')",
            name="gpu_holder",
        ),
    )
    id: str = id_key()
    host_id: str = refers("host.id")
    address: str = Field(max_length=16)
    vendor: str = Field(max_length=4)
    device: str = Field(max_length=4)
    serial: str = Field(default="", max_length=64)
    node: int
    previous: str = Field(max_length=16)
    state: str = Field(max_length=16)
    tenancy: int = big(0)
    tenant_id: str | None = refers("tenant.id", nullable=True)
    instance_id: str | None = refers("instance.id", nullable=True)
    evidence: dict[str, Any] | None = document(None, nullable=True)
    reason: str = Field(default="", max_length=512)
    generation: int = big(1)
    created_ms: int = big()


class StaleInstanceRow(SQLModel, table=True):
    """What a host may still run of an instance that lives elsewhere by now, and holds until that is gone."""

    __tablename__ = "stale_instance"
    __table_args__ = (UniqueConstraint("host_id", "instance_id", name="stale_once"),)
    id: str = id_key()
    host_id: str = refers("host.id", index=False)
    instance_id: str = refers("instance.id")
    tenant_id: str = refers("tenant.id")
    #: The last one that the host can have heard of.
    generation: int = big()
    placement: dict[str, Any] = document()
    page_size_kib: int
    #: Its boot volume of then, which goes with it.
    volume_id: str | None = refers("volume.id", index=False, nullable=True)
    volume_generation: int = big(0)
    disk_gib: int = 0
    created_ms: int = big()


class RemovalRow(SQLModel, table=True):
    """An order to one host that something must be gone; it stays until the host says that it is."""

    __tablename__ = "removal"
    __table_args__ = (
        Index(
            "removal_open",
            "host_id",
            sqlite_where=text("done_ms IS NULL"),
            postgresql_where=text("done_ms IS NULL"),
        ),
        UniqueConstraint("host_id", "kind", "subject_id", "generation", name="removal_once"),
    )
    id: str = id_key()
    host_id: str = refers("host.id", index=False)
    kind: str = Field(max_length=16)
    subject_id: str = Field(max_length=44, index=True)
    generation: int = big()
    #: None for what an operator orders away without knowing whose it was.
    tenant_id: str | None = refers("tenant.id", index=False, nullable=True)
    ordered_ms: int = big()
    done_ms: int | None = big(None, nullable=True)
