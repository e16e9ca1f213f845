"""A tenant: the boundary of isolation."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.model.states import TenantState


@dataclass(frozen=True)
class Tenant:
    """One tenant; `key_version` is the version of its key that wraps new data keys, 0 for none yet."""

    id: str
    name: str
    state: TenantState
    generation: int
    key_version: int
    created_ms: int


@dataclass(frozen=True)
class Deployment:
    """The deployment that a database is; agents refuse orders of another or of an older epoch."""

    id: str
    epoch: int
    observe_only: bool
    created_ms: int
