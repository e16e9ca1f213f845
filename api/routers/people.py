"""A tenant's users and tokens, and who asks."""

from __future__ import annotations

from fastapi import APIRouter, Response

from api.calls import IN_TENANT, Changing, IfMatch, Looking, Making, Pages, demand_match, page_token, tag
from api.schemas.common import Page, Reference
from api.schemas.people import (
    RolesIn,
    TokenIn,
    TokenMadeOut,
    TokenOut,
    UserIn,
    UserOut,
    WhoamiOut,
    roles_tag,
)
from api.token_making import make_token
from orchestrator.controller import people, tokens
from orchestrator.controller.caller import Caller
from orchestrator.controller.people import NewPrincipal
from orchestrator.model.principal import Principal
from orchestrator.store.unit_of_work import Reader, UnitOfWork

router = APIRouter(prefix="/v1", tags=["people"])
of_tenant = APIRouter(prefix="/v1/tenants/{tenant}", tags=["people"], dependencies=[IN_TENANT])


@router.get("/whoami", operation_id="get_whoami")
def get_whoami(ask: Looking) -> WhoamiOut:
    """Show whose token this is and what it may be used for."""
    return ask.look(lambda _tx, caller: WhoamiOut.of(caller))


@of_tenant.get("/users", operation_id="list_users")
def list_users(ask: Looking, pages: Pages) -> Page[UserOut]:
    """List a tenant's users and service accounts."""

    def work(tx: Reader, caller: Caller) -> Page[UserOut]:
        found, after = people.page(tx, caller.tenant_id, pages)
        return Page(items=[UserOut.of(each) for each in found], next_page_token=page_token(after))

    return ask.look(work)


@of_tenant.post("/users", operation_id="create_user", status_code=201)
def create_user(ask: Making, body: UserIn) -> UserOut:
    """Let somebody in; a tenant's admin binds subjects only of issuers whose settings list the tenant."""
    wanted = NewPrincipal(body.name, body.kind, tuple(body.roles), body.issuer, body.subject)
    binders = ask.control.settings.binders
    return ask.make(
        lambda tx, caller, _operation: UserOut.of(people.create_in_tenant(tx, caller, wanted, binders)),
        lambda tx, caller, made: UserOut.of(people.get(tx, caller.tenant_id, made.subject_id)),
        identify=lambda made: made.id,
    )


@of_tenant.get("/users/{user}", operation_id="get_user")
def get_user(ask: Looking, user: Reference, response: Response) -> UserOut:
    """Show somebody; the tag is their roles'."""
    found = ask.look(lambda tx, caller: people.get(tx, caller.tenant_id, user))
    response.headers["ETag"] = tag(roles_tag(found))
    return UserOut.of(found)


@of_tenant.delete("/users/{user}", operation_id="delete_user", status_code=204)
def delete_user(ask: Changing, user: Reference) -> None:
    """Shut somebody out at once, tokens and all."""
    ask.change(lambda tx, caller: people.remove(tx, caller.tenant_id, user))


@of_tenant.put("/users/{user}/roles", operation_id="set_user_roles")
def set_user_roles(
    ask: Changing,
    user: Reference,
    body: RolesIn,
    response: Response,
    if_match: IfMatch = None,
) -> UserOut:
    """Give somebody exactly these roles."""

    def work(tx: UnitOfWork, caller: Caller) -> Principal:
        before = people.get(tx, caller.tenant_id, user, lock=True)
        demand_match(if_match, roles_tag(before))
        return people.set_roles(tx, caller.tenant_id, before.id, body.roles)

    found = ask.change(work)
    response.headers["ETag"] = tag(roles_tag(found))
    return UserOut.of(found)


@of_tenant.get("/tokens", operation_id="list_tokens")
def list_tokens(ask: Looking, pages: Pages) -> Page[TokenOut]:
    """List tokens: a member's own, or all of the tenant's."""

    def work(tx: Reader, caller: Caller) -> Page[TokenOut]:
        found, after = tokens.page(tx, caller, caller.tenant_id, pages)
        return Page(items=[TokenOut.of(each) for each in found], next_page_token=page_token(after))

    return ask.look(work)


@of_tenant.post("/tokens", operation_id="create_token", status_code=201)
def create_token(ask: Making, body: TokenIn) -> TokenMadeOut:
    """Make a token; its text is shown this once."""

    def owner(tx: UnitOfWork, caller: Caller) -> Principal:
        return tokens.owner(tx, caller, caller.tenant_id, body.user)

    return make_token(ask, body, owner)


@of_tenant.delete("/tokens/{token}", operation_id="delete_token", status_code=204)
def delete_token(ask: Changing, token: Reference) -> None:
    """Stop a token at once."""
    ask.change(lambda tx, caller: tokens.revoke(tx, caller, caller.tenant_id, token))
