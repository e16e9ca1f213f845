"""Strays: things on hosts with our marks that the database does not know there; kept, shown, never touched.

An agent reports whatever its assignment does not name. Most of that the database knows all the same, such as
a volume that no instance has; the rest came to be by orders that it does not remember. Only an operator's
order takes such a thing away. Called by `reports` and the public API.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import select, update

from orchestrator.audit.canonical import MAX_INTEGER
from orchestrator.controller import hosts, operations, stale
from orchestrator.controller.instances import new_revision
from orchestrator.model.errors import ConflictError, NotFoundError
from orchestrator.model.fleet import FleetHost
from orchestrator.model.report import Stray
from orchestrator.model.states import InstanceState, RequestState, VolumeState
from orchestrator.store.ids import new_id
from orchestrator.store.tables.fleet import HostRow, RemovalRow
from orchestrator.store.tables.instances import InstanceRow, RequestRow
from orchestrator.store.tables.networks import PortRow
from orchestrator.store.tables.volumes import VolumeRow
from orchestrator.store.unit_of_work import Reader, UnitOfWork, table_of

_HOSTS, _REMOVALS, _INSTANCES = table_of(HostRow), table_of(RemovalRow), table_of(InstanceRow)
_VOLUMES, _PORTS, _REQUESTS = table_of(VolumeRow), table_of(PortRow), table_of(RequestRow)
#: What an order may name; seeds and ports go with their instance.
_REMOVABLE = ("instance", "volume")
#: Above every generation that a forgotten order can have had. Ids are never reused: nothing later is meant.
#: The largest number that an audit record can name, since the removal stands there.
_ANY_GENERATION = MAX_INTEGER
_MAX_KEPT = 1000


def found(tx: UnitOfWork, host: FleetHost, strays: Iterable[Stray]) -> list[dict[str, str]]:
    """Keep what one report names and the database does not know there, when that is news; return it."""
    seen = {(each.kind, each.id) for each in strays}
    known = _known(tx, host.id, {identity for _kind, identity in seen}) if seen else set()
    now = [{"kind": kind, "id": identity} for kind, identity in sorted(seen) if identity not in known][
        :_MAX_KEPT
    ]
    if [dict(each) for each in host.strays] != now:
        tx.execute(update(_HOSTS).where(_HOSTS.c.id == host.id).values(strays=now))
        tx.record(
            "host.strays",
            ("host", host.id),
            tenant=None,
            stage="outcome",
            details={"strays": [f"{each['kind']} {each['id']}" for each in now]},
        )
        # What was rebuilt elsewhere is expected here, and waits for its new place all the same.
        expected = {each.instance_id for each in stale.of_host(tx, host.id)}
        running = [each["id"] for each in now if each["kind"] == "instance"]
        _hold_back(tx, [each for each in running if each not in expected])
    return now


def remove(tx: UnitOfWork, reference: str, kind: str, identity: str, reason: str) -> FleetHost:
    """Order a host to take away one thing that it reported and that the database does not know there.

    Raises:
        NotFoundError: `host.unknown`, `stray.not_reported`.
        ConflictError: `stray.goes_along`: it goes with its instance; `stray.ordered`.
    """
    host = hosts.get(tx, reference, lock=True)
    left = stale.of_host(tx, host.id, identity) if kind == "instance" else []
    if left:
        stale.order_away(tx, host, left[0], reason)
        return hosts.get(tx, host.id)
    if {"kind": kind, "id": identity} not in [dict(each) for each in host.strays]:
        raise NotFoundError(
            "stray.not_reported",
            f"{host.name} reports no stray {kind} {identity}",
            hint=f"bulkhead host show {host.name} -o yaml lists what it reports",
        )
    if kind not in _REMOVABLE:
        raise ConflictError(
            "stray.goes_along", f"a {kind} goes with its instance", hint="remove the instance"
        )
    open_order = select(_REMOVALS.c.id).where(
        _REMOVALS.c.host_id == host.id, _REMOVALS.c.subject_id == identity, _REMOVALS.c.done_ms.is_(None)
    )
    if tx.first(open_order) is not None:
        raise ConflictError("stray.ordered", f"{identity} is ordered away already")
    tx.add(
        RemovalRow,
        id=new_id("rem"),
        host_id=host.id,
        kind=kind,
        subject_id=identity,
        generation=_older_than_wanted(tx, identity),
        tenant_id=None,
        ordered_ms=tx.now_ms,
        done_ms=None,
    )
    tx.record(
        "host.remove_stray",
        ("host", host.id),
        tenant=None,
        details={"kind": kind, "id": identity, "reason": reason},
    )
    new_revision(tx, host.id)
    return hosts.get(tx, host.id)


def _older_than_wanted(tx: Reader, identity: str) -> int:
    """Up to which generation a stray goes: one that lives elsewhere must be able to come here again."""
    for table in (_INSTANCES, _VOLUMES):
        row = tx.first(
            select(table.c.generation, table.c.host_id, table.c.state).where(
                table.c.id == identity, table.c.state.not_in(("deleted", "lost"))
            )
        )
        if row is not None:
            return max(1, int(row.generation) - 1)
    return _ANY_GENERATION


def _known(tx: Reader, host_id: str, ids: set[str]) -> set[str]:
    """Which of these ids the database knows on this host, or has ordered away from it."""
    wanted = sorted(ids)
    here = _INSTANCES.c.host_id == host_id
    questions = (
        select(_INSTANCES.c.id).where(here, _INSTANCES.c.id.in_(wanted)),
        select(_VOLUMES.c.id).where(
            _VOLUMES.c.host_id == host_id,
            _VOLUMES.c.id.in_(wanted),
            _VOLUMES.c.state.not_in((VolumeState.DELETED, VolumeState.LOST)),
        ),
        select(_PORTS.c.id)
        .join(_INSTANCES, _INSTANCES.c.id == _PORTS.c.instance_id)
        .where(here, _PORTS.c.id.in_(wanted)),
        select(_REMOVALS.c.subject_id.label("id")).where(
            _REMOVALS.c.host_id == host_id,
            _REMOVALS.c.subject_id.in_(wanted),
            _REMOVALS.c.done_ms.is_(None),
        ),
    )
    return {row.id for question in questions for row in tx.all(question)}


def _hold_back(tx: UnitOfWork, running: Iterable[str]) -> None:
    """An instance that waits for a place and runs on some host already must not get a second one."""
    ids = list(running)
    waiting = tx.all(
        select(_INSTANCES.c.id, _INSTANCES.c.tenant_id, _INSTANCES.c.operation_id).where(
            _INSTANCES.c.id.in_(ids), _INSTANCES.c.state == InstanceState.PENDING
        )
    )
    for row in waiting:
        error: Mapping[str, Any] = ConflictError(
            "instance.runs_elsewhere",
            "it runs already, by an order that the database does not remember",
            hint="ask an operator to remove it from its host, then delete it and create it again",
        ).as_dict()
        tx.execute(
            update(_REQUESTS)
            .where(_REQUESTS.c.instance_id == row.id, _REQUESTS.c.state == RequestState.WAITING)
            .values(state=RequestState.CANCELLED, decided_ms=tx.now_ms)
        )
        tx.execute(
            update(_INSTANCES)
            .where(_INSTANCES.c.id == row.id, _INSTANCES.c.state == InstanceState.PENDING)
            .values(state=InstanceState.ERROR, error=dict(error), updated_ms=tx.now_ms)
        )
        operations.fail(tx, row.operation_id, error)
        tx.record(
            "instance.failed",
            ("instance", row.id),
            tenant=row.tenant_id,
            stage="outcome",
            outcome="failed",
            details={"code": "instance.runs_elsewhere", "failures": 1, "state": InstanceState.ERROR.value},
        )
