"""Networks and ports: VLANs unique per fabric, addresses per network, MACs everywhere."""

from __future__ import annotations

from sqlalchemy import CheckConstraint, UniqueConstraint
from sqlmodel import Field, SQLModel

from orchestrator.store.tables.columns import big, id_key, refers


class NetworkRow(SQLModel, table=True):
    """One tenant's segment. Deleting removes the row, which frees the VLAN."""

    __tablename__ = "network"
    __table_args__ = (
        UniqueConstraint("tenant_id", "name", name="network_name"),
        UniqueConstraint("vlan", name="network_vlan"),
        CheckConstraint("vlan BETWEEN 1 AND 4094", name="network_vlan_range"),
    )
    id: str = id_key()
    tenant_id: str = refers("tenant.id")
    name: str = Field(max_length=63)
    cidr: str = Field(max_length=18)
    vlan: int
    #: Offset of the next address to try; addresses of deleted ports come again after a round.
    next_offset: int = big(10)
    generation: int = big(1)
    created_ms: int = big()


class PortRow(SQLModel, table=True):
    """An instance's place on a network."""

    __tablename__ = "port"
    __table_args__ = (
        UniqueConstraint("network_id", "address", name="port_address"),
        UniqueConstraint("mac", name="port_mac"),
    )
    id: str = id_key()
    tenant_id: str = refers("tenant.id")
    network_id: str = refers("network.id")
    instance_id: str = refers("instance.id")
    mac: str = Field(max_length=17)
    address: str = Field(max_length=45)
    prefix_length: int
    created_ms: int = big()
