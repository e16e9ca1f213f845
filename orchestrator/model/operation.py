"""An operation: what somebody asked for, how far it is, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.model.states import OperationState


@dataclass(frozen=True)
class Operation:
    """One piece of work that outlives its request.

    Args:
        kind: the action, such as `instance.create`.
        steps: objects of `name`, `state` (`pending`, `running`, `done`, `failed`) and `at_ms`, in order; one
            that takes many things in turn has `done` and `total` too.
        result: what it came to beyond its steps, as JSON; None where the steps say all.
        principal_id: who asked.
        request_id: the request that asked; the agent's log carries it too.
    """

    id: str
    tenant_id: str | None
    kind: str
    subject_kind: str
    subject_id: str
    state: OperationState
    steps: tuple[Mapping[str, Any], ...]
    error: Mapping[str, Any] | None
    principal_id: str
    request_id: str
    created_ms: int
    finished_ms: int | None
    result: Mapping[str, Any] | None = None
