"""Volumes of their own: made empty, given to instances by `attachments`, erased by their host."""

from __future__ import annotations

from sqlalchemy import insert, update
from sqlalchemy.exc import IntegrityError

from orchestrator.controller import operations, quotas, release, stale
from orchestrator.controller.caller import Caller, unknown
from orchestrator.controller.instances import new_revision
from orchestrator.model.errors import ConflictError
from orchestrator.model.operation import Operation
from orchestrator.model.states import VolumeState
from orchestrator.model.volume import VolumeRecord
from orchestrator.store.ids import new_id
from orchestrator.store.nouns import VOLUMES
from orchestrator.store.tables.fleet import RemovalRow
from orchestrator.store.tables.volumes import VolumeRow
from orchestrator.store.unit_of_work import Reader, UnitOfWork, table_of

_TABLE = table_of(VolumeRow)


def create(tx: UnitOfWork, caller: Caller, name: str, size_gib: int) -> VolumeRecord:
    """Make an empty volume; it gets a host when the first instance that has it is placed.

    Raises:
        ConflictError: `volume.name_taken`.
        QuotaError: `quota.exceeded`.
    """
    quotas.reserve(tx, caller.tenant_id, {"volumes": 1, "disk_gib": size_gib})
    identity = new_id("vol")
    try:
        tx.add(
            VolumeRow,
            id=identity,
            tenant_id=caller.tenant_id,
            name=name,
            size_gib=size_gib,
            image_id=None,
            state=VolumeState.AVAILABLE,
            generation=1,
            host_id=None,
            instance_id=None,
            boot=False,
            created_ms=tx.now_ms,
        )
    except IntegrityError as exc:
        raise ConflictError("volume.name_taken", f"there is a volume {name} already", field="name") from exc
    tx.record(
        "volume.create",
        ("volume", identity),
        tenant=caller.tenant_id,
        details={"name": name, "size_gib": size_gib},
    )
    return get(tx, caller, identity)


def get(tx: Reader, caller: Caller, reference: str, *, lock: bool = False) -> VolumeRecord:
    """Return one.

    Raises:
        NotFoundError: `volume.unknown`.
    """
    found = VOLUMES.get(tx, caller.scope, reference, lock=lock)
    if found is None:
        raise unknown("volume", reference)
    return found


def remove(tx: UnitOfWork, caller: Caller, reference: str, operation_id: str) -> Operation:
    """Erase a volume that no instance has.

    Raises:
        NotFoundError: `volume.unknown`.
        ConflictError: `volume.in_use`, `volume.deleting`.
    """
    volume = get(tx, caller, reference, lock=True)
    if volume.instance_id is not None:
        hint = "delete that instance" if volume.boot else "stop that instance and detach it, or delete it"
        raise ConflictError("volume.in_use", f"{volume.name} belongs to {volume.instance_id}", hint=hint)
    if volume.state is VolumeState.DELETING:
        raise ConflictError("volume.deleting", f"{volume.name} is being deleted")
    made = operations.begin(tx, caller, "volume.delete", ("volume", volume.id), operation_id)
    tx.record("volume.delete", ("volume", volume.id), tenant=caller.tenant_id)
    if volume.state is VolumeState.LOST and volume.host_id is not None:
        # Without its key nothing of it can be read; its host takes the rest away when it comes back.
        stale.order(tx, volume.host_id, volume.tenant_id, "volume", volume.id, volume.generation)
        new_revision(tx, volume.host_id)
    if volume.host_id is None or volume.state is VolumeState.LOST:
        release.standalone_volume(tx, volume)
        return made
    tx.execute(update(_TABLE).where(_TABLE.c.id == volume.id).values(state=VolumeState.DELETING))
    tx.execute(
        insert(table_of(RemovalRow)).values(
            id=new_id("rem"),
            host_id=volume.host_id,
            kind="volume",
            subject_id=volume.id,
            generation=volume.generation,
            tenant_id=volume.tenant_id,
            ordered_ms=tx.now_ms,
            done_ms=None,
        )
    )
    new_revision(tx, volume.host_id)
    return made
