"""Taking a host out for good: nothing may be left on it, unless an operator says that it is lost.

Its row stays, unseen: ids are never used again, and the audit log's subjects stay known. Called by the public
API.
"""

from __future__ import annotations

from dataclasses import replace

from sqlalchemy import delete, func, select, update

from orchestrator.controller import enrolment, evacuate, hosts, stale
from orchestrator.model.errors import ConflictError
from orchestrator.model.fleet import FleetHost
from orchestrator.model.states import HostState, VolumeState
from orchestrator.store.tables.consoles import StreamOrderRow
from orchestrator.store.tables.fleet import (
    GpuRow,
    HostDoctorRow,
    HostFactsRow,
    HostMemoryRow,
    HostRow,
    RemovalRow,
)
from orchestrator.store.tables.instances import ClaimRow, InstanceRow
from orchestrator.store.tables.volumes import VolumeRow
from orchestrator.store.unit_of_work import Reader, UnitOfWork, table_of

_HOSTS, _INSTANCES = table_of(HostRow), table_of(InstanceRow)
_VOLUMES, _CLAIMS = table_of(VolumeRow), table_of(ClaimRow)
#: An audit record names so many lost volumes; each has a record of its own in its tenant's log.
_NAMED = 100


def remove(tx: UnitOfWork, reference: str, reason: str, *, lost: bool = False) -> FleetHost:
    """Take a host out: a drained or fenced one with nothing on it, or one that never came in.

    Args:
        lost: give up the volumes on it, and what it may still run of instances that live elsewhere.

    Raises:
        NotFoundError: `host.unknown`.
        ConflictError: `host.state`, `host.evacuating`, `host.in_use`.
    """
    host = hosts.get(tx, reference, lock=True)
    _must_be_out(host)
    given_up: list[str] = []
    if lost:
        given_up = evacuate.give_up(tx, host)
        for each in stale.of_host(tx, host.id):
            stale.forget(tx, each)
    _must_be_empty(tx, host, len(stale.of_host(tx, host.id)))
    enrolment.revoke(tx, host.id)
    hosts.use_up(tx, host.id)
    forget(tx, host)
    tx.execute(
        update(_HOSTS)
        .where(_HOSTS.c.id == host.id)
        .values(
            state=HostState.REMOVED,
            reason=reason,
            drain=None,
            doctor=None,
            strays=[],
            error=None,
            generation=_HOSTS.c.generation + 1,
            revision=_HOSTS.c.revision + 1,
        )
    )
    details = {
        "name": host.name,
        "reason": reason,
        "was": host.state.value,
        "lost_volumes": given_up[:_NAMED],
    }
    tx.record("host.remove", ("host", host.id), tenant=None, details=details)
    tx.wake(f"host:{host.id}")
    tx.wake("scheduler")
    return replace(host, state=HostState.REMOVED, reason=reason, drain=None, strays=(), error=None)


def _must_be_out(host: FleetHost) -> None:
    never_in = host.state is HostState.ENROLLING and host.reported_ms is None
    if host.evacuation_id is not None:
        raise ConflictError(
            "host.evacuating", f"{host.name} is being evacuated", hint=f"wait for {host.evacuation_id}"
        )
    if host.state not in (HostState.DRAINED, HostState.FENCED) and not never_in:
        raise ConflictError(
            "host.state",
            f"{host.name} is {host.state.value}; only a drained or fenced host is removed",
            hint=f"bulkhead host drain {host.name}; one that is gone: host fence, host evacuate",
        )


def _must_be_empty(tx: Reader, host: FleetHost, stale: int) -> None:
    gone = (VolumeState.DELETED, VolumeState.LOST)
    instances, claims = (
        int(tx.scalar(select(func.count()).where(table.c.host_id == host.id)) or 0)
        for table in (_INSTANCES, _CLAIMS)
    )
    kept = select(func.count()).where(_VOLUMES.c.host_id == host.id, _VOLUMES.c.state.not_in(gone))
    left = {
        "instances": instances,
        "volumes": int(tx.scalar(kept) or 0),
        "instances that were rebuilt elsewhere and may run there": stale,
        # Named only where nothing else explains it.
        "claims": 0 if instances or stale else claims,
    }
    held = ", ".join(f"{count} {noun}" for noun, count in left.items() if count)
    if not held:
        return
    if instances:
        out = host.state is HostState.FENCED
        hint = "bulkhead host evacuate" if out else "delete them, or fence and evacuate the host"
    else:
        hint = "--lost gives up what is only on it: nobody gets that back"
    # Volumes of their own outlive instances: forgetting their host would lose what is written on them.
    raise ConflictError("host.in_use", f"{host.name} still has {held}", hint=hint)


def forget(tx: UnitOfWork, host: FleetHost) -> None:
    """Delete what only means something while there is a host: GPUs, memory, open orders."""
    for row in (GpuRow, HostDoctorRow, HostFactsRow, HostMemoryRow, RemovalRow, StreamOrderRow):
        table = table_of(row)
        tx.execute(delete(table).where(table.c.host_id == host.id))
    # What is lost is lost on no host from now on.
    lost = (_VOLUMES.c.host_id == host.id, _VOLUMES.c.state == VolumeState.LOST)
    size_gib = int(tx.scalar(select(func.coalesce(func.sum(_VOLUMES.c.size_gib), 0)).where(*lost)))
    tx.execute(update(_VOLUMES).where(*lost).values(host_id=None))
    tx.execute(
        update(_HOSTS).where(_HOSTS.c.id == host.id).values(used_disk_gib=_HOSTS.c.used_disk_gib - size_gib)
    )
