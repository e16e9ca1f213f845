"""Volumes."""

from __future__ import annotations

from sqlmodel import Field, SQLModel

from orchestrator.store.tables.columns import big, id_key, listed, live_unique, refers


class VolumeRow(SQLModel, table=True):
    """One encrypted volume."""

    __tablename__ = "volume"
    __table_args__ = (live_unique("volume_name", "tenant_id", "name"), listed("volume_list"))
    id: str = id_key()
    tenant_id: str = refers("tenant.id", index=False)
    name: str = Field(max_length=70)
    size_gib: int
    image_id: str | None = refers("image.id", nullable=True, index=False)
    state: str = Field(max_length=16)
    generation: int = big(1)
    host_id: str | None = refers("host.id", nullable=True)
    instance_id: str | None = refers("instance.id", nullable=True)
    #: The boot volume of its instance: made and deleted with it.
    boot: bool = False
    created_ms: int = big()
