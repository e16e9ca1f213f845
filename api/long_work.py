"""Answers of work that outlives its request: 202 with the operation and where it stands."""

from __future__ import annotations

from typing import Any

from fastapi import Response

from api.calls import Asking
from api.schemas.work import OperationOut
from orchestrator.controller import operations
from orchestrator.controller.caller import Caller
from orchestrator.controller.idempotency import Made
from orchestrator.model.operation import Operation
from orchestrator.store.unit_of_work import Reader

#: What such a route answers beside its 202.
DRY_RUN: dict[int | str, dict[str, Any]] = {
    200: {
        "model": OperationOut,
        "description": "Of a dry run: the operation that would begin; nothing was kept.",
    }
}


def accepted(ask: Asking, response: Response, operation: Operation) -> OperationOut:
    """Say that it was accepted; of a dry run there is nothing to look at later."""
    if ask.dry_run:
        response.status_code = 200
    else:
        whose = "" if operation.tenant_id is None else f"/tenants/{operation.tenant_id}"
        response.headers["Location"] = f"/v1{whose}/operations/{operation.id}"
    return OperationOut.of(operation)


def same_operation(tx: Reader, caller: Caller, made: Made) -> Operation:
    """What an earlier call with the same key began."""
    return operations.get(tx, caller, made.operation_id or "")
