"""Operations and requests for capacity."""

from __future__ import annotations

from typing import Any

from api.schemas.common import ErrorOut, Out, at, maybe_at
from orchestrator.controller.operations import Waiting
from orchestrator.model.operation import Operation
from orchestrator.model.request import CapacityRequest


class StepOut(Out):
    """One step of an operation: `pending`, `running`, `done`, `failed` or `cancelled`.

    A step that takes many things in turn says how many are `done` of how many.
    """

    name: str
    state: str
    at: str | None
    done: int | None
    total: int | None


class WaitOut(Out):
    """What keeps an operation: `reason` counts what is short, null before the first look for a place.

    `reason_at` is when it counted. `ahead` counts the tenant's own requests that came before.
    """

    reason: ErrorOut | None
    reason_at: str | None
    ahead: int


class OperationOut(Out):
    """What somebody asked for, how far it is and what came of it."""

    id: str
    tenant_id: str | None
    kind: str
    subject_kind: str
    subject_id: str
    state: str
    steps: list[StepOut]
    steps_done: int
    waits: WaitOut | None
    error: ErrorOut | None
    result: dict[str, Any] | None
    principal_id: str
    request_id: str
    created_at: str
    finished_at: str | None

    @classmethod
    def of(cls, operation: Operation, waits: Waiting | None = None) -> OperationOut:
        """From its value, with what it waits for if it does."""
        return cls(
            id=operation.id,
            tenant_id=operation.tenant_id,
            kind=operation.kind,
            subject_kind=operation.subject_kind,
            subject_id=operation.subject_id,
            state=operation.state.value,
            steps=[
                StepOut(
                    name=step["name"],
                    state=step["state"],
                    at=maybe_at(step["at_ms"]),
                    done=step.get("done"),
                    total=step.get("total"),
                )
                for step in operation.steps
            ],
            steps_done=sum(step["state"] == "done" for step in operation.steps),
            waits=None
            if waits is None
            else WaitOut(
                reason=ErrorOut.of(waits.reason), reason_at=maybe_at(waits.reason_ms), ahead=waits.ahead
            ),
            error=ErrorOut.of(operation.error),
            result=None if operation.result is None else dict(operation.result),
            principal_id=operation.principal_id,
            request_id=operation.request_id,
            created_at=at(operation.created_ms),
            finished_at=maybe_at(operation.finished_ms),
        )


class RequestOut(Out):
    """A wait for capacity; `reason` counts what is short and names no host.

    `reason_at` is when it counted: counts that change later are renewed, though not at once.
    """

    id: str
    tenant_id: str
    instance_id: str
    state: str
    on_no_capacity: str
    reason: dict[str, Any] | None
    reason_at: str | None
    submitted_at: str
    decided_at: str | None

    @classmethod
    def of(cls, request: CapacityRequest) -> RequestOut:
        """From its value."""
        return cls(
            id=request.id,
            tenant_id=request.tenant_id,
            instance_id=request.instance_id,
            state=request.state.value,
            on_no_capacity=request.on_no_capacity,
            reason=None if request.reason is None else dict(request.reason),
            reason_at=maybe_at(request.reason_ms),
            submitted_at=at(request.submitted_ms),
            decided_at=maybe_at(request.decided_ms),
        )
