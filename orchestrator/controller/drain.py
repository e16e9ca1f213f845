"""Draining a host: nothing new comes, what runs is stopped, moved or waited for, until nothing runs.

An operator begins it with a policy and a deadline, each instance says what becomes of it (`on_drain`) and
when (`drain_deadline_s`); the loop takes it on from there, level-triggered, so that any controller may do any
turn. Stopped instances keep their claims and their place on the host. What moves is stopped, built anew
elsewhere from its image, and its former self is ordered away. Uncordon or cordon ends a drain (`hosts`). The
public API and the loops call it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import select, update

from orchestrator.controller import deployment, evacuate, hosts, operations, stale
from orchestrator.controller.caller import Caller
from orchestrator.controller.instances import replaced, want
from orchestrator.model.errors import ConflictError, HostError
from orchestrator.model.fleet import FleetHost
from orchestrator.model.instance import InstanceRecord
from orchestrator.model.operation import Operation
from orchestrator.model.states import Desired, HostState, InstanceState, OperationState, may_become
from orchestrator.store.ids import new_id
from orchestrator.store.nouns import INSTANCES
from orchestrator.store.rows import PLATFORM
from orchestrator.store.tables.fleet import HostRow
from orchestrator.store.tables.instances import InstanceRow
from orchestrator.store.unit_of_work import Reader, UnitOfWork, table_of

_HOSTS, _INSTANCES = table_of(HostRow), table_of(InstanceRow)
#: The bell's topic of the loop.
TOPIC = "drain"
POLICIES = ("each", "stop", "wait")


def begin(
    tx: UnitOfWork,
    caller: Caller,
    reference: str,
    *,
    policy: str,
    deadline_s: int,
    reason: str,
    operation_id: str,
) -> Operation:
    """Begin to drain a host.

    Args:
        policy: `each` does as each instance says; `stop` stops all that runs; `wait` waits until tenants do.
        deadline_s: after so many seconds the operation fails with what still runs; the host stays draining,
            and what each instance said is done all the same.

    Raises:
        NotFoundError: `host.unknown`.
        ConflictError: `host.state`.
    """
    host = hosts.get(tx, reference, lock=True)
    if host.state not in (HostState.READY, HostState.CORDONED):
        raise ConflictError(
            "host.state",
            f"{host.name} is {host.state.value}; it cannot be drained",
            hint="uncordon it to begin anew" if host.state is HostState.DRAINING else None,
        )
    made = operations.begin(tx, caller, "host.drain", ("host", host.id), operation_id)
    drain = {
        "operation_id": operation_id,
        "policy": policy,
        "deadline_ms": tx.now_ms + deadline_s * 1000,
        "overdue": False,
    }
    tx.execute(
        update(_HOSTS)
        .where(_HOSTS.c.id == host.id)
        .values(
            state=HostState.DRAINING,
            reason=reason,
            drain=drain,
            cordoned_by="",
            generation=_HOSTS.c.generation + 1,
        )
    )
    tx.record(
        "host.drain",
        ("host", host.id),
        tenant=None,
        details={"reason": reason, "was": host.state.value, "policy": policy, "deadline_s": deadline_s},
    )
    if policy == "each":
        for each in INSTANCES.where(tx, PLATFORM, _INSTANCES.c.host_id == host.id):
            # Who runs on for a while would perhaps rather choose the hour itself.
            if each.desired is Desired.RUNNING and _due(tx, policy, made.created_ms, each) == "wait":
                _announce(tx, each)
    tx.wake(TOPIC)
    return made


def _announce(tx: UnitOfWork, instance: InstanceRecord) -> None:
    tx.record(
        "instance.drain_announced",
        ("instance", instance.id),
        tenant=instance.tenant_id,
        details={"on_drain": instance.on_drain, "deadline_s": instance.drain_deadline_s},
    )


def draining(tx: Reader) -> list[str]:
    """Ids of the hosts that a turn is due for; none while the deployment only observes."""
    if deployment.get(tx).observe_only:
        return []
    rows = tx.all(select(_HOSTS.c.id).where(_HOSTS.c.state == HostState.DRAINING).order_by(_HOSTS.c.id))
    return [row.id for row in rows]


def turn(tx: UnitOfWork, host_id: str) -> None:
    """Take one host's drain on: order stops, say how far it is, end it when nothing runs or time is over."""
    host = hosts.get(tx, host_id, lock=True)
    if host.state is not HostState.DRAINING or host.drain is None:
        return
    operation = operations.platform(tx, host.drain["operation_id"])
    here = INSTANCES.where(tx, PLATFORM, _INSTANCES.c.host_id == host.id)
    due = {each.id: _due(tx, host.drain["policy"], operation.created_ms, each) for each in here}
    for each in here:
        if due[each.id] == "move" and each.state is InstanceState.STOPPED:
            evacuate.move(tx, host, each, host.reason)
    here = [each for each in here if not (due[each.id] == "move" and each.state is InstanceState.STOPPED)]
    left = [each for each in here if each.state is not InstanceState.STOPPED and not each.gone]
    # What moved may still be there until its host says that it is gone.
    leaving = stale.of_host(tx, host.id)
    if not left and not leaving:
        _drained(tx, host)
        return
    total = len(here) + len(leaving)
    operations.progress(tx, operation.id, total - len(left) - len(leaving), total)
    if tx.now_ms >= host.drain["deadline_ms"] and not host.drain["overdue"]:
        _overdue(tx, host, left, [each.instance_id for each in leaving])
    for each in left:
        # What was only just placed is handed to the host first: its GPUs are the tenant's from then on.
        if each.desired is not Desired.RUNNING or each.state is InstanceState.SCHEDULED:
            continue
        if due[each.id] in ("stop", "move"):
            _stop(tx, operation, each, "instance.rebuild" if due[each.id] == "move" else "instance.stop")


