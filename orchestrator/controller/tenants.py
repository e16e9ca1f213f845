"""Tenants: made by operators, deleted only when nothing of them runs; then their keys are destroyed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import delete, exists, func, select, update
from sqlalchemy.exc import IntegrityError

from orchestrator.controller.caller import unknown
from orchestrator.model.errors import ConflictError, StaleError
from orchestrator.model.quota import DIMENSIONS
from orchestrator.model.states import TenantState
from orchestrator.model.tenant import Tenant
from orchestrator.store.ids import new_id
from orchestrator.store.nouns import TENANTS
from orchestrator.store.rows import PLATFORM
from orchestrator.store.tables.audit import AuditStreamRow
from orchestrator.store.tables.catalog import ImageRow
from orchestrator.store.tables.consoles import ConsoleTicketRow, StreamOrderRow
from orchestrator.store.tables.fleet import StaleInstanceRow
from orchestrator.store.tables.instances import InstanceRow
from orchestrator.store.tables.networks import NetworkRow
from orchestrator.store.tables.people import PrincipalRow, TokenRow
from orchestrator.store.tables.tenants import QuotaRow, TenantRow
from orchestrator.store.tables.volumes import VolumeRow
from orchestrator.store.unit_of_work import Reader, UnitOfWork, table_of

_TENANTS = table_of(TenantRow)
#: What a new tenant may use until an operator says otherwise: nothing runs by accident.
DEFAULT_LIMITS: Mapping[str, int] = dict.fromkeys(DIMENSIONS, 0)


def create(tx: UnitOfWork, name: str, limits: Mapping[str, int]) -> Tenant:
    """Make a tenant with its quota and its audit stream.

    Raises:
        ConflictError: `tenant.name_taken`.
    """
    identity = new_id("ten")
    try:
        tx.add(
            TenantRow,
            id=identity,
            name=name,
            state=TenantState.ACTIVE,
            generation=1,
            key_version=0,
            created_ms=tx.now_ms,
        )
    except IntegrityError as exc:
        raise ConflictError("tenant.name_taken", f"there is a tenant {name} already", field="name") from exc
    chosen = {**DEFAULT_LIMITS, **limits}
    tx.add(
        QuotaRow, tenant_id=identity, generation=1, **{f"limit_{key}": count for key, count in chosen.items()}
    )
    tx.add(AuditStreamRow, id=identity, next_seq=0)
    tx.record("tenant.create", ("tenant", identity), tenant=identity, details={"name": name, **chosen})
    return get(tx, identity)


def get(tx: Reader, reference: str, *, lock: bool = False) -> Tenant:
    """Return one.

    Raises:
        NotFoundError: `tenant.unknown`.
    """
    found = TENANTS.get(tx, PLATFORM, reference, lock=lock)
    if found is None:
        raise unknown("tenant", reference)
    return found


def rename(tx: UnitOfWork, reference: str, name: str, generation: int | None) -> Tenant:
    """Give a tenant another name, if nobody changed it since `generation`; None takes any.

    Raises:
        NotFoundError: `tenant.unknown`.
        ConflictError: `tenant.name_taken`.
        StaleError: `tenant.changed`.
    """
    tenant = get(tx, reference, lock=True)
    if generation is not None and tenant.generation != generation:
        raise StaleError("tenant.changed", "the tenant was changed meanwhile", hint="read it again")
    try:
        tx.execute(
            update(_TENANTS)
            .where(_TENANTS.c.id == tenant.id)
            .values(name=name, generation=tenant.generation + 1)
        )
    except IntegrityError as exc:
        raise ConflictError("tenant.name_taken", f"there is a tenant {name} already", field="name") from exc
    tx.record("tenant.update", ("tenant", tenant.id), tenant=tenant.id, details={"name": name})
    return get(tx, tenant.id)


def remove(tx: UnitOfWork, reference: str) -> Tenant:
    """Delete a tenant that has nothing any more: its people and tokens go, only its audit log remains.

    Once this is committed, a loop destroys its keys (`Keyring.destroy_deleted`), and goes on after a crash.

    Raises:
        NotFoundError: `tenant.unknown`.
        ConflictError: `tenant.in_use`.
    """
    tenant = get(tx, reference, lock=True)
    left = {
        noun: int(tx.scalar(select(func.count()).where(_owned(row, tenant.id))) or 0)
        for noun, row in (
            ("instances", InstanceRow),
            ("volumes", VolumeRow),
            ("networks", NetworkRow),
            ("stale instances on evacuated hosts", StaleInstanceRow),
        )
    }
    held = ", ".join(f"{count} {noun}" for noun, count in left.items() if count)
    if held:
        raise ConflictError("tenant.in_use", f"{tenant.name} still has {held}", hint="delete them first")
    people, tokens, images = table_of(PrincipalRow), table_of(TokenRow), table_of(ImageRow)
    theirs = select(people.c.id).where(people.c.tenant_id == tenant.id)
    tx.execute(
        update(tokens)
        .where(tokens.c.principal_id.in_(theirs), tokens.c.revoked_ms.is_(None))
        .values(revoked_ms=tx.now_ms)
    )
    tx.execute(update(people).where(people.c.tenant_id == tenant.id).values(disabled=True, subject=""))
    # What its instances were made of stays known, under its own id: never to anybody else.
    instances = table_of(InstanceRow)
    kept = exists().where(instances.c.image_id == images.c.id) | exists().where(
        table_of(VolumeRow).c.image_id == images.c.id
    )
    tx.execute(delete(images).where(images.c.tenant_id == tenant.id, ~kept))
    for row in (QuotaRow, ConsoleTicketRow, StreamOrderRow):
        tx.execute(delete(table_of(row)).where(table_of(row).c.tenant_id == tenant.id))
    tx.execute(update(_TENANTS).where(_TENANTS.c.id == tenant.id).values(state=TenantState.DELETED))
    tx.record("tenant.delete", ("tenant", tenant.id), tenant=tenant.id, stage="outcome")
    tx.wake("erase")
    return tenant


def _owned(row: type, tenant_id: str) -> Any:
    table = table_of(row)
    mine = table.c.tenant_id == tenant_id
    return mine & (table.c.state != "deleted") if "state" in table.c else mine
