"""Tenants and their quotas."""

from __future__ import annotations

from sqlalchemy import CheckConstraint
from sqlmodel import Field, SQLModel

from orchestrator.model.quota import DIMENSIONS
from orchestrator.store.tables.columns import big, id_key, live_unique


class DeploymentRow(SQLModel, table=True):
    """The one deployment that this database is: agents refuse orders of another."""

    __tablename__ = "deployment"
    id: str = id_key()
    #: Raised by a restore, so that no agent follows an order from before it.
    epoch: int = big()
    #: After a restore agents only look until an operator says go.
    observe_only: bool = False
    created_ms: int = big()


class TenantRow(SQLModel, table=True):
    """One tenant."""

    __tablename__ = "tenant"
    __table_args__ = (live_unique("tenant_name", "name"),)
    id: str = id_key()
    name: str = Field(max_length=63)
    state: str = Field(max_length=16)
    generation: int = big(1)
    key_version: int = 0
    created_ms: int = big()
    #: Of a deleted tenant: since when no key of it is left.
    keys_destroyed_ms: int | None = big(None, nullable=True)


class QuotaRow(SQLModel, table=True):
    """What a tenant may use and does use; one row, so that one UPDATE reserves all of it or nothing."""

    __tablename__ = "quota"
    __table_args__ = tuple(
        CheckConstraint(f"used_{name} >= 0 AND used_{name} <= limit_{name}", name=f"quota_{name}")
        for name in DIMENSIONS
    )
    tenant_id: str = Field(primary_key=True, foreign_key="tenant.id", max_length=44)
    limit_instances: int = big(0)
    used_instances: int = big(0)
    limit_vcpus: int = big(0)
    used_vcpus: int = big(0)
    limit_memory_mib: int = big(0)
    used_memory_mib: int = big(0)
    limit_gpus: int = big(0)
    used_gpus: int = big(0)
    limit_volumes: int = big(0)
    used_volumes: int = big(0)
    limit_disk_gib: int = big(0)
    used_disk_gib: int = big(0)
    limit_networks: int = big(0)
    used_networks: int = big(0)
    generation: int = big(1)
