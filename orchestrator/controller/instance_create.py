"""What a tenant asks for when it creates an instance, and taking that back while it waits for a place."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from sqlalchemy import (
    LABEL_STYLE_TABLENAME_PLUS_COL,
    Column,
    Select,
    and_,
    bindparam,
    insert,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError

from orchestrator.controller import attachments, networks, operations, quotas, user_data
from orchestrator.controller.caller import Caller, unknown
from orchestrator.controller.user_data import SealedUserData
from orchestrator.model.catalog import Image, InstanceType
from orchestrator.model.errors import ConflictError, InvalidInputError
from orchestrator.model.instance import InstanceRecord
from orchestrator.model.operation import Operation
from orchestrator.model.states import Desired, InstanceState, RequestState, VolumeState
from orchestrator.store.ids import new_id, new_mac
from orchestrator.store.nouns import IMAGES, TYPES
from orchestrator.store.rows import PLATFORM, part_of
from orchestrator.store.tables.instances import InstanceRow, RequestRow
from orchestrator.store.tables.networks import PortRow
from orchestrator.store.tables.volumes import VolumeRow
from orchestrator.store.unit_of_work import Reader, UnitOfWork, table_of
from orchestrator.store.violations import violated

_TABLE, _REQUESTS = table_of(InstanceRow), table_of(RequestRow)


@dataclass(frozen=True)
class NewInstance:
    """What a tenant asks for: names or ids of type, image, networks and volumes beside the boot volume.

    Args:
        user_data: sealed for this tenant, under the id that the instance will have.
        on_no_capacity: `wait` in the queue, or `fail` at once.
        on_drain: `stop`, `move` or `refuse`, when its host is drained.
        drain_deadline_s: how long it may run on then; see `InstanceRecord`.
    """

    name: str
    type: str
    image: str
    networks: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    user_data: SealedUserData | None = None
    on_no_capacity: str = "wait"
    on_drain: str = "stop"
    drain_deadline_s: int | None = None


def create(tx: UnitOfWork, caller: Caller, wanted: NewInstance, operation_id: str) -> Operation:
    """Reserve the quota and write down what is wanted; the scheduler finds a place.

    One network costs eight statements here; authentication, idempotency and the audit record four more.

    Raises:
        NotFoundError: `instance_type.unknown`, `image.unknown`, `network.unknown`, `volume.unknown`.
        InvalidInputError: `instance.network_twice`, `instance.volume_twice`.
        ConflictError: `instance.name_taken`, `volume.name_taken`, `tenant.replaced`, and
            those of `attachments.take`.
        QuotaError: `quota.exceeded`.
        CapacityError: `network.full`.
    """
    kind, image = _catalog(tx, caller, wanted)
    addresses = [networks.take_address(tx, caller, reference) for reference in wanted.networks]
    if len({each.network_id for each in addresses}) < len(addresses):
        raise InvalidInputError("instance.network_twice", "each network can be named once", field="networks")
    quotas.reserve(tx, caller.tenant_id, usage(kind))
    identity = _identity(caller, wanted)
    _insert(tx, caller, wanted, kind, image, identity, operation_id)
    if wanted.user_data is not None:
        user_data.keep(tx, wanted.user_data)
    _boot_volume(tx, caller, f"{wanted.name}-boot", kind, image, identity)
    attachments.take(tx, caller, identity, wanted.name, wanted.volumes, boot_gib=kind.disk_gib)
    if addresses:
        rows = [
            {
                "id": new_id("prt"),
                "tenant_id": caller.tenant_id,
                "network_id": each.network_id,
                "instance_id": identity,
                "mac": new_mac(),
                "address": each.address,
                "prefix_length": each.prefix_length,
                "created_ms": tx.now_ms,
            }
            for each in addresses
        ]
        tx.execute(insert(table_of(PortRow)), rows)
    tx.add(
        RequestRow,
        id=new_id("req"),
        tenant_id=caller.tenant_id,
        instance_id=identity,
        state=RequestState.WAITING,
        on_no_capacity=wanted.on_no_capacity,
        reason=None,
        submitted_ms=tx.now_ms,
        decided_ms=None,
    )
    made = operations.begin(tx, caller, "instance.create", ("instance", identity), operation_id)
    tx.record(
        "instance.create",
        ("instance", identity),
        tenant=caller.tenant_id,
        details={"name": wanted.name, "type": kind.name, "image": image.digest, "operation": operation_id},
    )
    tx.wake("scheduler")
    return made


def _boot_volume(
    tx: UnitOfWork, caller: Caller, name: str, kind: InstanceType, image: Image, identity: str
) -> None:
    try:
        tx.add(
            VolumeRow,
            id=new_id("vol"),
            tenant_id=caller.tenant_id,
            name=name,
            size_gib=kind.disk_gib,
            image_id=image.id,
            state=VolumeState.CREATING,
            generation=1,
            host_id=None,
            instance_id=identity,
            boot=True,
            created_ms=tx.now_ms,
        )
    except IntegrityError as exc:
        if violated(exc) != "volume_name":
            raise
        raise ConflictError(
            "volume.name_taken", f"there is a volume {name} already", field="name", hint="choose another name"
        ) from exc


def usage(kind: InstanceType | InstanceRecord) -> dict[str, int]:
    """What one instance takes of its tenant's quota, its boot volume included."""
    return {
        "instances": 1,
        "vcpus": kind.vcpus,
        "memory_mib": kind.memory_mib,
        "gpus": kind.gpus,
        "volumes": 1,
        "disk_gib": kind.disk_gib,
    }


