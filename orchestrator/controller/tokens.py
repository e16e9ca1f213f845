"""Who may manage whose tokens: members their own, a tenant's admins all of their tenant's, operators any.

A token never gives more than the one that made it: its scopes are among those of the caller's. `people`
writes the rows; the API draws the secret.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sqlalchemy import select

from orchestrator.access.roles import AUDITOR, TENANT_ADMIN, effective_roles
from orchestrator.controller import people
from orchestrator.controller.caller import Caller, unknown
from orchestrator.model.errors import ForbiddenError
from orchestrator.model.principal import Principal, Token
from orchestrator.store.rows import After, Part, to_value
from orchestrator.store.tables.people import PrincipalRow, TokenRow
from orchestrator.store.unit_of_work import Reader, UnitOfWork, table_of

_TOKENS, _PEOPLE = table_of(TokenRow), table_of(PrincipalRow)


def owner(tx: Reader, caller: Caller, tenant_id: str | None, reference: str | None) -> Principal:
    """Whose token a new one becomes: the caller's own, unless it names somebody whom it manages.

    Raises:
        NotFoundError: `user.unknown`: also for everybody whom the caller does not manage.
    """
    if reference is None:
        if caller.principal.tenant_id != tenant_id:
            raise unknown("user", caller.principal.name)
        return caller.principal
    found = people.get(tx, tenant_id, reference)
    if found.id != caller.principal.id and not _manages(caller):
        raise unknown("user", reference)
    return found


def check_scopes(caller: Caller, scopes: Collection[str]) -> None:
    """Let nobody make a token that may more than their own.

    Raises:
        ForbiddenError: `token.scopes`.
    """
    more = sorted(set(scopes) - caller.scopes)
    if more:
        raise ForbiddenError("token.scopes", f"your own token lacks {', '.join(more)}", field="scopes")


def page(
    tx: Reader,
    caller: Caller,
    tenant_id: str | None,
    part: Part,
    *,
    owner: str | None = None,
) -> tuple[list[Token], After | None]:
    """A part of the tokens of all whom the caller may see, or of one of them."""
    statement = (
        select(_TOKENS).join(_PEOPLE, _PEOPLE.c.id == _TOKENS.c.principal_id).where(_belongs(tenant_id))
    )
    if not _sees_all(caller):
        statement = statement.where(_PEOPLE.c.id == caller.principal.id)
    if owner is not None:
        statement = statement.where(_PEOPLE.c.id == owner)
    ordered = part.of(statement, _TOKENS.c.created_ms, _TOKENS.c.key_id)
    found = [to_value(Token, row._mapping) for row in tx.all(ordered)]
    if len(found) <= part.size:
        return found, None
    last = found[part.size - 1]
    return found[: part.size], After(last.created_ms, last.key_id)


def get(tx: Reader, caller: Caller, tenant_id: str | None, key_id: str) -> Token:
    """Return one that the caller may see.

    Raises:
        NotFoundError: `token.unknown`.
    """
    statement = (
        select(_TOKENS)
        .join(_PEOPLE, _PEOPLE.c.id == _TOKENS.c.principal_id)
        .where(_TOKENS.c.key_id == key_id, _belongs(tenant_id))
    )
    row = tx.first(statement)
    if row is None or not (_sees_all(caller) or row.principal_id == caller.principal.id):
        raise unknown("token", key_id)
    return to_value(Token, row._mapping)


def revoke(tx: UnitOfWork, caller: Caller, tenant_id: str | None, key_id: str) -> None:
    """Stop a token at once.

    Raises:
        NotFoundError: `token.unknown`: also for one that was stopped before.
    """
    found = get(tx, caller, tenant_id, key_id)
    holder = people.get(tx, tenant_id, found.principal_id)
    if holder.id != caller.principal.id and not _manages(caller):
        raise unknown("token", key_id)
    people.revoke(tx, holder, key_id)


def _belongs(tenant_id: str | None) -> Any:
    return _PEOPLE.c.tenant_id.is_(None) if tenant_id is None else _PEOPLE.c.tenant_id == tenant_id


def _manages(caller: Caller) -> bool:
    return caller.principal.tenant_id is None or TENANT_ADMIN in effective_roles(caller.principal)


def _sees_all(caller: Caller) -> bool:
    return _manages(caller) or AUDITOR in effective_roles(caller.principal)
