"""Instance types and images."""

from __future__ import annotations

from sqlmodel import Field, SQLModel

from orchestrator.store.tables.columns import big, id_key, refers


class InstanceTypeRow(SQLModel, table=True):
    """A shape that tenants choose by name."""

    __tablename__ = "instance_type"
    id: str = id_key()
    name: str = Field(max_length=63, unique=True)
    vcpus: int
    memory_mib: int = big()
    page_size_kib: int
    threads_per_core: int = 1
    gpus: int = 0
    gpu_model: str | None = Field(default=None, max_length=9)
    disk_gib: int
    isolation: str = Field(max_length=16)
    created_ms: int = big()


class ImageRow(SQLModel, table=True):
    """An image by content."""

    __tablename__ = "image"
    id: str = id_key()
    name: str = Field(max_length=63, unique=True)
    tenant_id: str | None = refers("tenant.id", nullable=True)
    digest: str = Field(max_length=71)
    size_bytes: int = big()
    firmware: str = Field(max_length=8)
    created_ms: int = big()
