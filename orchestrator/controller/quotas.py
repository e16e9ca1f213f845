"""Reserves and returns quota: one conditional UPDATE, so that it is exact under any concurrency."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from sqlalchemy import BigInteger, Update, bindparam, select, update
from sqlalchemy.exc import IntegrityError

from orchestrator.model.errors import ConflictError, NotFoundError, QuotaError, StaleError
from orchestrator.model.quota import DIMENSIONS, Quota, short_of
from orchestrator.store.tables.tenants import QuotaRow
from orchestrator.store.unit_of_work import Reader, UnitOfWork, table_of
from orchestrator.store.violations import violated

_TABLE = table_of(QuotaRow)


def read(tx: Reader, tenant_id: str) -> Quota:
    """Return a tenant's quota.

    Raises:
        NotFoundError: `tenant.unknown`.
    """
    row = tx.first(select(_TABLE).where(_TABLE.c.tenant_id == tenant_id))
    if row is None:
        raise NotFoundError("tenant.unknown", "there is no such tenant")
    values = row._mapping
    return Quota(
        tenant_id=tenant_id,
        limits={name: values[f"limit_{name}"] for name in DIMENSIONS},
        used={name: values[f"used_{name}"] for name in DIMENSIONS},
        generation=values["generation"],
    )


def reserve(tx: UnitOfWork, tenant_id: str, wanted: Mapping[str, int]) -> None:
    """Take so much of a tenant's quota, all or nothing.

    Raises:
        QuotaError: `quota.exceeded`, with what is short.
    """
    more = {f"more_{name}": count for name, count in wanted.items()}
    changed = tx.execute(_reserving(tuple(wanted)), {"tenant": tenant_id, **more})
    if changed.rowcount == 1:
        return
    quota = read(tx, tenant_id)
    short = short_of(quota, wanted)
    told = ", ".join(
        f"{name} ({quota.used[name]} of {quota.limits[name]} used, {wanted[name]} more asked for)"
        for name in short
    )
    raise QuotaError(
        "quota.exceeded", f"over quota: {told}", hint="delete something, or ask an operator for more"
    )


@cache
def _reserving(names: tuple[str, ...]) -> Update:
    """The statement that takes some of these dimensions; each call gives its numbers."""
    after = {name: _TABLE.c[f"used_{name}"] + bindparam(f"more_{name}", type_=BigInteger) for name in names}
    return (
        update(_TABLE)
        .where(
            _TABLE.c.tenant_id == bindparam("tenant"),
            *(after[name] <= _TABLE.c[f"limit_{name}"] for name in names),
        )
        .values({f"used_{name}": after[name] for name in names})
    )


def give_back(tx: UnitOfWork, tenant_id: str, freed: Mapping[str, int]) -> None:
    """Return so much of a tenant's quota; the table refuses to go below zero."""
    tx.execute(
        update(_TABLE)
        .where(_TABLE.c.tenant_id == tenant_id)
        .values({f"used_{name}": _TABLE.c[f"used_{name}"] - count for name, count in freed.items()})
    )


def set_limits(tx: UnitOfWork, tenant_id: str, limits: Mapping[str, int], generation: int) -> Quota:
    """Change some limits, if nobody else did since `generation`.

    Raises:
        ConflictError: `quota.below_use`.
        StaleError: `quota.changed`.
    """
    values = {f"limit_{name}": count for name, count in limits.items()}
    try:
        changed = tx.execute(
            update(_TABLE)
            .where(_TABLE.c.tenant_id == tenant_id, _TABLE.c.generation == generation)
            .values(**values, generation=generation + 1)
        )
    except IntegrityError as exc:
        name = violated(exc).removeprefix("quota_")
        raise ConflictError(
            "quota.below_use",
            f"the tenant uses more {name} than that",
            field=name,
            hint="delete something first, or set a higher limit",
        ) from exc
    if changed.rowcount == 0:
        raise StaleError("quota.changed", "the quota was changed meanwhile", hint="read it again")
    tx.record("quota.set", ("tenant", tenant_id), tenant=tenant_id, details=dict(limits))
    return read(tx, tenant_id)
