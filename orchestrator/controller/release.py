"""What an instance held goes back: claims, memory, GPUs, addresses, quota; once its host says it is gone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Select, delete, select, update

from orchestrator.controller import operations, quotas
from orchestrator.controller.gpus import move
from orchestrator.model.instance import InstanceRecord
from orchestrator.model.states import GpuState, InstanceState, VolumeState
from orchestrator.model.volume import VolumeRecord
from orchestrator.store.nouns import VOLUMES
from orchestrator.store.rows import PLATFORM
from orchestrator.store.tables.fleet import GpuRow, HostMemoryRow, HostRow
from orchestrator.store.tables.instances import ClaimRow, InstanceRow
from orchestrator.store.tables.keys import UserDataRow, WrappedKeyRow
from orchestrator.store.tables.networks import PortRow
from orchestrator.store.tables.volumes import VolumeRow
from orchestrator.store.unit_of_work import Reader, UnitOfWork, table_of

_INSTANCES, _CLAIMS, _HOSTS = table_of(InstanceRow), table_of(ClaimRow), table_of(HostRow)
_MEMORY, _GPUS, _PORTS = table_of(HostMemoryRow), table_of(GpuRow), table_of(PortRow)
_VOLUMES, _KEYS, _USER_DATA = table_of(VolumeRow), table_of(WrappedKeyRow), table_of(UserDataRow)


def instance(tx: UnitOfWork, gone: InstanceRecord) -> None:
    """Free everything that a deleted instance held, and end its operation."""
    if gone.host_id is not None:
        holdings(tx, gone.id, gone.host_id, gone.placement or {}, gone.page_size_kib)
    tx.execute(delete(_PORTS).where(_PORTS.c.instance_id == gone.id))
    tx.execute(delete(_USER_DATA).where(_USER_DATA.c.instance_id == gone.id))
    held = VOLUMES.where(tx, PLATFORM, _VOLUMES.c.instance_id == gone.id)
    for each in held:
        if each.boot:
            volume(tx, each)
    let_go(tx, [each for each in held if not each.boot])
    tx.execute(
        update(_INSTANCES)
        .where(_INSTANCES.c.id == gone.id)
        .values(state=InstanceState.DELETED, host_id=None, placement=None, updated_ms=tx.now_ms)
    )
    used = {"instances": 1, "vcpus": gone.vcpus, "memory_mib": gone.memory_mib, "gpus": gone.gpus}
    quotas.give_back(tx, gone.tenant_id, {**used, "volumes": 1, "disk_gib": gone.disk_gib})
    operations.advance(tx, gone.operation_id, "deleted")
    tx.record("instance.deleted", ("instance", gone.id), tenant=gone.tenant_id, stage="outcome")


def volume(tx: UnitOfWork, gone: VolumeRecord) -> None:
    """A volume is erased: its key goes, and with it whatever a copy of its bytes could tell."""
    tx.execute(delete(_KEYS).where(_KEYS.c.volume_id == gone.id))
    tx.execute(
        update(_VOLUMES)
        .where(_VOLUMES.c.id == gone.id)
        .values(state=VolumeState.DELETED, instance_id=None, host_id=None)
    )
    return_disk(tx, gone.host_id, gone.size_gib)


def standalone_volume(tx: UnitOfWork, gone: VolumeRecord) -> None:
    """A volume of its own was erased by its host: its quota comes back."""
    operation = _erasing(tx, gone)
    volume(tx, gone)
    quotas.give_back(tx, gone.tenant_id, {"volumes": 1, "disk_gib": gone.size_gib})
    operations.advance(tx, operation, "erased")
    tx.record("volume.deleted", ("volume", gone.id), tenant=gone.tenant_id, stage="outcome")


def lost_volume(tx: UnitOfWork, host_id: str, volume_id: str) -> None:
    """A host erased what it still had of a lost volume: that is lost on no host from now on."""
    mine = (_VOLUMES.c.id == volume_id, _VOLUMES.c.host_id == host_id, _VOLUMES.c.state == VolumeState.LOST)
    size_gib = tx.scalar(select(_VOLUMES.c.size_gib).where(*mine))
    if size_gib is not None:
        tx.execute(update(_VOLUMES).where(*mine).values(host_id=None))
        return_disk(tx, host_id, int(size_gib))


def cannot_erase(tx: UnitOfWork, kept: VolumeRecord, error: Mapping[str, Any]) -> None:
    """Its host cannot erase a volume of its own, and goes on trying: say why on the operation that waits."""
    if operations.trouble(tx, _erasing(tx, kept), error):
        tx.record(
            "volume.erase_failed",
            ("volume", kept.id),
            tenant=kept.tenant_id,
            stage="outcome",
            outcome="failed",
            details={"code": str(error.get("code", ""))},
        )


def _erasing(tx: Reader, volume: VolumeRecord) -> str | None:
    """The operation that erases a volume."""
    found: str | None = tx.scalar(
        select(operations.TABLE.c.id)
        .where(operations.TABLE.c.subject_id == volume.id, operations.TABLE.c.kind == "volume.delete")
        .order_by(operations.TABLE.c.created_ms.desc())
    )
    return found


def let_go(tx: UnitOfWork, held: Sequence[VolumeRecord]) -> None:
    """Take volumes of their own from their instance; what was written stays on their host.

    One whose key no host ever got was never written: it belongs to no host again.
    """
    for each in held:
        unwritten = never_written(tx, each)
        tx.execute(
            update(_VOLUMES)
            .where(_VOLUMES.c.id == each.id)
            .values(
                instance_id=None,
                state=VolumeState.AVAILABLE,
                host_id=None if unwritten else each.host_id,
            )
        )
        if unwritten:
            return_disk(tx, each.host_id, each.size_gib)


def never_written(tx: Reader, volume: VolumeRecord) -> bool:
    """Whether no host ever got its key, so that nothing of it can be anywhere."""
    return volume.state is VolumeState.CREATING and tx.first(_has_key(volume.id)) is None


def _has_key(volume_id: str) -> Select[Any]:
    return select(_KEYS.c.volume_id).where(_KEYS.c.volume_id == volume_id)


def return_disk(tx: UnitOfWork, host_id: str | None, size_gib: int) -> None:
    """Give disk back to a host; None is none."""
    if host_id is None:
        return
    tx.execute(
        update(_HOSTS)
        .where(_HOSTS.c.id == host_id)
        .values(used_disk_gib=_HOSTS.c.used_disk_gib - size_gib, generation=_HOSTS.c.generation + 1)
    )
    tx.wake("scheduler")


def holdings(
    tx: UnitOfWork, instance_id: str, host_id: str, placement: Mapping[str, Any], page_kib: int
) -> None:
    """Give back what an instance holds on one host: CPUs, memory, and its GPUs to be sanitised."""
    tx.execute(delete(_CLAIMS).where(_CLAIMS.c.instance_id == instance_id, _CLAIMS.c.host_id == host_id))
    pages: Counter[int] = Counter()
    for cell in placement.get("cells", ()):
        pages[cell["node"]] += cell["memory_mib"] * 1024 // page_kib
    for node, count in sorted(pages.items()):
        tx.execute(
            update(_MEMORY)
            .where(_MEMORY.c.host_id == host_id, _MEMORY.c.node == node, _MEMORY.c.page_size_kib == page_kib)
            .values(used=_MEMORY.c.used - count)
        )
    held = (_GPUS.c.instance_id == instance_id, _GPUS.c.host_id == host_id)
    for row in tx.all(select(_GPUS).where(*held).order_by(_GPUS.c.id)):
        if row.state in (GpuState.QUARANTINED, GpuState.MISSING):
            # It stays out of the pool; only an operator, or its coming back, makes it dirty.
            tx.execute(update(_GPUS).where(_GPUS.c.id == row.id).values(instance_id=None, tenant_id=None))
            continue
        if row.state == GpuState.CLAIMED:
            # Never exposed: nothing of the tenant can be on it.
            move(tx, row.id, GpuState.CLEAN, instance_id=None, tenant_id=None)
            continue
        move(tx, row.id, GpuState.RELEASING)
        # It stays there until its host's pool shows that it was cleaned: `cleaning`.
        move(tx, row.id, GpuState.SANITISING, instance_id=None, tenant_id=None)
    tx.execute(
        update(_HOSTS)
        .where(_HOSTS.c.id == host_id)
        .values(generation=_HOSTS.c.generation + 1, revision=_HOSTS.c.revision + 1)
    )
    tx.wake(f"host:{host_id}")
    tx.wake("scheduler")
