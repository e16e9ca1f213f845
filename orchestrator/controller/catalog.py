"""Instance types and images: what instances are made of."""

from __future__ import annotations

import dataclasses
from typing import Any

from sqlalchemy import delete, exists, select
from sqlalchemy.exc import IntegrityError

from orchestrator.controller.caller import Caller, unknown
from orchestrator.model.capacity import Demand
from orchestrator.model.catalog import Image, InstanceType
from orchestrator.model.errors import ConflictError
from orchestrator.store.ids import new_id
from orchestrator.store.nouns import IMAGES, TYPES
from orchestrator.store.rows import PLATFORM, After, Part, to_value
from orchestrator.store.tables.catalog import ImageRow, InstanceTypeRow
from orchestrator.store.tables.instances import InstanceRow
from orchestrator.store.tables.volumes import VolumeRow
from orchestrator.store.unit_of_work import Reader, UnitOfWork, table_of

_IMAGES, _TYPES = table_of(ImageRow), table_of(InstanceTypeRow)


def create_type(tx: UnitOfWork, **shape: Any) -> InstanceType:
    """Make an instance type; the fields are those of `InstanceType` without id and time.

    Raises:
        InvalidInputError: `demand.bounds`, `demand.half_core`, `demand.broken_page`.
        ConflictError: `instance_type.name_taken`.
    """
    made = InstanceType(id=new_id("typ"), created_ms=tx.now_ms, **shape)
    # What no host can ever run is refused here, once, and not on each pass of the scheduler.
    Demand(
        request=made.id,
        tenant="",
        vcpus=made.vcpus,
        memory_mib=made.memory_mib,
        page_size_kib=made.page_size_kib,
        gpus=made.gpus,
        gpu_model=made.gpu_model,
        disk_gib=made.disk_gib,
        isolation=made.isolation,
        threads_per_core=made.threads_per_core,
    )
    try:
        tx.add(InstanceTypeRow, **dataclasses.asdict(made))
    except IntegrityError as exc:
        raise ConflictError(
            "instance_type.name_taken", f"there is an instance type {made.name} already", field="name"
        ) from exc
    tx.record("instance_type.create", ("instance_type", made.id), tenant=None, details=dict(shape))
    return made


def get_type(tx: Reader, reference: str) -> InstanceType:
    """Return one.

    Raises:
        NotFoundError: `instance_type.unknown`.
    """
    found = TYPES.get(tx, PLATFORM, reference)
    if found is None:
        raise unknown("instance_type", reference)
    return found


def remove_type(tx: UnitOfWork, reference: str) -> None:
    """Delete a type; instances made of it keep what they have.

    Raises:
        NotFoundError: `instance_type.unknown`.
    """
    found = get_type(tx, reference)
    tx.execute(delete(_TYPES).where(_TYPES.c.id == found.id))
    tx.record("instance_type.delete", ("instance_type", found.id), tenant=None, details={"name": found.name})


def create_image(
    tx: UnitOfWork, *, name: str, digest: str, size_bytes: int, firmware: str, tenant_id: str | None
) -> Image:
    """Register an image by content; hosts have it, or fetch it, under this digest and no other.

    Raises:
        ConflictError: `image.name_taken`.
    """
    made = Image(new_id("img"), name, tenant_id, digest, size_bytes, firmware, tx.now_ms)
    try:
        tx.add(ImageRow, **dataclasses.asdict(made))
    except IntegrityError as exc:
        raise ConflictError("image.name_taken", f"there is an image {name} already", field="name") from exc
    tx.record("image.create", ("image", made.id), tenant=tenant_id, details={"name": name, "digest": digest})
    return made


def get_image(tx: Reader, caller: Caller, reference: str) -> Image:
    """Return one that the caller may see: everybody's, or their own tenant's.

    Raises:
        NotFoundError: `image.unknown`.
    """
    row = tx.first(select(_IMAGES).where(IMAGES.named(reference), visible_images(caller)))
    if row is None:
        raise unknown("image", reference)
    return to_value(Image, row._mapping)


def visible_images(caller: Caller) -> Any:
    """The condition that an image is everybody's or the caller's own tenant's."""
    tenant = caller.principal.tenant_id
    if tenant is None:
        return _IMAGES.c.id == _IMAGES.c.id
    return _IMAGES.c.tenant_id.is_(None) | (_IMAGES.c.tenant_id == tenant)


def page_images(tx: Reader, caller: Caller, part: Part) -> tuple[list[Image], After | None]:
    """A part of those that the caller may see."""
    return IMAGES.page(tx, PLATFORM, part, [visible_images(caller)])


def remove_image(tx: UnitOfWork, caller: Caller, reference: str) -> None:
    """Forget an image that nothing was ever made of.

    Raises:
        NotFoundError: `image.unknown`.
        ConflictError: `image.in_use`.
    """
    found = get_image(tx, caller, reference)
    instances, volumes = table_of(InstanceRow), table_of(VolumeRow)
    used = exists().where(instances.c.image_id == found.id) | exists().where(volumes.c.image_id == found.id)
    if tx.scalar(select(used)):
        raise ConflictError("image.in_use", f"instances or volumes were made of {found.name}")
    tx.execute(delete(_IMAGES).where(_IMAGES.c.id == found.id))
    tx.record("image.delete", ("image", found.id), tenant=found.tenant_id, details={"name": found.name})
