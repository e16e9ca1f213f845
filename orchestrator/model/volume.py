"""An encrypted volume as its tenant knows it."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.model.states import VolumeState


@dataclass(frozen=True)
class VolumeRecord:
    """One volume; it lives on one host from the moment its first instance is placed.

    Args:
        boot: it was made for its instance and goes with it.
    """

    id: str
    tenant_id: str
    name: str
    size_gib: int
    image_id: str | None
    state: VolumeState
    generation: int
    host_id: str | None
    instance_id: str | None
    boot: bool
    created_ms: int
