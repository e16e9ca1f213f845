"""What a tenant may use: whole numbers per dimension, reserved exactly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

#: In the order people read them; columns `limit_X` and `used_X` of the table carry these names.
DIMENSIONS: tuple[str, ...] = (
    "instances",
    "vcpus",
    "memory_mib",
    "gpus",
    "volumes",
    "disk_gib",
    "networks",
)


@dataclass(frozen=True)
class Quota:
    """A tenant's limits and what of them is used; both have every dimension."""

    tenant_id: str
    limits: Mapping[str, int]
    used: Mapping[str, int]
    generation: int


def short_of(quota: Quota, wanted: Mapping[str, int]) -> tuple[str, ...]:
    """Return the dimensions in which `wanted` would exceed the limits, in reading order."""
    return tuple(name for name in DIMENSIONS if quota.used[name] + wanted.get(name, 0) > quota.limits[name])
