"""Tenants and their quotas."""

from __future__ import annotations

from fastapi import APIRouter, Response

from api.calls import IN_TENANT, Changing, IfMatch, Looking, Making, Pages, demand_match, page_token, tag
from api.schemas.common import Page
from api.schemas.tenants import QuotaIn, QuotaOut, TenantIn, TenantOut, TenantUpdateIn
from orchestrator.controller import quotas, tenants
from orchestrator.controller.caller import Caller
from orchestrator.model.tenant import Tenant
from orchestrator.store.nouns import TENANTS
from orchestrator.store.rows import PLATFORM
from orchestrator.store.unit_of_work import Reader, UnitOfWork

router = APIRouter(prefix="/v1/tenants", tags=["tenants"])
of_tenant = APIRouter(prefix="/v1/tenants/{tenant}", tags=["tenants"], dependencies=[IN_TENANT])


@router.get("", operation_id="list_tenants")
def list_tenants(ask: Looking, pages: Pages) -> Page[TenantOut]:
    """List all tenants."""

    def work(tx: Reader, _caller: Caller) -> Page[TenantOut]:
        found, after = TENANTS.page(tx, PLATFORM, pages)
        return Page(items=[TenantOut.of(each) for each in found], next_page_token=page_token(after))

    return ask.look(work)


@router.post("", operation_id="create_tenant", status_code=201)
def create_tenant(ask: Making, body: TenantIn) -> TenantOut:
    """Make a tenant; what it may use is nothing but what is named."""
    return ask.make(
        lambda tx, _caller, _operation: TenantOut.of(tenants.create(tx, body.name, body.limits.named())),
        lambda tx, _caller, made: TenantOut.of(tenants.get(tx, made.subject_id)),
        identify=lambda made: made.id,
    )


@of_tenant.get("", operation_id="get_tenant")
def get_tenant(ask: Looking, response: Response) -> TenantOut:
    """Show a tenant."""
    found = ask.look(lambda tx, caller: tenants.get(tx, caller.tenant_id))
    response.headers["ETag"] = tag(found.generation)
    return TenantOut.of(found)


@of_tenant.put("", operation_id="update_tenant")
def update_tenant(
    ask: Changing, body: TenantUpdateIn, response: Response, if_match: IfMatch = None
) -> TenantOut:
    """Rename a tenant."""

    def work(tx: UnitOfWork, caller: Caller) -> Tenant:
        before = tenants.get(tx, caller.tenant_id, lock=True)
        demand_match(if_match, str(before.generation))
        return tenants.rename(tx, before.id, body.name, before.generation)

    found = ask.change(work)
    response.headers["ETag"] = tag(found.generation)
    return TenantOut.of(found)


@of_tenant.delete("", operation_id="delete_tenant", status_code=204)
def delete_tenant(ask: Changing) -> None:
    """Delete a tenant that has nothing any more, with its people and keys; only its audit log remains."""
    ask.change(lambda tx, caller: tenants.remove(tx, caller.tenant_id))


@of_tenant.get("/quota", operation_id="get_quota")
def get_quota(ask: Looking, response: Response) -> QuotaOut:
    """Show what a tenant may use and does use."""
    found = ask.look(lambda tx, caller: quotas.read(tx, caller.tenant_id))
    response.headers["ETag"] = tag(found.generation)
    return QuotaOut.of(found)


@of_tenant.put("/quota", operation_id="set_quota")
def set_quota(ask: Changing, body: QuotaIn, response: Response, if_match: IfMatch = None) -> QuotaOut:
    """Set limits; those that are not named stay."""

    def work(tx: UnitOfWork, caller: Caller) -> QuotaOut:
        before = quotas.read(tx, caller.tenant_id)
        demand_match(if_match, str(before.generation))
        return QuotaOut.of(quotas.set_limits(tx, caller.tenant_id, body.limits.named(), before.generation))

    found = ask.change(work)
    response.headers["ETag"] = tag(found.generation)
    return found
