"""A tenant's instances and what can be done to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from fastapi.responses import StreamingResponse

from api.calls import IN_TENANT, Asking, Changing, Looking, Making, NamePrefix, Pages, page_token, tag
from api.consoles import kept_log
from api.fresh_secrets import FreshToken
from api.long_work import DRY_RUN, accepted, same_operation
from api.schemas.common import Page, Reference
from api.schemas.consoles import ConsoleTicketOut
from api.schemas.things import AttachIn, EvidenceOut, InstanceIn, InstanceOut
from api.schemas.work import OperationOut
from orchestrator.controller import (
    attachments,
    consoles,
    hosts,
    instance_create,
    instances,
    networks,
    user_data,
)
from orchestrator.controller.caller import Caller
from orchestrator.controller.consoles import NewTicket
from orchestrator.controller.idempotency import Made
from orchestrator.model.instance import InstanceRecord
from orchestrator.model.operation import Operation
from orchestrator.model.protocol import MAX_LOG_BYTES
from orchestrator.model.states import InstanceState
from orchestrator.store.nouns import INSTANCES
from orchestrator.store.unit_of_work import Reader, UnitOfWork

router = APIRouter(prefix="/v1/tenants/{tenant}/instances", tags=["instances"], dependencies=[IN_TENANT])
_TEXT: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}
_Verb = Callable[[UnitOfWork, Caller, str, str], Operation]
_Wiring = Callable[[UnitOfWork, Caller, str, str], InstanceRecord]


@router.get("", operation_id="list_instances")
def list_instances(
    ask: Looking,
    pages: Pages,
    state: InstanceState | None = None,
    type_: Annotated[Reference | None, Query(alias="type", description="Name of its instance type.")] = None,
    host: Annotated[Reference | None, Query(description="For the platform's people alone.")] = None,
    name_prefix: NamePrefix = None,
) -> Page[InstanceOut]:
    """List a tenant's instances."""

    def work(tx: Reader, caller: Caller) -> Page[InstanceOut]:
        where = None if host is None else hosts.wanted(tx, caller, host)
        wanted = INSTANCES.like(state=state, type_name=type_, host_id=where, name_prefix=name_prefix)
        found, after = INSTANCES.page(tx, caller.scope, pages, wanted)
        return Page(items=_shown(tx, caller, found), next_page_token=page_token(after))

    return ask.look(work)


@router.post("", operation_id="create_instance", status_code=202, responses=DRY_RUN)
def create_instance(ask: Making, body: InstanceIn, response: Response) -> OperationOut:
    """Ask for an instance: it waits for a place, gets one, and starts."""
    sealed = None
    if body.user_data != user_data.DEFAULT:
        # Its tenant's key is read between two transactions, not inside of one.
        tenant_id = ask.look(lambda _tx, caller: caller.tenant_id)
        sealed = user_data.seal(ask.control.keyring, tenant_id, body.user_data, dry_run=ask.dry_run)
    wanted = body.wanted(sealed)
    begun = ask.make(
        lambda tx, caller, operation: instance_create.create(tx, caller, wanted, operation), same_operation
    )
    return accepted(ask, response, begun)


@router.get("/{instance}", operation_id="get_instance")
def get_instance(ask: Looking, instance: Reference, response: Response) -> InstanceOut:
    """Show an instance."""

    def work(tx: Reader, caller: Caller) -> InstanceOut:
        return _shown(tx, caller, [instances.get(tx, caller, instance)])[0]

    found = ask.look(work)
    response.headers["ETag"] = tag(found.generation)
    return found


@router.delete("/{instance}", operation_id="delete_instance", status_code=202, responses=DRY_RUN)
def delete_instance(ask: Changing, instance: Reference, response: Response) -> OperationOut:
    """Delete an instance with its boot volume."""
    return _act(ask, instance, response, instances.remove)


@router.post("/{instance}/actions/start", operation_id="start_instance", status_code=202, responses=DRY_RUN)
def start_instance(ask: Changing, instance: Reference, response: Response) -> OperationOut:
    """Start what is stopped or failed, where it was."""
    return _act(ask, instance, response, instances.start)


