"""Instances: what tenants ask for. Making them so is the scheduler's, the agents' and `reports`' work."""

from __future__ import annotations

import dataclasses
from typing import Any

from sqlalchemy import insert, select, update

from orchestrator.controller import operations
from orchestrator.controller.caller import Caller, unknown
from orchestrator.model.errors import ConflictError
from orchestrator.model.instance import GONE, InstanceRecord
from orchestrator.model.operation import Operation
from orchestrator.model.states import Desired, HostState, InstanceState, RequestState
from orchestrator.store.ids import new_id
from orchestrator.store.nouns import INSTANCES
from orchestrator.store.tables.fleet import HostRow, RemovalRow
from orchestrator.store.tables.instances import InstanceRow, RequestRow
from orchestrator.store.tables.volumes import VolumeRow
from orchestrator.store.unit_of_work import Reader, UnitOfWork, table_of

_TABLE, _VOLUMES, _HOSTS = table_of(InstanceRow), table_of(VolumeRow), table_of(HostRow)
_REQUESTS = table_of(RequestRow)


def get(tx: Reader, caller: Caller, reference: str, *, lock: bool = False) -> InstanceRecord:
    """Return one.

    Raises:
        NotFoundError: `instance.unknown`.
    """
    found = INSTANCES.get(tx, caller.scope, reference, lock=lock)
    if found is None:
        raise unknown("instance", reference)
    return found


def start(tx: UnitOfWork, caller: Caller, reference: str, operation_id: str) -> Operation:
    """Want it running again; its claims are still its own.

    Raises:
        NotFoundError: `instance.unknown`.
        ConflictError: `instance.gone`, `instance.not_stopped`, `instance.host_draining`.
    """
    instance = get(tx, caller, reference, lock=True)
    if instance.gone:
        raise ConflictError(
            GONE,
            f"{instance.name} was removed from its host; there is nothing to start",
            hint=f"bulkhead instance delete {instance.name}, and create it again",
        )
    if instance.host_id is None and instance.state is InstanceState.ERROR and instance.rebuilt is not None:
        return _rebuild_again(tx, caller, instance, operation_id)
    startable = (InstanceState.STOPPED, InstanceState.ERROR, InstanceState.NEEDS_ATTENTION)
    if instance.state not in startable or instance.host_id is None:
        raise ConflictError(
            "instance.not_stopped",
            f"{instance.name} is {instance.state.value}; only what is stopped or failed can be started",
        )
    host_state = tx.scalar(select(_HOSTS.c.state).where(_HOSTS.c.id == instance.host_id))
    if host_state in (HostState.DRAINING, HostState.DRAINED):
        raise ConflictError(
            "instance.host_draining",
            f"the host of {instance.name} is taken out of service; nothing is started there now",
            hint="wait until it is back, or delete the instance and create it again",
        )
    # Such as a move that an operator ended halfway.
    operations.cancelled(tx, instance.operation_id, replaced("started"))
    made = operations.begin(tx, caller, "instance.start", ("instance", instance.id), operation_id)
    want(tx, instance, InstanceState.STARTING, Desired.RUNNING, operation_id)
    tx.record("instance.start", ("instance", instance.id), tenant=instance.tenant_id)
    return made


def _rebuild_again(tx: UnitOfWork, caller: Caller, instance: InstanceRecord, operation_id: str) -> Operation:
    """Let an instance that found no place after its host was lost wait for one again."""
    made = operations.begin(tx, caller, "instance.rebuild", ("instance", instance.id), operation_id)
    want(tx, instance, InstanceState.PENDING, Desired.RUNNING, operation_id)
    ask_for_place(tx, instance, "wait")
    tx.record("instance.start", ("instance", instance.id), tenant=instance.tenant_id)
    return made


def ask_for_place(tx: UnitOfWork, instance: InstanceRecord, on_no_capacity: str) -> None:
    """Let an instance wait for a place in the one queue."""
    tx.add(
        RequestRow,
        id=new_id("req"),
        tenant_id=instance.tenant_id,
        instance_id=instance.id,
        state=RequestState.WAITING,
        on_no_capacity=on_no_capacity,
        reason=None,
        submitted_ms=tx.now_ms,
        decided_ms=None,
    )
    tx.wake("scheduler")


