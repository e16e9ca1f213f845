"""All tables; importing this package registers them with SQLModel's metadata."""

from orchestrator.store.tables import (
    audit,
    catalog,
    consoles,
    fleet,
    instances,
    keys,
    leases,
    networks,
    operations,
    people,
    tenants,
    volumes,
)

__all__ = [
    "audit",
    "catalog",
    "consoles",
    "fleet",
    "instances",
    "keys",
    "leases",
    "networks",
    "operations",
    "people",
    "tenants",
    "volumes",
]