def _identity(caller: Caller, wanted: NewInstance) -> str:
    if wanted.user_data is None:
        return new_id("vm")
    if wanted.user_data.tenant_id != caller.tenant_id:
        # Names can change hands between two transactions; what is sealed for one opens for no other.
        raise ConflictError(
            "tenant.replaced", "that name means another tenant since a moment ago", hint="look, and try again"
        )
    return wanted.user_data.instance_id


def _catalog(tx: Reader, caller: Caller, wanted: NewInstance) -> tuple[InstanceType, Image]:
    row = tx.first(
        _looking(TYPES.key(wanted.type), IMAGES.key(wanted.image)),
        {"type": wanted.type, "image": wanted.image, "tenant": caller.tenant_id},
    )
    if row is None:
        if TYPES.get(tx, PLATFORM, wanted.type) is None:
            raise unknown("instance_type", wanted.type)
        raise unknown("image", wanted.image)
    return part_of(InstanceType, row, "instance_type"), part_of(Image, row, "image")


@cache
def _looking(kind: Column[Any], image: Column[Any]) -> Select[Any]:
    """The statement that finds type and image at once; the columns of either carry its table's name."""
    types, images = TYPES.table, IMAGES.table
    visible = images.c.tenant_id.is_(None) | (images.c.tenant_id == bindparam("tenant"))
    return (
        select(types, images)
        .join(images, and_(image == bindparam("image"), visible))
        .where(kind == bindparam("type"))
        .set_label_style(LABEL_STYLE_TABLENAME_PLUS_COL)
    )


def _insert(
    tx: UnitOfWork,
    caller: Caller,
    wanted: NewInstance,
    kind: InstanceType,
    image: Image,
    identity: str,
    operation_id: str,
) -> None:
    values: dict[str, Any] = {
        "id": identity,
        "tenant_id": caller.tenant_id,
        "name": wanted.name,
        "generation": 1,
        "state": InstanceState.PENDING,
        "desired": Desired.RUNNING,
        "type_name": kind.name,
        "image_id": image.id,
        "vcpus": kind.vcpus,
        "memory_mib": kind.memory_mib,
        "page_size_kib": kind.page_size_kib,
        "threads_per_core": kind.threads_per_core,
        "gpus": kind.gpus,
        "gpu_model": kind.gpu_model,
        "disk_gib": kind.disk_gib,
        "isolation": kind.isolation,
        "firmware": image.firmware,
        "user_data_bytes": 0 if wanted.user_data is None else wanted.user_data.size_bytes,
        "failures": 0,
        "on_drain": wanted.on_drain,
        "drain_deadline_s": wanted.drain_deadline_s,
        "operation_id": operation_id,
        "created_ms": tx.now_ms,
        "updated_ms": tx.now_ms,
    }
    try:
        tx.add(InstanceRow, **values)
    except IntegrityError as exc:
        if violated(exc) != "instance_name":
            raise
        raise ConflictError(
            "instance.name_taken", f"there is an instance {wanted.name} already", field="name"
        ) from exc


def cancel_create(tx: UnitOfWork, caller: Caller, operation: Operation) -> Operation:
    """Stop waiting for a place; the instance stays, without one, until it is deleted.

    Raises:
        ConflictError: `operation.over`, `operation.not_cancellable`: it has a place, or is no creation.
    """
    operations.must_be_open(operation)
    waiting = tx.execute(
        update(_REQUESTS)
        .where(_REQUESTS.c.instance_id == operation.subject_id, _REQUESTS.c.state == RequestState.WAITING)
        .values(state=RequestState.CANCELLED, decided_ms=tx.now_ms)
    )
    if operation.kind != "instance.create" or waiting.rowcount == 0:
        raise ConflictError(
            "operation.not_cancellable",
            f"{operation.kind} cannot be cancelled any more",
            hint="wait for it, then delete the instance",
        )
    why = {"code": "operation.cancelled", "message": "somebody cancelled it", "retryable": False}
    operations.cancelled(tx, operation.id, why)
    tx.execute(
        update(_TABLE)
        .where(_TABLE.c.id == operation.subject_id, _TABLE.c.state == InstanceState.PENDING)
        .values(
            state=InstanceState.ERROR,
            error={**why, "hint": "delete it, and create it again when you want it"},
            generation=_TABLE.c.generation + 1,
            updated_ms=tx.now_ms,
        )
    )
    tx.record("operation.cancel", ("operation", operation.id), tenant=operation.tenant_id)
    return operations.get(tx, caller, operation.id)
