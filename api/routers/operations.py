"""Operations, of a tenant and of the platform: listed, shown, waited for, cancelled."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Depends, Query
from starlette.concurrency import run_in_threadpool

from api.calls import IN_TENANT, Asking, Changing, Looking, Pages, page_token
from api.schemas.common import Page, Reference
from api.schemas.work import OperationOut
from orchestrator.controller import instance_create, operations
from orchestrator.controller.caller import Caller
from orchestrator.model.errors import InvalidInputError
from orchestrator.model.operation import Operation
from orchestrator.model.states import OperationState
from orchestrator.store.unit_of_work import Reader, UnitOfWork

router = APIRouter(prefix="/v1/operations", tags=["operations"])
of_tenant = APIRouter(prefix="/v1/tenants/{tenant}/operations", tags=["operations"], dependencies=[IN_TENANT])
_Wait = Annotated[
    str | None,
    Query(
        max_length=8,
        description="Answer when it is over, or after so long: `30s`.",
        json_schema_extra={"pattern": "^(?:[0-5]?[0-9]|60)s?$"},
    ),
]
_SECONDS = re.compile(r"([0-9]{1,4})s?")


def _wanted(
    state: OperationState | None = None,
    kind: Annotated[
        str | None,
        Query(description="As instance.create.", json_schema_extra={"enum": sorted(operations.STEPS)}),
    ] = None,
    subject: Annotated[Reference | None, Query(description="The id of what it is about.")] = None,
) -> operations.Wanted:
    return operations.Wanted(state, kind, subject)


_Wanted = Annotated[operations.Wanted, Depends(_wanted)]


@of_tenant.get("", operation_id="list_operations")
def list_operations(ask: Looking, pages: Pages, wanted: _Wanted) -> Page[OperationOut]:
    """List a tenant's operations."""

    def work(tx: Reader, caller: Caller) -> Page[OperationOut]:
        found, after = operations.page(tx, caller.tenant_id, pages, wanted)
        waits = operations.waiting(tx, found)
        items = [OperationOut.of(each, waits.get(each.id)) for each in found]
        return Page(items=items, next_page_token=page_token(after))

    return ask.look(work)


@of_tenant.get("/{operation}", operation_id="get_operation")
async def get_operation(ask: Looking, operation: Reference, wait: _Wait = None) -> OperationOut:
    """Show an operation; with `wait`, as soon as it is over."""
    return await _awaited(ask, operation, wait, lambda tx, caller: operations.get(tx, caller, operation))


@of_tenant.post("/{operation}/actions/cancel", operation_id="cancel_operation")
def cancel_operation(ask: Changing, operation: Reference) -> OperationOut:
    """Stop waiting for a place. What has begun on a host cannot be cancelled, only followed by a delete."""

    def work(tx: UnitOfWork, caller: Caller) -> OperationOut:
        found = operations.get(tx, caller, operation)
        return OperationOut.of(instance_create.cancel_create(tx, caller, found))

    return ask.change(work)


@router.get("", operation_id="list_platform_operations")
def list_platform_operations(ask: Looking, pages: Pages, wanted: _Wanted) -> Page[OperationOut]:
    """List the platform's own operations."""

    def work(tx: Reader, _caller: Caller) -> Page[OperationOut]:
        found, after = operations.page(tx, None, pages, wanted)
        waits = operations.waiting(tx, found)
        items = [OperationOut.of(each, waits.get(each.id)) for each in found]
        return Page(items=items, next_page_token=page_token(after))

    return ask.look(work)


@router.get("/{operation}", operation_id="get_platform_operation")
async def get_platform_operation(ask: Looking, operation: Reference, wait: _Wait = None) -> OperationOut:
    """Show one of the platform's own operations; with `wait`, as soon as it is over."""
    return await _awaited(ask, operation, wait, lambda tx, _caller: operations.platform(tx, operation))


async def _awaited(
    ask: Asking, operation: str, wait: str | None, work: Callable[[Reader, Caller], Operation]
) -> OperationOut:
    """Look until it is over or the wait is; between two looks neither a thread nor a connection is held."""

    def look(tx: Reader, caller: Caller) -> tuple[Operation, operations.Waiting | None]:
        found = work(tx, caller)
        return found, operations.waiting(tx, [found]).get(found.id)

    settings = ask.control.settings
    clock = asyncio.get_running_loop().time
    end = clock() + _seconds(wait, settings.max_wait_s)
    # Listening begins before the first look, so that nothing happens unheard in between.
    with ask.control.bell.listen_async(f"operation:{operation}") as ear:
        while True:
            found, waits = await run_in_threadpool(ask.look, look)
            left_s = end - clock()
            if found.state.over or left_s <= 0:
                return OperationOut.of(found, waits)
            await ear.wait(min(left_s, settings.look_again_s))


def _seconds(wait: str | None, most: int) -> int:
    if wait is None:
        return 0
    found = _SECONDS.fullmatch(wait)
    if found is None or int(found[1]) > most:
        raise InvalidInputError("wait.invalid", f"whole seconds up to {most}, such as 30s", field="wait")
    return int(found[1])
