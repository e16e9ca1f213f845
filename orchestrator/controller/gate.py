"""The gate: every call passes it, once, in the transaction that does its work.

Who shows this token, may they do this action to this tenant's things? Then the work runs, and all of it is
committed together; a dry run does all of it and commits nothing. Whoever is turned away is told as little as
can be and stands in the audit log.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

from sqlalchemy import LABEL_STYLE_TABLENAME_PLUS_COL, Column, Select, and_, bindparam, select

from orchestrator.access.actions import Action, action_of
from orchestrator.access.decide import Decision, decide
from orchestrator.access.tokens import ParsedToken, secret_matches
from orchestrator.controller import idempotency
from orchestrator.controller.caller import Caller, unknown
from orchestrator.controller.denials import Denials
from orchestrator.controller.idempotency import Made, Sent
from orchestrator.controller.rates import Rate, RateLimits
from orchestrator.model.actor import Actor
from orchestrator.model.errors import BulkheadError, ForbiddenError, UnauthenticatedError
from orchestrator.model.principal import Principal, Token
from orchestrator.model.tenant import Tenant
from orchestrator.store.ids import new_id
from orchestrator.store.nouns import TENANTS
from orchestrator.store.rows import part_of
from orchestrator.store.store import Store
from orchestrator.store.tables.people import PrincipalRow, TokenRow
from orchestrator.store.tables.tenants import TenantRow
from orchestrator.store.unit_of_work import Reader, UnitOfWork, table_of

_PEOPLE, _TOKENS, _TENANTS = table_of(PrincipalRow), table_of(TokenRow), table_of(TenantRow)
T = TypeVar("T")
_TOKEN_RATE = Rate(per_s=50, burst=200)
_TENANT_RATE = Rate(per_s=200, burst=800)


@dataclass(frozen=True)
class Subject:
    """Who an identity provider says that it is."""

    issuer: str
    subject: str


@dataclass(frozen=True)
class Call:
    """One call as it came in.

    Args:
        action: the operation id of its route, which the action table lists.
        tenant: id or name of the tenant in its path; None for the platform's routes.
        credential: the token shown, or who an identity provider vouches for; None for nobody.
        sent: its idempotency key; None where it makes nothing.
    """

    action: str
    tenant: str | None
    credential: ParsedToken | Subject | None
    address: str
    request_id: str
    sent: Sent | None = None
    dry_run: bool = False


@dataclass(frozen=True)
class RateSettings:
    """How many calls a token and a tenant may make."""

    token: Rate = _TOKEN_RATE
    tenant: Rate = _TENANT_RATE


class _DryRunError(Exception):
    """Unwinds a transaction whose work is not to stay."""


class Gate:
    """Lets calls in.

    Args:
        pepper: the key of the tokens' hashes; kept outside the database.
    """

    def __init__(
        self, store: Store, pepper: bytes, rates: RateLimits, denials: Denials, settings: RateSettings
    ) -> None:
        self._store = store
        self._pepper = pepper
        self._rates = rates
        self._denials = denials
        self._settings = settings

    def look(self, call: Call, work: Callable[[Reader, Caller], T]) -> T:
        """Answer a call that changes nothing.

        Raises:
            BulkheadError: `token.*`, `access.*`, `tenant.unknown`, `rate.limited`, and the work's own.
        """
        with self._guarded(call) as guard, self._store.reading() as tx:
            caller = guard.caller = self._enter(tx, call)
            return work(tx, caller)

    def change(self, call: Call, work: Callable[[UnitOfWork, Caller], T]) -> T:
        """Do a call's work in one transaction.

        Raises:
            BulkheadError: as `look`, and nothing was changed.
        """
        with self._guarded(call) as guard:
            return self._commit(call, work, guard)

    def make(
        self,
        call: Call,
        work: Callable[[UnitOfWork, Caller, str], T],
        again: Callable[[Reader, Caller, Made], T],
        identify: Callable[[T], str] | None = None,
    ) -> T:
        """Do a call that makes something: once for each idempotency key.

        Args:
            work: makes it under the operation id it is handed.
            again: finds what an earlier call with the same key made.
            identify: the id of what was made, where no operation stands for it.
        """

        def once(tx: UnitOfWork, caller: Caller) -> T:
            operation_id = new_id("op")
            if call.sent is None:
                return work(tx, caller, operation_id)
            made = Made(None if identify else operation_id, "" if identify else operation_id)
            earlier = idempotency.claim(tx, caller, call.sent, made)
            if earlier is not None:
                return again(tx, caller, earlier)
            result = work(tx, caller, operation_id)
            if identify is not None:
                idempotency.name_made(tx, caller, call.sent, identify(result))
            return result

        return self.change(call, once)

    def _commit(self, call: Call, work: Callable[[UnitOfWork, Caller], T], guard: _Guard) -> T:
        result: list[T] = []
        try:
            with self._store.unit_of_work(_nobody(call)) as tx:
                caller = guard.caller = self._enter(tx, call)
                tx.actor = caller.actor
                result.append(work(tx, caller))
                if call.dry_run:
                    raise _DryRunError
        except _DryRunError:
            pass
        return result[0]

    def _guarded(self, call: Call) -> _Guard:
        return _Guard(self._denials, call)

    def _enter(self, tx: Reader, call: Call) -> Caller:
        action = action_of(call.action)
        if action is None:
            raise ForbiddenError(
                "access.unlisted", "this is not in the table of actions, so nobody may do it"
            )
        principal, token, tenant = self._who(tx, call)
        actor = Actor(
            kind=principal.kind,
            id=principal.id,
            tenant=principal.tenant_id,
            token=token.key_id if token else "",
            address=call.address,
            request_id=call.request_id,
        )
        scopes = frozenset(token.scopes) if token else frozenset({"read", "write", "admin", "audit"})
        try:
            self._limit(tx, principal, token)
            self._decide(call, action, principal, scopes, tenant)
        except BulkheadError as exc:
            exc.actor = actor  # type: ignore[attr-defined]
            raise
        return Caller(principal, scopes, tenant, actor)

    def _who(self, tx: Reader, call: Call) -> tuple[Principal, Token | None, Tenant | None]:
        if call.credential is None:
            raise UnauthenticatedError(
                "token.missing",
                "this needs a token",
                hint="send Authorization: Bearer bh_..., or: bulkhead login",
            )
        if isinstance(call.credential, ParsedToken):
            shown = {"key_id": call.credential.key_id}
        else:
            shown = {"issuer": call.credential.issuer, "subject": call.credential.subject}
        key = None if call.tenant is None else TENANTS.key(call.tenant)
        row = tx.first(_asking(tuple(shown), key), {**shown, "reference": call.tenant})
        if row is None:
            raise _refused()
        principal = part_of(Principal, row, "principal")
        token = part_of(Token, row, "token") if isinstance(call.credential, ParsedToken) else None
        if token is not None and isinstance(call.credential, ParsedToken):
            self._check_token(call.credential, token)
        if principal.disabled:
            raise _refused()
        tenant = part_of(Tenant, row, "tenant") if row._mapping["tenant_id"] is not None else None
        return principal, token, tenant

    def _check_token(self, shown: ParsedToken, token: Token) -> None:
        if not secret_matches(self._pepper, shown.secret, token.secret_hash):
            raise _refused()
        if token.revoked_ms is not None:
            raise _refused()
        if token.expires_ms <= self._store.clock():
            raise UnauthenticatedError("token.expired", "the token has expired", hint="make a new one")

    def _limit(self, tx: Reader, principal: Principal, token: Token | None) -> None:
        name = f"token:{token.key_id}" if token else f"user:{principal.id}"
        self._rates.take(name, self._settings.token, tx)
        if principal.tenant_id is not None:
            self._rates.take(f"tenant:{principal.tenant_id}", self._settings.tenant, tx)

    def _decide(
        self, call: Call, action: Action, principal: Principal, scopes: frozenset[str], tenant: Tenant | None
    ) -> None:
        known = tenant.id if tenant is not None else None
        decision = decide(principal, scopes, action, known)
        if decision is Decision.FORBIDDEN:
            raise ForbiddenError(
                "access.forbidden",
                f"{', '.join(principal.roles) or 'nobody'} may not do {action.name}",
                hint="ask somebody with " + " or ".join(sorted(action.roles)),
            )
        if decision is Decision.HIDDEN or (call.tenant is not None and tenant is None):
            raise unknown("tenant", call.tenant or "")


@cache
def _asking(shown: tuple[str, ...], tenant: Column[Any] | None) -> Select[Any]:
    """The statement that finds who shows this, and the tenant; each call gives its values.

    Args:
        shown: columns of the token or of the person that say who it is.
        tenant: the column that the tenant's reference stands in; None for a call about no tenant.
    """
    by_token = shown == ("key_id",)
    whose: Any = _PEOPLE.join(_TOKENS, _TOKENS.c.principal_id == _PEOPLE.c.id) if by_token else _PEOPLE
    which = _TOKENS if by_token else _PEOPLE
    meant = _TENANTS.c.id.is_(None) if tenant is None else tenant == bindparam("reference")
    tables = (_TOKENS, _PEOPLE, _TENANTS) if by_token else (_PEOPLE, _TENANTS)
    return (
        select(*tables)
        .select_from(whose.outerjoin(_TENANTS, and_(meant, _TENANTS.c.state != "deleted")))
        .where(*(which.c[name] == bindparam(name) for name in shown))
        .set_label_style(LABEL_STYLE_TABLENAME_PLUS_COL)
    )


class _Guard:
    """Writes down who was turned away, after the transaction that turned them away is gone."""

    def __init__(self, denials: Denials, call: Call) -> None:
        self._denials = denials
        self._call = call
        #: Who was let in; the work may turn them away still.
        self.caller: Caller | None = None

    def __enter__(self) -> _Guard:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, BulkheadError) and error.http_status in (401, 403, 404, 429):
            known = self.caller.actor if self.caller is not None else None
            actor = known or getattr(error, "actor", None) or _nobody(self._call)
            self._denials.record(actor, self._call.action, self._call.tenant, error)


def _refused() -> UnauthenticatedError:
    # Unknown, wrong, revoked and disabled look the same from outside.
    return UnauthenticatedError("token.invalid", "the token is not valid", hint="make a new one")


def _nobody(call: Call) -> Actor:
    shown = call.credential.key_id if isinstance(call.credential, ParsedToken) else ""
    return Actor(kind="anonymous", id="", token=shown, address=call.address, request_id=call.request_id)
