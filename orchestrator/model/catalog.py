"""What instances are made of: types and images."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class InstanceType:
    """A shape that tenants choose by name; changing one means making another.

    Args:
        gpu_model: PCI ids `vendor:device` that a GPU must have; None takes any.
    """

    id: str
    name: str
    vcpus: int
    memory_mib: int
    page_size_kib: int
    threads_per_core: int
    gpus: int
    gpu_model: str | None
    disk_gib: int
    isolation: str
    created_ms: int


@dataclass(frozen=True)
class Image:
    """A tenant image by content; `tenant_id` None is for everybody."""

    id: str
    name: str
    tenant_id: str | None
    digest: str
    size_bytes: int
    firmware: str
    created_ms: int
