"""Stale instances: what a host may still run of instances that were rebuilt elsewhere.

They keep what they hold on their host: its CPUs, memory and GPUs are nobody else's while a VM may be using
them. The host is told to cut them off, never to remove them: that is an operator's order (`strays.remove`),
or their tenant's, who deletes the instance. Called by `evacuate`, `reports` and the compiler of assignments.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import delete, insert, select

from orchestrator.controller import release
from orchestrator.controller.instances import new_revision
from orchestrator.model.errors import ConflictError
from orchestrator.model.fleet import FleetHost, StaleInstance
from orchestrator.store.ids import new_id
from orchestrator.store.nouns import STALE
from orchestrator.store.rows import PLATFORM
from orchestrator.store.tables.fleet import RemovalRow, StaleInstanceRow
from orchestrator.store.unit_of_work import Reader, UnitOfWork, table_of

_TABLE, _REMOVALS = table_of(StaleInstanceRow), table_of(RemovalRow)


def of_host(tx: Reader, host_id: str, instance_id: str | None = None) -> list[StaleInstance]:
    """Those of one host, oldest first; of one instance, if that is named."""
    return STALE.where(tx, PLATFORM, _TABLE.c.host_id == host_id, *STALE.like(instance_id=instance_id))


def order_away(tx: UnitOfWork, host: FleetHost, left: StaleInstance, reason: str) -> None:
    """Order a host to take a stale instance and its former boot volume away.

    Raises:
        ConflictError: `stray.ordered`.
    """
    ordered = select(_REMOVALS.c.id).where(
        _REMOVALS.c.host_id == host.id,
        _REMOVALS.c.subject_id == left.instance_id,
        _REMOVALS.c.done_ms.is_(None),
    )
    if tx.first(ordered) is not None:
        raise ConflictError("stray.ordered", f"{left.instance_id} is ordered away already")
    # Only up to here: the same instance, built anew, may be placed on this host again one day.
    order(tx, host.id, left.tenant_id, "instance", left.instance_id, left.generation)
    if left.volume_id is not None:
        order(tx, host.id, left.tenant_id, "volume", left.volume_id, left.volume_generation)
    details: Mapping[str, Any] = {
        "kind": "instance",
        "id": left.instance_id,
        "generation": left.generation,
        "reason": reason,
    }
    tx.record("host.remove_stray", ("host", host.id), tenant=None, details=details)
    new_revision(tx, host.id)


def order(tx: UnitOfWork, host_id: str, tenant_id: str, kind: str, subject: str, generation: int) -> None:
    """Write one order to a host that something must be gone; one that is open already stays as it is."""
    known = select(_REMOVALS.c.id).where(
        _REMOVALS.c.host_id == host_id,
        _REMOVALS.c.kind == kind,
        _REMOVALS.c.subject_id == subject,
        (_REMOVALS.c.done_ms.is_(None)) | (_REMOVALS.c.generation == generation),
    )
    if tx.first(known) is not None:
        return
    tx.execute(
        insert(_REMOVALS).values(
            id=new_id("rem"),
            host_id=host_id,
            kind=kind,
            subject_id=subject,
            generation=generation,
            tenant_id=tenant_id,
            ordered_ms=tx.now_ms,
            done_ms=None,
        )
    )


def gone(tx: UnitOfWork, host_id: str, instance_id: str, generation: int) -> None:
    """A host took an instance away up to a generation: what its stale self held goes back."""
    for left in of_host(tx, host_id, instance_id):
        if left.generation <= generation:
            forget(tx, left)


def forget(tx: UnitOfWork, left: StaleInstance) -> None:
    """Give back what a stale instance held; its GPUs stay with its host until that shows them clean."""
    release.holdings(tx, left.instance_id, left.host_id, left.placement, left.page_size_kib)
    release.return_disk(tx, left.host_id, left.disk_gib)
    tx.execute(delete(_TABLE).where(_TABLE.c.id == left.id))
    details = {"host": left.host_id, "generation": left.generation}
    tx.record(
        "instance.stale_gone", ("instance", left.instance_id), tenant=None, stage="outcome", details=details
    )
