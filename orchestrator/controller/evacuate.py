"""Evacuating a host: its instances are built anew elsewhere from their images; what lived on it is lost.

Only of a fenced host, which an operator said is switched off: the same instance must not run twice. All of it
is one transaction, so that no crash leaves half of it; then the one scheduler places what waits, and a loop
says how far that is. What the host may still run keeps what it holds there (`stale`): no GPU of it is anybody
else's before it has come back and cleaned it. Called by the public API and the loops.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from sqlalchemy import delete, select, update

from orchestrator.controller import deployment, host_errors, hosts, operations, release, stale
from orchestrator.controller.caller import Caller
from orchestrator.controller.instances import ask_for_place, new_revision, replaced
from orchestrator.model.errors import ConflictError
from orchestrator.model.fleet import FleetHost
from orchestrator.model.instance import InstanceRecord
from orchestrator.model.operation import Operation
from orchestrator.model.states import Desired, HostState, InstanceState, OperationState, VolumeState
from orchestrator.model.volume import VolumeRecord
from orchestrator.store.ids import new_id
from orchestrator.store.nouns import INSTANCES, OPERATIONS, VOLUMES
from orchestrator.store.rows import PLATFORM
from orchestrator.store.tables.fleet import HostRow, StaleInstanceRow
from orchestrator.store.tables.instances import InstanceRow, RequestRow
from orchestrator.store.tables.keys import WrappedKeyRow
from orchestrator.store.tables.volumes import VolumeRow
from orchestrator.store.unit_of_work import Reader, UnitOfWork, table_of

_HOSTS, _INSTANCES, _VOLUMES = table_of(HostRow), table_of(InstanceRow), table_of(VolumeRow)
_REQUESTS, _KEYS = table_of(RequestRow), table_of(WrappedKeyRow)
#: An audit record names so many lost volumes; each has a record of its own in its tenant's log.
_NAMED = 100


def begin(tx: UnitOfWork, caller: Caller, reference: str, *, reason: str, operation_id: str) -> Operation:
    """Rebuild a fenced host's instances elsewhere; each waits for a place, or fails, like any other.

    The operation ends when all of them run (or are stopped, as they were wanted). Its result names them and
    every volume that is lost.

    Args:
        reason: for the audit log and for the tenants, who read it on their instances.

    Raises:
        NotFoundError: `host.unknown`.
        ConflictError: `host.state`, `host.evacuating`, `deployment.observing`.
    """
    host = hosts.get(tx, reference, lock=True)
    _must_be_fenced(tx, host)
    made = operations.begin(tx, caller, "host.evacuate", ("host", host.id), operation_id)
    here = INSTANCES.where(tx, PLATFORM, _INSTANCES.c.host_id == host.id)
    rebuilt: list[dict[str, str]] = []
    lost: list[VolumeRecord] = []
    for instance in here:
        lost += _take_off(tx, host, made, instance, reason, rebuilt)
    for volume in VOLUMES.where(tx, PLATFORM, _VOLUMES.c.host_id == host.id):
        lost += _left_behind(tx, volume)
    operations.told(tx, made.id, {"instances": rebuilt, "lost_volumes": [_named(each) for each in lost]})
    tx.execute(
        update(_HOSTS)
        .where(_HOSTS.c.id == host.id)
        .values(evacuation_id=made.id, generation=_HOSTS.c.generation + 1)
    )
    tx.record(
        "host.evacuate",
        ("host", host.id),
        tenant=None,
        details={
            "reason": reason,
            "instances": len(rebuilt),
            "lost": len(lost),
            "lost_volumes": [each.id for each in lost[:_NAMED]],
        },
    )
    host_errors.tell(tx, host, host_errors.holds_stale(stale.of_host(tx, host.id)))
    new_revision(tx, host.id)
    tx.wake("drain")
    return operations.platform(tx, made.id)


def under_way(tx: Reader) -> list[str]:
    """Ids of the hosts whose evacuation is not over."""
    rows = tx.all(select(_HOSTS.c.id).where(_HOSTS.c.evacuation_id.is_not(None)).order_by(_HOSTS.c.id))
    return [row.id for row in rows]


def turn(tx: UnitOfWork, host_id: str) -> None:
    """Say how far one evacuation is, and end it when every instance has its end."""
    row = tx.first(select(_HOSTS.c.evacuation_id).where(_HOSTS.c.id == host_id).with_for_update())
    if row is None or row.evacuation_id is None:
        return
    operation = operations.platform(tx, row.evacuation_id)
    wanted = [each["operation_id"] for each in (operation.result or {}).get("instances", ())]
    states: list[Operation] = []
    # SQLite takes a bounded number of parameters.
    for at in range(0, len(wanted), 500):
        states += OPERATIONS.where(tx, PLATFORM, OPERATIONS.table.c.id.in_(wanted[at : at + 500]))
    over = [each for each in states if each.state.over]
    if len(over) < len(wanted):
        operations.progress(tx, operation.id, len(over), len(wanted))
        return
    failed = [each for each in over if each.state is OperationState.FAILED]
    tx.execute(update(_HOSTS).where(_HOSTS.c.id == host_id).values(evacuation_id=None))
    if failed:
        shown = ", ".join(each.subject_id for each in failed[:5]) + (" and others" if len(failed) > 5 else "")
        error = ConflictError(
            "host.evacuation_incomplete",
            f"{len(failed)} of {len(wanted)} instances could not be built anew: {shown}",
            hint="bulkhead instance show tells why; instance start lets one wait for a place again",
        ).as_dict()
        operations.fail(tx, operation.id, error)
    else:
        operations.advance(tx, operation.id, "rebuilt")
    tx.record(
        "host.evacuated",
        ("host", host_id),
        tenant=None,
        stage="outcome",
        outcome="failed" if failed else "ok",
        details={"instances": len(wanted), "failed": len(failed)},
    )


def give_up(tx: UnitOfWork, host: FleetHost) -> list[str]:
    """Call every volume on a host lost that no instance has; their ids. Those being deleted are deleted."""
    lost: list[VolumeRecord] = []
    for volume in VOLUMES.where(tx, PLATFORM, _VOLUMES.c.host_id == host.id):
        lost += _left_behind(tx, volume)
    return [each.id for each in lost]


def _must_be_fenced(tx: Reader, host: FleetHost) -> None:
    if deployment.get(tx).observe_only:
        raise ConflictError(
            "deployment.observing",
            "the deployment only observes; nothing is rebuilt",
            hint="bulkhead deployment show, then: bulkhead deployment resume",
        )
    if host.evacuation_id is not None:
        raise ConflictError(
            "host.evacuating", f"{host.name} is being evacuated", hint=f"wait for {host.evacuation_id}"
        )
    if host.state is not HostState.FENCED:
        raise ConflictError(
            "host.state",
            f"{host.name} is {host.state.value}; only a fenced host is evacuated",
            hint=f"switch it off, then: bulkhead host fence {host.name} --powered-off --reason WHY",
        )


def _take_off(
    tx: UnitOfWork,
    host: FleetHost,
    evacuation: Operation,
    instance: InstanceRecord,
    reason: str,
    rebuilt: list[dict[str, str]],
) -> list[VolumeRecord]:
    """Take one instance off its host; return the volumes that it loses with it."""
    held = VOLUMES.where(tx, PLATFORM, _VOLUMES.c.instance_id == instance.id)
    if instance.state is InstanceState.DELETING:
        _end_deletion(tx, instance, held)
        return []
    stopped = instance.desired is Desired.STOPPED and not _restarts(tx, instance)
    operations.cancelled(tx, instance.operation_id, replaced("built anew on another host"))
    if instance.gone:
        lost = _part(tx, host, instance, held)
        _nowhere(tx, instance)
        return lost
    identity = new_id("op")
    operations.begin_for(
        tx,
        "instance.rebuild",
        ("instance", instance.id),
        identity,
        tenant_id=instance.tenant_id,
        principal_id=evacuation.principal_id,
        request_id=evacuation.request_id,
        last=InstanceState.STOPPED.value if stopped else None,
    )
    rebuilt.append({"id": instance.id, "operation_id": identity})
    lost = _part(tx, host, instance, held)
    _anew(tx, instance, lost, identity, reason, "host.evacuate", stopped=stopped)
    return lost


def move(tx: UnitOfWork, host: FleetHost, instance: InstanceRecord, reason: str) -> None:
    """Build an instance anew elsewhere whose host stopped it, and order what is left of it away.

    Its operation goes on until it runs. Nothing of it is on the host by then but its former boot volume.
    """
    held = VOLUMES.where(tx, PLATFORM, _VOLUMES.c.instance_id == instance.id)
    lost = _part(tx, host, instance, held)
    assert instance.operation_id is not None  # noqa: S101 - the one that stopped it
    _anew(tx, instance, lost, instance.operation_id, reason, "host.drain", stopped=False)
    for left in stale.of_host(tx, host.id, instance.id):
        stale.order_away(tx, host, left, reason)
    host_errors.tell(tx, hosts.get(tx, host.id), host_errors.holds_stale(stale.of_host(tx, host.id)))


def has_own_data(tx: Reader, instance: InstanceRecord) -> bool:
    """Whether it has volumes of its own that were written: those stay where they are."""
    held = VOLUMES.where(tx, PLATFORM, _VOLUMES.c.instance_id == instance.id, ~_VOLUMES.c.boot)
    return any(not release.never_written(tx, each) for each in held)


def _part(
    tx: UnitOfWork, host: FleetHost, instance: InstanceRecord, held: Sequence[VolumeRecord]
) -> list[VolumeRecord]:
    """Part an instance from its host and its volumes there; return those that it loses."""
    lost = [each for each in held if each.host_id == host.id and not release.never_written(tx, each)]
    if instance.state is InstanceState.SCHEDULED:
        # Its host was never told of it: nothing of it can be there, and its GPUs were never exposed.
        release.holdings(tx, instance.id, host.id, instance.placement or {}, instance.page_size_kib)
    else:
        _leave_behind(tx, instance, next((each for each in lost if each.boot), None))
    for volume in held:
        _part_from(tx, volume, lost=volume in lost)
    return lost


def _anew(
    tx: UnitOfWork,
    instance: InstanceRecord,
    lost: Sequence[VolumeRecord],
    operation_id: str,
    reason: str,
    why: str,
    *,
    stopped: bool,
) -> None:
    """Let an instance wait for a new place, in a new generation."""
    tx.execute(
        update(_INSTANCES)
        .where(_INSTANCES.c.id == instance.id)
        .values(
            state=InstanceState.PENDING,
            desired=Desired.STOPPED if stopped else Desired.RUNNING,
            generation=instance.generation + 1,
            host_id=None,
            placement=None,
            evidence=None,
            error=None,
            failures=0,
            operation_id=operation_id,
            updated_ms=tx.now_ms,
            rebuilt={
                "at_ms": tx.now_ms,
                "reason": reason,
                "lost_volumes": [_named(each) for each in lost],
            },
        )
    )
    ask_for_place(tx, instance, _patience(tx, instance.id))
    tx.record(
        "instance.rebuild",
        ("instance", instance.id),
        tenant=instance.tenant_id,
        details={
            "why": why,
            "reason": reason,
            "generation": instance.generation + 1,
            "lost_volumes": [each.id for each in lost],
        },
    )


def _leave_behind(tx: UnitOfWork, instance: InstanceRecord, boot: VolumeRecord | None) -> None:
    """Keep what the host may still use for an instance as taken."""
    assert instance.host_id is not None  # noqa: S101 - it was found by its host
    tx.add(
        StaleInstanceRow,
        id=new_id("stl"),
        host_id=instance.host_id,
        instance_id=instance.id,
        tenant_id=instance.tenant_id,
        generation=instance.generation,
        placement=dict(instance.placement or {"cells": [], "devices": []}),
        page_size_kib=instance.page_size_kib,
        volume_id=None if boot is None else boot.id,
        volume_generation=0 if boot is None else boot.generation,
        disk_gib=0 if boot is None else boot.size_gib,
        created_ms=tx.now_ms,
    )


def _part_from(tx: UnitOfWork, volume: VolumeRecord, *, lost: bool) -> None:
    """Take one volume of an instance off the lost host."""
    if not lost:
        # Never written: its next host makes it.
        release.return_disk(tx, volume.host_id, volume.size_gib)
        tx.execute(update(_VOLUMES).where(_VOLUMES.c.id == volume.id).values(host_id=None))
    elif volume.boot:
        # Made anew from its image, under a key of its own; the old one opens nothing any more.
        tx.execute(delete(_KEYS).where(_KEYS.c.volume_id == volume.id))
        tx.execute(
            update(_VOLUMES)
            .where(_VOLUMES.c.id == volume.id)
            .values(state=VolumeState.CREATING, generation=volume.generation + 1, host_id=None)
        )
        _record_lost(tx, volume)
    else:
        _lose(tx, volume)


def _left_behind(tx: UnitOfWork, volume: VolumeRecord) -> list[VolumeRecord]:
    """A volume on the lost host that no instance there has."""
    if volume.state is VolumeState.DELETING:
        # Without its key it is erased; the order stays for the day that its host comes back.
        release.standalone_volume(tx, volume)
        return []
    if volume.state is VolumeState.LOST or volume.instance_id is not None:
        return []
    _lose(tx, volume)
    return [volume]


def _lose(tx: UnitOfWork, volume: VolumeRecord) -> None:
    # Its key stays until its tenant deletes it: what is lost for the platform may matter to its owner.
    tx.execute(
        update(_VOLUMES).where(_VOLUMES.c.id == volume.id).values(state=VolumeState.LOST, instance_id=None)
    )
    _record_lost(tx, volume)


def _record_lost(tx: UnitOfWork, volume: VolumeRecord) -> None:
    tx.record(
        "volume.lost",
        ("volume", volume.id),
        tenant=volume.tenant_id,
        stage="outcome",
        outcome="failed",
        details={"name": volume.name, "generation": volume.generation, "boot": volume.boot},
    )


def _end_deletion(tx: UnitOfWork, instance: InstanceRecord, held: Sequence[VolumeRecord]) -> None:
    """Its tenant ordered it away: it is deleted now, and the host follows the order when it comes back."""
    boot = next((each for each in held if each.boot), None)
    _leave_behind(tx, instance, boot)
    for each in held:
        if each.boot:
            tx.execute(update(_VOLUMES).where(_VOLUMES.c.id == each.id).values(host_id=None))
    release.instance(tx, dataclasses.replace(instance, host_id=None, placement=None))


def _nowhere(tx: UnitOfWork, instance: InstanceRecord) -> None:
    """What its host removed before can only be deleted; no host has it any more."""
    tx.execute(
        update(_INSTANCES)
        .where(_INSTANCES.c.id == instance.id)
        .values(
            state=InstanceState.ERROR,
            generation=instance.generation + 1,
            host_id=None,
            placement=None,
            updated_ms=tx.now_ms,
        )
    )
    tx.record("instance.rebuild", ("instance", instance.id), tenant=instance.tenant_id, outcome="failed")


def _restarts(tx: Reader, instance: InstanceRecord) -> bool:
    """Whether it is only stopped to be started again."""
    kind = (operations.TABLE.c.kind == "instance.restart") & (operations.TABLE.c.state == "running")
    found = select(operations.TABLE.c.id).where(operations.TABLE.c.id == (instance.operation_id or ""), kind)
    return tx.first(found) is not None


def _patience(tx: Reader, instance_id: str) -> str:
    """What its tenant said to do when there is no room."""
    found = tx.scalar(
        select(_REQUESTS.c.on_no_capacity)
        .where(_REQUESTS.c.instance_id == instance_id)
        .order_by(_REQUESTS.c.submitted_ms.desc(), _REQUESTS.c.id.desc())
    )
    return "wait" if found is None else str(found)


def _named(volume: VolumeRecord) -> dict[str, Any]:
    return {"id": volume.id, "name": volume.name, "boot": volume.boot}
