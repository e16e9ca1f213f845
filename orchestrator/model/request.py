"""A wait for capacity: one row in one queue, ordered by one scheduler."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.model.states import RequestState


@dataclass(frozen=True)
class CapacityRequest:
    """One instance that waits for a place, or got one.

    Args:
        on_no_capacity: `wait` or `fail`.
        reason: why it does not run yet: the refusal's JSON form; None before the first look.
        reason_ms: when it counted; counts that change later are renewed, though not at once.
    """

    id: str
    tenant_id: str
    instance_id: str
    state: RequestState
    on_no_capacity: str
    reason: Mapping[str, Any] | None
    submitted_ms: int
    decided_ms: int | None
    reason_ms: int | None = None
