"""What hosts have in later generations than a restored database says: taken over, so that orders count again.

An agent refuses an order below the generation of what it has, or up to which it removed it. The database
that gave those later orders is lost; the host's word is all that is left of them. Taken over is the
generation that the host shows and not one above it: a VM whose definition is still the same runs on
untouched. Nothing is taken over before the deployment was said to be restored, nor while it only observes.
Called by `reports`.
"""

from __future__ import annotations

from sqlalchemy import select, update

from orchestrator.audit.canonical import MAX_INTEGER
from orchestrator.controller.instances import new_revision
from orchestrator.model.deployment import Deployment
from orchestrator.model.errors import ConflictError
from orchestrator.model.fleet import FleetHost
from orchestrator.model.instance import GONE, InstanceRecord
from orchestrator.model.report import AbsentReport, InstanceReport
from orchestrator.model.states import Desired, InstanceState
from orchestrator.store.nouns import INSTANCES
from orchestrator.store.rows import PLATFORM
from orchestrator.store.tables.fleet import RemovalRow
from orchestrator.store.tables.instances import InstanceRow
from orchestrator.store.unit_of_work import Reader, UnitOfWork, table_of

_INSTANCES, _REMOVALS = table_of(InstanceRow), table_of(RemovalRow)
#: Of a deployment that never came back from a backup; there, no host can be right and the database wrong.
_FIRST_EPOCH = 1
_INSTANCE_STALE = "instance.stale"
_STALE = (_INSTANCE_STALE, "volume.stale")
_REMOVED = "instance.fenced"


def ahead(tx: Reader) -> tuple[str, ...]:
    """Ids of instances that their hosts last showed in a later generation than the database says."""
    return _with_code(tx, _INSTANCE_STALE)


def gone(tx: Reader) -> tuple[str, ...]:
    """Ids of instances that their hosts removed by orders that the database does not remember."""
    return _with_code(tx, GONE)


def adopted(tx: UnitOfWork, ours: Deployment, instance: InstanceRecord, seen: InstanceReport) -> bool:
    """Take over an instance's generation from its host; False when the report is about something else.

    What is wanted of it stays as it is: its host follows that with the next assignment.
    """
    held = seen.held_generation
    if not _counts(ours, seen.error, _STALE) or held is None or not instance.generation < held <= MAX_INTEGER:
        return False
    tx.execute(
        update(_INSTANCES)
        .where(_INSTANCES.c.id == instance.id, _INSTANCES.c.generation == instance.generation)
        .values(generation=held, failures=0, updated_ms=tx.now_ms)
    )
    tx.record(
        "instance.adopted",
        ("instance", instance.id),
        tenant=instance.tenant_id,
        stage="outcome",
        details={"host": instance.host_id or "", "was": instance.generation, "generation": held},
    )
    if instance.host_id is not None:
        new_revision(tx, instance.host_id)
    return True


def adopted_removal(tx: UnitOfWork, ours: Deployment, host: FleetHost, seen: AbsentReport) -> bool:
    """Let an order to remove something count up to the generation that its host has; else False.

    It was ordered away for good, in whatever generation: ids are never used again.
    """
    held = seen.held_generation
    if not _counts(ours, seen.error, _STALE) or held is None or held > MAX_INTEGER:
        return False
    order = tx.first(
        select(_REMOVALS).where(
            _REMOVALS.c.host_id == host.id,
            _REMOVALS.c.kind == seen.kind,
            _REMOVALS.c.subject_id == seen.id,
            _REMOVALS.c.done_ms.is_(None),
            _REMOVALS.c.generation < held,
        )
    )
    if order is None:
        return False
    tx.execute(update(_REMOVALS).where(_REMOVALS.c.id == order.id).values(generation=held))
    tx.record(
        f"{order.kind}.adopted",
        (order.kind, order.subject_id),
        tenant=order.tenant_id,
        stage="outcome",
        details={"host": host.id, "was": order.generation, "generation": held},
    )
    new_revision(tx, host.id)
    return True


def was_removed(ours: Deployment, seen: InstanceReport) -> bool:
    """Tell whether a host says that it removed this instance already; so it does after a restore only."""
    return ours.epoch > _FIRST_EPOCH and (seen.error or {}).get("code") == _REMOVED


def lost(tx: UnitOfWork, instance: InstanceRecord, seen: InstanceReport) -> dict[str, object]:
    """Want an instance no more that its host removed, and return what is to be said of it.

    It leaves its host's assignment, so that nobody tries in vain; what it holds here goes with its deletion.
    """
    tx.execute(
        update(_INSTANCES)
        .where(_INSTANCES.c.id == instance.id, _INSTANCES.c.generation == instance.generation)
        .values(desired=Desired.STOPPED)
    )
    if instance.host_id is not None:
        new_revision(tx, instance.host_id)
    return ConflictError(
        GONE,
        f"{instance.name} was deleted after the backup that the database came back from: "
        f"its host removed it up to generation {seen.held_generation}",
        hint=f"bulkhead instance delete {instance.name} gives back what it holds",
    ).as_dict()


def _counts(ours: Deployment, error: object, codes: tuple[str, ...]) -> bool:
    told = error.get("code") if isinstance(error, dict) else None
    return ours.epoch > _FIRST_EPOCH and not ours.observe_only and told in codes


def _with_code(tx: Reader, code: str) -> tuple[str, ...]:
    over = (InstanceState.DELETING, InstanceState.DELETED)
    found = INSTANCES.where(
        tx,
        PLATFORM,
        _INSTANCES.c.error["code"].as_string() == code,
        _INSTANCES.c.state.not_in(over),
    )
    return tuple(sorted(each.id for each in found))