def _due(tx: UnitOfWork, policy: str, begun_ms: int, instance: InstanceRecord) -> str:
    """What becomes of an instance: `stop`, `move` or `wait`; what is off moves only if that has begun."""
    if policy != "each":
        return policy
    own_s = instance.drain_deadline_s
    if own_s is None and instance.on_drain == "refuse":
        return "wait"
    if tx.now_ms < begun_ms + (own_s or 0) * 1000:
        return "wait"
    if instance.on_drain != "move" or evacuate.has_own_data(tx, instance):
        return "stop"
    moving = select(operations.TABLE.c.id).where(
        operations.TABLE.c.id == (instance.operation_id or ""),
        operations.TABLE.c.kind == "instance.rebuild",
        operations.TABLE.c.state == OperationState.RUNNING,
    )
    if instance.state is InstanceState.STOPPED and tx.first(moving) is None:
        return "stop"
    return "move"


def _stop(tx: UnitOfWork, drain: Operation, instance: InstanceRecord, kind: str) -> None:
    what = "moved" if kind == "instance.rebuild" else "stopped"
    operations.cancelled(tx, instance.operation_id, replaced(f"{what} by the drain of its host"))
    identity = new_id("op")
    operations.begin_for(
        tx,
        kind,
        ("instance", instance.id),
        identity,
        tenant_id=instance.tenant_id,
        principal_id=drain.principal_id,
        request_id=drain.request_id,
    )
    want(tx, instance, InstanceState.STOPPING, Desired.STOPPED, identity)
    tx.record(
        "instance.stop",
        ("instance", instance.id),
        tenant=instance.tenant_id,
        details={"why": "host.drain", "then": what},
    )


def _drained(tx: UnitOfWork, host: FleetHost) -> None:
    tx.execute(
        update(_HOSTS)
        .where(_HOSTS.c.id == host.id)
        .values(state=HostState.DRAINED, drain=None, generation=_HOSTS.c.generation + 1)
    )
    operations.advance(tx, host.drain["operation_id"] if host.drain else None, "drained")
    tx.record("host.drained", ("host", host.id), tenant=None, stage="outcome")


def _overdue(tx: UnitOfWork, host: FleetHost, left: Sequence[InstanceRecord], leaving: Sequence[str]) -> None:
    """Time is over: the operation fails with what is left, and what was told to stop wants a look."""
    names = [each.id for each in left] + list(leaving)
    shown = ", ".join(names[:5]) + (" and others" if len(names) > 5 else "")
    error = ConflictError(
        "host.drain_overdue",
        f"{len(names)} instances have not stopped in time: {shown}",
        hint="stop or delete them; the host is drained as soon as nothing runs. Uncordon ends the drain",
    ).as_dict()
    operations.fail(tx, host.drain["operation_id"] if host.drain else None, error)
    tx.execute(
        update(_HOSTS).where(_HOSTS.c.id == host.id).values(drain={**(host.drain or {}), "overdue": True})
    )
    for each in left:
        if each.desired is Desired.STOPPED and may_become(each.state, InstanceState.NEEDS_ATTENTION):
            _needs_attention(tx, each)
    tx.record(
        "host.drain_overdue",
        ("host", host.id),
        tenant=None,
        stage="outcome",
        outcome="failed",
        details={"left": names},
    )


def _needs_attention(tx: UnitOfWork, instance: InstanceRecord) -> None:
    error: dict[str, Any] = HostError(
        "instance.stop_overdue",
        "its host is being drained, and it did not stop in time",
        hint="stop it from inside, or delete it",
    ).as_dict()
    tx.execute(
        update(_INSTANCES)
        .where(_INSTANCES.c.id == instance.id, _INSTANCES.c.generation == instance.generation)
        .values(state=InstanceState.NEEDS_ATTENTION, error=error, updated_ms=tx.now_ms)
    )
    operations.fail(tx, instance.operation_id, error)
    tx.record(
        "instance.failed",
        ("instance", instance.id),
        tenant=instance.tenant_id,
        stage="outcome",
        outcome="failed",
        details={"code": "instance.stop_overdue", "state": InstanceState.NEEDS_ATTENTION.value},
    )
