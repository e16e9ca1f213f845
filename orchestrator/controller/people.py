"""Users, service accounts and their tokens. A token's secret leaves once, in the answer that made it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError

from orchestrator.controller.caller import Caller, unknown
from orchestrator.model.errors import ConflictError, ForbiddenError, InvalidInputError, NotFoundError
from orchestrator.model.principal import Principal, Token
from orchestrator.store.ids import new_id
from orchestrator.store.nouns import PRINCIPALS
from orchestrator.store.rows import PLATFORM, After, Part, to_value
from orchestrator.store.tables.people import PrincipalRow, TokenRow
from orchestrator.store.unit_of_work import Reader, UnitOfWork, table_of
from orchestrator.store.violations import violated

_PEOPLE, _TOKENS = table_of(PrincipalRow), table_of(TokenRow)
MAX_TOKEN_DAYS = 366


@dataclasses.dataclass(frozen=True)
class NewPrincipal:
    """Somebody to be let in.

    Args:
        kind: `user` or `service`.
        issuer, subject: of the OIDC tokens that are this principal's; both or none.
    """

    name: str
    kind: str
    roles: tuple[str, ...]
    issuer: str = ""
    subject: str = ""


def create(tx: UnitOfWork, tenant_id: str | None, wanted: NewPrincipal) -> Principal:
    """Let somebody in, into a tenant or (None) as one of the platform's.

    Raises:
        ConflictError: `user.name_taken`, `user.subject_taken`.
    """
    if bool(wanted.issuer) != bool(wanted.subject):
        raise InvalidInputError("user.subject", "issuer and subject go together", field="subject")
    if tenant_id is None and _platform_name_taken(tx, wanted.name):
        raise ConflictError("user.name_taken", f"there is a user {wanted.name} already", field="name")
    made = Principal(
        id=new_id("usr"),
        tenant_id=tenant_id,
        kind=wanted.kind,
        name=wanted.name,
        roles=wanted.roles,
        issuer=wanted.issuer,
        subject=wanted.subject,
        disabled=False,
        created_ms=tx.now_ms,
    )
    try:
        tx.add(PrincipalRow, **{**dataclasses.asdict(made), "roles": list(made.roles)})
    except IntegrityError as exc:
        if violated(exc) == "principal_subject":
            raise ConflictError(
                "user.subject_taken", "that subject is another user already", field="subject"
            ) from exc
        raise ConflictError(
            "user.name_taken", f"there is a user {wanted.name} already", field="name"
        ) from exc
    tx.record(
        "user.create",
        ("user", made.id),
        tenant=tenant_id,
        details={"name": made.name, "kind": made.kind, "roles": list(made.roles)},
    )
    return made


def create_in_tenant(
    tx: UnitOfWork, caller: Caller, wanted: NewPrincipal, binders: Mapping[str, frozenset[str]]
) -> Principal:
    """Let somebody into the caller's tenant, by an operator or by the tenant's own admin.

    A subject is bound once in the whole deployment, so an admin who could bind any would take the login of
    somebody who is not theirs. Operators vouch for what they bind.

    Args:
        binders: of each identity provider, by its URL, the tenants (ids or names) whose admins may bind its
            subjects.

    Raises:
        ForbiddenError: `identity.issuer_not_yours`.
        ConflictError: as `create`.
    """
    if wanted.issuer and wanted.subject and caller.principal.tenant_id is not None:
        trusted = binders.get(wanted.issuer, frozenset())
        tenant = caller.tenant
        if tenant is None or trusted.isdisjoint((tenant.id, tenant.name)):
            # The same for an issuer that nobody configured: which there are is not the tenant's to learn.
            raise ForbiddenError(
                "identity.issuer_not_yours",
                "admins of this tenant may not bind users to subjects of that issuer",
                field="issuer",
                hint="ask an operator to create the user, or to list the tenant under the issuer's settings",
            )
    return create(tx, caller.tenant_id, wanted)


def _platform_name_taken(tx: Reader, name: str) -> bool:
    # UNIQUE lets NULL stand beside NULL.
    return (
        tx.first(select(_PEOPLE.c.id).where(_PEOPLE.c.tenant_id.is_(None), _PEOPLE.c.name == name))
        is not None
    )


def get(tx: Reader, tenant_id: str | None, reference: str, *, lock: bool = False) -> Principal:
    """Return one of a tenant's, or (None) of the platform's own, that was not shut out.

    Raises:
        NotFoundError: `user.unknown`.
    """
    statement = select(_PEOPLE).where(PRINCIPALS.named(reference), *_of(tenant_id))
    row = tx.first(statement.with_for_update() if lock else statement)
    if row is None:
        raise unknown("user", reference)
    return to_value(Principal, row._mapping)


def page(tx: Reader, tenant_id: str | None, part: Part) -> tuple[list[Principal], After | None]:
    """Return a part of a tenant's, or (None) of the platform's own."""
    return PRINCIPALS.page(tx, PLATFORM, part, _of(tenant_id))


def _of(tenant_id: str | None) -> list[Any]:
    own = _PEOPLE.c.tenant_id.is_(None) if tenant_id is None else _PEOPLE.c.tenant_id == tenant_id
    return [own, _PEOPLE.c.disabled.is_(False)]


def find(tx: Reader, tenant_id: str | None, reference: str) -> Principal | None:
    """Return one like `get`, or None."""
    try:
        return get(tx, tenant_id, reference)
    except NotFoundError:
        return None


def set_roles(tx: UnitOfWork, tenant_id: str | None, reference: str, roles: Iterable[str]) -> Principal:
    """Give somebody exactly these roles.

    Raises:
        NotFoundError: `user.unknown`.
    """
    found = get(tx, tenant_id, reference, lock=True)
    chosen = sorted(set(roles))
    tx.execute(update(_PEOPLE).where(_PEOPLE.c.id == found.id).values(roles=chosen))
    tx.record("user.roles", ("user", found.id), tenant=tenant_id, details={"roles": chosen})
    return dataclasses.replace(found, roles=tuple(chosen))


def remove(tx: UnitOfWork, tenant_id: str | None, reference: str) -> None:
    """Shut somebody out at once: their tokens stop working with this transaction; the log still names them.

    Raises:
        NotFoundError: `user.unknown`.
    """
    found = get(tx, tenant_id, reference)
    tx.execute(
        update(_TOKENS)
        .where(_TOKENS.c.principal_id == found.id, _TOKENS.c.revoked_ms.is_(None))
        .values(revoked_ms=tx.now_ms)
    )
    tx.execute(
        update(_PEOPLE)
        .where(_PEOPLE.c.id == found.id)
        .values(disabled=True, subject="", name=f"{found.name[:40]}~{found.id[-8:]}")
    )
    tx.record("user.delete", ("user", found.id), tenant=tenant_id, details={"name": found.name})


@dataclasses.dataclass(frozen=True)
class NewToken:
    """A token to be made; `secret_hash` is the keyed hash of a secret that the caller shows once."""

    key_id: str
    secret_hash: bytes
    name: str
    scopes: tuple[str, ...]
    days: int


def add_token(tx: UnitOfWork, owner: Principal, wanted: NewToken) -> Token:
    """Make a token of a principal.

    Raises:
        InvalidInputError: `token.days`.
    """
    if not 1 <= wanted.days <= MAX_TOKEN_DAYS:
        raise InvalidInputError("token.days", f"a token lives 1 to {MAX_TOKEN_DAYS} days", field="days")
    made = Token(
        key_id=wanted.key_id,
        principal_id=owner.id,
        name=wanted.name,
        scopes=tuple(sorted(set(wanted.scopes))),
        secret_hash=wanted.secret_hash,
        created_ms=tx.now_ms,
        expires_ms=tx.now_ms + wanted.days * 86_400_000,
        revoked_ms=None,
    )
    tx.add(TokenRow, **{**dataclasses.asdict(made), "scopes": list(made.scopes)})
    tx.record(
        "token.create",
        ("token", made.key_id),
        tenant=owner.tenant_id,
        details={
            "user": owner.id,
            "name": made.name,
            "scopes": list(made.scopes),
            "expires_ms": made.expires_ms,
        },
    )
    return made


def tokens(tx: Reader, owner: Principal) -> list[Token]:
    """Return a principal's tokens, oldest first, those that ended included."""
    rows = tx.all(
        select(_TOKENS)
        .where(_TOKENS.c.principal_id == owner.id)
        .order_by(_TOKENS.c.created_ms, _TOKENS.c.key_id)
    )
    return [to_value(Token, row._mapping) for row in rows]


def revoke(tx: UnitOfWork, owner: Principal, key_id: str) -> None:
    """Stop a token at once.

    Raises:
        NotFoundError: `token.unknown`.
    """
    changed = tx.execute(
        update(_TOKENS)
        .where(_TOKENS.c.key_id == key_id, _TOKENS.c.principal_id == owner.id, _TOKENS.c.revoked_ms.is_(None))
        .values(revoked_ms=tx.now_ms)
    )
    if changed.rowcount == 0:
        raise unknown("token", key_id)
    tx.record("token.revoke", ("token", key_id), tenant=owner.tenant_id, details={"user": owner.id})
