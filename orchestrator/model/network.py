"""A tenant's networks and the ports on them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Network:
    """One segment of one tenant: a VLAN of the fabric and an IPv4 prefix that others may use too."""

    id: str
    tenant_id: str
    name: str
    cidr: str
    vlan: int
    generation: int
    created_ms: int


@dataclass(frozen=True)
class NetworkPort:
    """An instance's place on a network."""

    id: str
    tenant_id: str
    network_id: str
    instance_id: str
    mac: str
    address: str
    prefix_length: int
    created_ms: int
