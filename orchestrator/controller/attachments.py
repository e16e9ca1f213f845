"""Volumes of their own on instances: taken when an instance is made or while it is stopped, let go unharmed.

A volume gets a host with the first instance that has a place there, and goes only to instances of that host
from then on: moving one is a copy, which is not there yet. What runs keeps the disks it started with, so
nothing is attached to it or taken from it.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select, update

from orchestrator.controller import instances, release, volumes
from orchestrator.controller.caller import Caller
from orchestrator.model.assignment import MAX_DISK_GIB
from orchestrator.model.errors import CapacityError, ConflictError, InvalidInputError
from orchestrator.model.instance import InstanceRecord
from orchestrator.model.states import InstanceState, VolumeState
from orchestrator.model.volume import VolumeRecord
from orchestrator.store.nouns import VOLUMES
from orchestrator.store.tables.fleet import HostRow
from orchestrator.store.tables.instances import InstanceRow
from orchestrator.store.tables.volumes import VolumeRow
from orchestrator.store.unit_of_work import Reader, UnitOfWork, table_of

_VOLUMES, _INSTANCES, _HOSTS = table_of(VolumeRow), table_of(InstanceRow), table_of(HostRow)

#: An assignment's instance has at most 32 volumes (`model.assignment`), one of which boots.
MAX_ATTACHED = 31


def of(tx: Reader, caller: Caller, wanted: Sequence[str]) -> dict[str, list[VolumeRecord]]:
    """The volumes of some instances, by instance: the boot volume first, the rest as they were made."""
    found: dict[str, list[VolumeRecord]] = {each: [] for each in wanted}
    # SQLite takes a bounded number of parameters.
    for at in range(0, len(wanted), 500):
        for volume in VOLUMES.where(tx, caller.scope, _VOLUMES.c.instance_id.in_(wanted[at : at + 500])):
            assert volume.instance_id is not None  # noqa: S101 - the query says so
            found[volume.instance_id].append(volume)
    return {key: sorted(each, key=lambda volume: not volume.boot) for key, each in found.items()}


def take(
    tx: UnitOfWork, caller: Caller, instance_id: str, name: str, wanted: Sequence[str], *, boot_gib: int
) -> None:
    """Give a new instance the volumes that it was asked for with; placement heeds where they live.

    Args:
        name: the instance's.
        boot_gib: what its boot volume has.

    Raises:
        NotFoundError: `volume.unknown`.
        InvalidInputError: `instance.volume_twice`.
        ConflictError: `volume.in_use`, `volume.not_available`, `volume.elsewhere`, `instance.disk_too_large`.
    """
    named = {volumes.get(tx, caller, reference).id for reference in wanted}
    if len(named) < len(wanted):
        raise InvalidInputError("instance.volume_twice", "each volume can be named once", field="volumes")
    home: str | None = None
    together_gib = boot_gib
    # In one order for all, so that two that want the same ones do not wait for each other in a circle.
    for volume in [volumes.get(tx, caller, identity, lock=True) for identity in sorted(named)]:
        _demand_free(volume, name, home)
        home = home or volume.host_id
        together_gib += volume.size_gib
        _demand_size(name, together_gib)
        _give(tx, volume, instance_id, volume.host_id)


def attach(tx: UnitOfWork, caller: Caller, reference: str, volume_reference: str) -> InstanceRecord:
    """Give a stopped instance one more volume; it sees it when it is started.

    Raises:
        NotFoundError: `instance.unknown`, `volume.unknown`.
        ConflictError: `instance.not_stopped`, `instance.volumes_full`, `instance.disk_too_large`,
            `volume.in_use`, `volume.not_available`, `volume.elsewhere`.
        CapacityError: `volume.no_room`: its host has not so much disk free.
    """
    instance = _stopped(tx, caller, reference, "attached to")
    volume = volumes.get(tx, caller, volume_reference, lock=True)
    held = tx.all(select(_VOLUMES.c.size_gib).where(_VOLUMES.c.instance_id == instance.id))
    if len(held) > MAX_ATTACHED:
        raise ConflictError(
            "instance.volumes_full", f"{instance.name} has {MAX_ATTACHED} volumes beside its boot volume"
        )
    _demand_free(volume, instance.name, instance.host_id)
    _demand_size(instance.name, sum(row.size_gib for row in held) + volume.size_gib)
    if volume.host_id is None and instance.host_id is not None:
        _take_disk(tx, instance, instance.host_id, volume)
    _give(tx, volume, instance.id, instance.host_id)
    return _changed(tx, caller, instance, volume, "volume.attach")


def detach(tx: UnitOfWork, caller: Caller, reference: str, volume_reference: str) -> InstanceRecord:
    """Take a volume from a stopped instance; what is written on it stays.

    Raises:
        NotFoundError: `instance.unknown`, `volume.unknown`.
        ConflictError: `instance.not_stopped`, `volume.not_attached`, `volume.boots`.
    """
    instance = _stopped(tx, caller, reference, "detached from")
    volume = volumes.get(tx, caller, volume_reference, lock=True)
    if volume.instance_id != instance.id:
        raise ConflictError("volume.not_attached", f"{instance.name} does not have {volume.name}")
    if volume.boot:
        raise ConflictError(
            "volume.boots",
            f"{instance.name} boots from {volume.name}",
            hint="it goes when the instance is deleted",
        )
    release.let_go(tx, [volume])
    return _changed(tx, caller, instance, volume, "volume.detach")


def _stopped(tx: UnitOfWork, caller: Caller, reference: str, what: str) -> InstanceRecord:
    instance = instances.get(tx, caller, reference, lock=True)
    if instance.state is not InstanceState.STOPPED:
        raise ConflictError(
            "instance.not_stopped",
            f"{instance.name} is {instance.state.value}; volumes are {what} what is stopped only",
            hint=f"bulkhead instance stop {instance.name}",
        )
    return instance


def _demand_free(volume: VolumeRecord, name: str, home: str | None) -> None:
    if volume.instance_id is not None:
        raise ConflictError(
            "volume.in_use",
            f"{volume.name} belongs to {volume.instance_id}",
            field="volumes",
            hint="stop that instance and detach it first",
        )
    if volume.state is not VolumeState.AVAILABLE:
        raise ConflictError("volume.not_available", f"{volume.name} is {volume.state.value}", field="volumes")
    if None not in (volume.host_id, home) and volume.host_id != home:
        raise ConflictError(
            "volume.elsewhere",
            f"{volume.name} lives on another host than what {name} has already",
            field="volumes",
            hint="a volume cannot move: make a new one, or a new instance with this one",
        )


def _demand_size(name: str, together_gib: int) -> None:
    """No demand says more, and no host has it."""
    if together_gib > MAX_DISK_GIB:
        raise ConflictError(
            "instance.disk_too_large",
            f"the volumes of {name} would have {together_gib} GiB; {MAX_DISK_GIB} are the most",
            field="volumes",
        )


def _take_disk(tx: UnitOfWork, instance: InstanceRecord, host_id: str, volume: VolumeRecord) -> None:
    taken = tx.execute(
        update(_HOSTS)
        .where(_HOSTS.c.id == host_id, _HOSTS.c.used_disk_gib + volume.size_gib <= _HOSTS.c.disk_gib)
        .values(used_disk_gib=_HOSTS.c.used_disk_gib + volume.size_gib, generation=_HOSTS.c.generation + 1)
    )
    if taken.rowcount == 0:
        raise CapacityError(
            "volume.no_room",
            f"the host of {instance.name} has not {volume.size_gib} GiB of disk free",
            field="volumes",
            hint="take a smaller volume, or make a new instance with this one",
        )


def _give(tx: UnitOfWork, volume: VolumeRecord, instance_id: str, host_id: str | None) -> None:
    # What has no host was never written: its host makes it, and its key with it.
    state = VolumeState.CREATING if volume.host_id is None else VolumeState.IN_USE
    tx.execute(
        update(_VOLUMES)
        .where(_VOLUMES.c.id == volume.id)
        .values(instance_id=instance_id, host_id=host_id, state=state)
    )


def _changed(
    tx: UnitOfWork, caller: Caller, instance: InstanceRecord, volume: VolumeRecord, kind: str
) -> InstanceRecord:
    tx.execute(
        update(_INSTANCES)
        .where(_INSTANCES.c.id == instance.id)
        .values(generation=instance.generation + 1, updated_ms=tx.now_ms)
    )
    if instance.host_id is not None:
        instances.new_revision(tx, instance.host_id)
    details = {"instance": instance.id, "generation": instance.generation + 1}
    tx.record(kind, ("volume", volume.id), tenant=instance.tenant_id, details=details)
    return instances.get(tx, caller, instance.id)