def stop(tx: UnitOfWork, caller: Caller, reference: str, operation_id: str) -> Operation:
    """Want it stopped; it keeps its claims and its quota.

    Raises:
        NotFoundError: `instance.unknown`.
        ConflictError: `instance.not_running`.
    """
    instance = get(tx, caller, reference, lock=True)
    # What is scheduled was not handed to its host yet, and its devices are not the tenant's before that.
    placed = instance.host_id is not None and instance.state is not InstanceState.SCHEDULED
    if not placed or instance.desired is not Desired.RUNNING:
        raise ConflictError(
            "instance.not_running", f"{instance.name} is {instance.state.value}; it does not run"
        )
    operations.cancelled(tx, instance.operation_id, replaced("stopped"))
    made = operations.begin(tx, caller, "instance.stop", ("instance", instance.id), operation_id)
    want(tx, instance, InstanceState.STOPPING, Desired.STOPPED, operation_id)
    tx.record("instance.stop", ("instance", instance.id), tenant=instance.tenant_id)
    return made


def restart(tx: UnitOfWork, caller: Caller, reference: str, operation_id: str) -> Operation:
    """Want it stopped, and running again as soon as its host says that it is: `reports` turns it round.

    Raises:
        NotFoundError: `instance.unknown`.
        ConflictError: `instance.not_running`.
    """
    instance = get(tx, caller, reference, lock=True)
    if instance.state is not InstanceState.RUNNING or instance.desired is not Desired.RUNNING:
        raise ConflictError(
            "instance.not_running", f"{instance.name} is {instance.state.value}; only what runs is restarted"
        )
    made = operations.begin(tx, caller, "instance.restart", ("instance", instance.id), operation_id)
    want(tx, instance, InstanceState.STOPPING, Desired.STOPPED, operation_id)
    tx.record("instance.restart", ("instance", instance.id), tenant=instance.tenant_id)
    return made


def remove(tx: UnitOfWork, caller: Caller, reference: str, operation_id: str) -> Operation:
    """Want it gone with its boot volume and everything on its host.

    Raises:
        NotFoundError: `instance.unknown`.
        ConflictError: `instance.deleting`.
    """
    instance = get(tx, caller, reference, lock=True)
    if instance.state is InstanceState.DELETING:
        raise ConflictError(
            "instance.deleting", f"{instance.name} is being deleted", hint=f"wait for {instance.operation_id}"
        )
    operations.cancelled(tx, instance.operation_id, replaced("deleted"))
    made = operations.begin(tx, caller, "instance.delete", ("instance", instance.id), operation_id)
    tx.record("instance.delete", ("instance", instance.id), tenant=instance.tenant_id)
    tx.execute(
        update(_REQUESTS)
        .where(_REQUESTS.c.instance_id == instance.id, _REQUESTS.c.state == RequestState.WAITING)
        .values(state=RequestState.CANCELLED, decided_ms=tx.now_ms)
    )
    want(tx, instance, InstanceState.DELETING, Desired.DELETED, operation_id)
    if instance.host_id is None:
        from orchestrator.controller import release

        # The operation to end is the one that just began.
        release.instance(tx, dataclasses.replace(instance, operation_id=operation_id))
    else:
        _order_away(tx, instance)
    return made


def _order_away(tx: UnitOfWork, instance: InstanceRecord) -> None:
    """Tell the host, with id and generation, what must be gone; absence never destroys."""
    found = tx.all(select(_VOLUMES).where(_VOLUMES.c.instance_id == instance.id, _VOLUMES.c.boot))
    things = [("instance", instance.id, instance.generation + 1)]
    things += [("volume", row.id, row.generation) for row in found]
    rows = [
        {
            "id": new_id("rem"),
            "host_id": instance.host_id,
            "kind": kind,
            "subject_id": subject,
            "generation": generation,
            "tenant_id": instance.tenant_id,
            "ordered_ms": tx.now_ms,
            "done_ms": None,
        }
        for kind, subject, generation in things
    ]
    tx.execute(insert(table_of(RemovalRow)), rows)


def want(
    tx: UnitOfWork, instance: InstanceRecord, state: InstanceState, desired: Desired, operation_id: str
) -> None:
    """Write what is wanted of an instance from now on, for its host to follow."""
    tx.execute(
        update(_TABLE)
        .where(_TABLE.c.id == instance.id, _TABLE.c.generation == instance.generation)
        .values(
            state=state,
            desired=desired,
            generation=instance.generation + 1,
            operation_id=operation_id,
            failures=0,
            updated_ms=tx.now_ms,
        )
    )
    if instance.host_id is not None:
        new_revision(tx, instance.host_id)


def new_revision(tx: UnitOfWork, host_id: str) -> None:
    """Let a host know that its assignment changed, once this is committed."""
    tx.execute(update(_HOSTS).where(_HOSTS.c.id == host_id).values(revision=_HOSTS.c.revision + 1))
    tx.wake(f"host:{host_id}")


def replaced(what: str) -> dict[str, Any]:
    """Why an operation ends that something later took the place of."""
    return {"code": "operation.replaced", "message": f"the instance was {what} meanwhile", "retryable": False}