@router.post("/{instance}/actions/stop", operation_id="stop_instance", status_code=202, responses=DRY_RUN)
def stop_instance(ask: Changing, instance: Reference, response: Response) -> OperationOut:
    """Stop it; it keeps its place and its quota."""
    return _act(ask, instance, response, instances.stop)


@router.post(
    "/{instance}/actions/restart", operation_id="restart_instance", status_code=202, responses=DRY_RUN
)
def restart_instance(ask: Changing, instance: Reference, response: Response) -> OperationOut:
    """Stop it and start it again."""
    return _act(ask, instance, response, instances.restart)


@router.post("/{instance}/actions/attach-volume", operation_id="attach_volume")
def attach_volume(ask: Changing, instance: Reference, body: AttachIn) -> InstanceOut:
    """Give a stopped instance one more volume: it has it from its next start. What runs takes none."""
    return _wire(ask, instance, body, attachments.attach)


@router.post("/{instance}/actions/detach-volume", operation_id="detach_volume")
def detach_volume(ask: Changing, instance: Reference, body: AttachIn) -> InstanceOut:
    """Take a volume from a stopped instance; its data stays, and it can go to another on the same host."""
    return _wire(ask, instance, body, attachments.detach)


@router.get("/{instance}/evidence", operation_id="get_instance_evidence")
def get_instance_evidence(ask: Looking, instance: Reference) -> EvidenceOut:
    """Show what its host checked last, and with what result."""
    return ask.look(lambda tx, caller: EvidenceOut.of(instances.get(tx, caller, instance)))


@router.post("/{instance}/actions/console", operation_id="create_console_ticket", status_code=201)
def create_console_ticket(ask: Making, instance: Reference) -> ConsoleTicketOut:
    """Make a ticket that opens its serial console once, within seconds.

    Show it at the WebSocket `/v1/console`, as a subprotocol beside `bulkhead.console.v1`; bytes go both ways.
    """
    fresh = FreshToken.draw(ask.control.pepper, "ctk")

    def work(tx: UnitOfWork, caller: Caller, _operation: str) -> ConsoleTicketOut:
        made = consoles.issue(tx, caller, instance, NewTicket(fresh.key_id, fresh.secret_hash))
        return ConsoleTicketOut.made(made, None if ask.dry_run else fresh.text)

    def again(tx: Reader, caller: Caller, made: Made) -> ConsoleTicketOut:
        return ConsoleTicketOut.made(consoles.get(tx, caller, made.subject_id), None)

    return ask.make(work, again, identify=lambda made: made.id)


@router.get(
    "/{instance}/console-log",
    operation_id="get_console_log",
    response_class=StreamingResponse,
    responses=_TEXT,
)
async def get_console_log(
    ask: Looking,
    instance: Reference,
    last_bytes: Annotated[
        int, Query(ge=1, le=MAX_LOG_BYTES, description="So much of its end.")
    ] = MAX_LOG_BYTES,
) -> StreamingResponse:
    """Read what its console said, from its host: the bytes as they were kept."""
    return await kept_log(ask, instance, last_bytes)


def _shown(tx: Reader, caller: Caller, found: Sequence[InstanceRecord]) -> list[InstanceOut]:
    ids = [each.id for each in found]
    ports, volumes = networks.ports(tx, caller, ids), attachments.of(tx, caller, ids)
    return [InstanceOut.of(each, ports[each.id], volumes[each.id], caller) for each in found]


def _wire(ask: Asking, instance: str, body: AttachIn, verb: _Wiring) -> InstanceOut:
    return ask.make(
        lambda tx, caller, _operation: _shown(tx, caller, [verb(tx, caller, instance, body.volume)])[0],
        lambda tx, caller, made: _shown(tx, caller, [instances.get(tx, caller, made.subject_id)])[0],
        identify=lambda wired: wired.id,
    )


def _act(ask: Asking, instance: str, response: Response, verb: _Verb) -> OperationOut:
    begun = ask.make(lambda tx, caller, operation: verb(tx, caller, instance, operation), same_operation)
    return accepted(ask, response, begun)
