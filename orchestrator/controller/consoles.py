"""Who may look at an instance's console, and who looked: one-time tickets, and reads of what was kept.

A ticket stands for its maker for a few seconds: whoever shows it gets what its maker may do at that moment,
once. Only its hash is kept. Carries no bytes: `switchboard` joins the two ends, `streams` tells the host.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from sqlalchemy import delete, select, update

from orchestrator.access.actions import action_of
from orchestrator.access.decide import Decision, decide
from orchestrator.access.tokens import ParsedToken, secret_matches
from orchestrator.controller import instances
from orchestrator.controller.caller import Caller
from orchestrator.model.actor import Actor
from orchestrator.model.errors import ConflictError, HostError, NotFoundError, UnauthenticatedError
from orchestrator.model.instance import InstanceRecord
from orchestrator.model.states import HostState, InstanceState
from orchestrator.store.nouns import HOSTS, INSTANCES, PRINCIPALS
from orchestrator.store.rows import PLATFORM, Scope
from orchestrator.store.tables.consoles import ConsoleTicketRow
from orchestrator.store.tables.people import TokenRow
from orchestrator.store.unit_of_work import Reader, UnitOfWork, table_of

_TICKETS, _TOKENS = table_of(ConsoleTicketRow), table_of(TokenRow)
TICKET_S = 30
#: What the holder of a ticket does: the action of its making, judged again whenever it counts.
ACTION = "create_console_ticket"
#: States in which there is something to look at; one that hangs while it stops wants looking at most.
_LIVE = (InstanceState.RUNNING, InstanceState.STOPPING)
_AWAY = (HostState.UNREACHABLE, HostState.FENCED)


@dataclass(frozen=True)
class NewTicket:
    """A ticket that was just drawn."""

    id: str
    secret_hash: bytes = field(repr=False)


@dataclass(frozen=True)
class Ticket:
    """A ticket as its maker is told of it."""

    id: str
    instance_id: str
    expires_ms: int


@dataclass(frozen=True)
class Looker:
    """Somebody at one instance's console.

    Args:
        token_id: the token that made the ticket; empty for one whom an identity provider vouches for.
        actor: as the audit log names them.
    """

    ticket_id: str
    tenant_id: str
    instance_id: str
    host_id: str
    token_id: str
    actor: Actor


def issue(tx: UnitOfWork, caller: Caller, reference: str, new: NewTicket) -> Ticket:
    """Let the caller open one instance's console once, within `TICKET_S` seconds.

    Raises:
        NotFoundError: `instance.unknown`.
        ConflictError: `console.not_running`.
        HostError: `console.host_unreachable`.
    """
    instance = instances.get(tx, caller, reference)
    _place(tx, instance)
    expires_ms = tx.now_ms + TICKET_S * 1000
    tx.add(
        ConsoleTicketRow,
        id=new.id,
        tenant_id=instance.tenant_id,
        instance_id=instance.id,
        principal_id=caller.principal.id,
        token_id=caller.actor.token,
        secret_hash=new.secret_hash,
        expires_ms=expires_ms,
        used_ms=None,
    )
    tx.record(
        "console_ticket.create",
        ("instance", instance.id),
        tenant=instance.tenant_id,
        details={"ticket": new.id, "expires_ms": expires_ms},
    )
    return Ticket(new.id, instance.id, expires_ms)


def get(tx: Reader, caller: Caller, ticket_id: str) -> Ticket:
    """Return a ticket that the caller made before.

    Raises:
        NotFoundError: `console_ticket.unknown`: it is no longer kept.
    """
    mine = (_TICKETS.c.tenant_id == caller.tenant_id, _TICKETS.c.principal_id == caller.principal.id)
    row = tx.first(select(_TICKETS).where(_TICKETS.c.id == ticket_id, *mine))
    if row is None:
        raise NotFoundError(
            "console_ticket.unknown",
            "that ticket is not kept any more",
            hint="make a new one, with a new key",
        )
    return Ticket(row.id, row.instance_id, row.expires_ms)


def redeem(tx: UnitOfWork, pepper: bytes, shown: ParsedToken, who: Actor, beside: str | None) -> Looker:
    """Use a ticket up.

    Args:
        who: from where it was shown, and in which request.
        beside: the principal whose token was shown with it; None for no token, which needs none.

    Raises:
        UnauthenticatedError: `console_ticket.invalid`: unknown, wrong, used, expired, another's, or its maker
            may not do this any more; all look the same, and nothing was changed.
        NotFoundError, ConflictError, HostError: as `issue`.
    """
    row = tx.first(select(_TICKETS).where(_TICKETS.c.id == shown.key_id))
    if row is None or not secret_matches(pepper, shown.secret, row.secret_hash):
        raise _refused()
    used = tx.execute(
        update(_TICKETS)
        .where(_TICKETS.c.id == row.id, _TICKETS.c.used_ms.is_(None), _TICKETS.c.expires_ms > tx.now_ms)
        .values(used_ms=tx.now_ms)
    )
    if used.rowcount != 1 or (beside is not None and beside != row.principal_id):
        raise _refused()
    kind = _demand_right(tx, row.tenant_id, row.principal_id, row.token_id, tx.now_ms)
    instance = INSTANCES.get(tx, Scope(row.tenant_id), row.instance_id)
    if instance is None:
        raise NotFoundError("instance.unknown", "the instance was deleted")
    host_id = _place(tx, instance)
    actor = Actor(kind, row.principal_id, row.tenant_id, row.token_id, who.address, who.request_id)
    tx.actor = actor
    tx.record("console.open", ("instance", instance.id), tenant=row.tenant_id, details={"ticket": row.id})
    return Looker(row.id, row.tenant_id, instance.id, host_id, row.token_id, actor)


def demand_still(tx: Reader, looker: Looker, now_ms: int) -> None:
    """Go on only while who looks may: asked every few seconds of an open console.

    Raises:
        UnauthenticatedError: `console_ticket.invalid`.
        NotFoundError: `instance.unknown`.
        HostError: `console.host_unreachable`: it was fenced.
    """
    _demand_right(tx, looker.tenant_id, looker.actor.id, looker.token_id, now_ms)
    if INSTANCES.get(tx, Scope(looker.tenant_id), looker.instance_id) is None:
        raise NotFoundError("instance.unknown", "the instance was deleted")
    host = HOSTS.get(tx, PLATFORM, looker.host_id)
    if host is None or host.state is HostState.FENCED:
        raise _away()


def closed(tx: UnitOfWork, looker: Looker, code: str, *, ok: bool, sent: int, received: int) -> None:
    """Write down that a console is closed again, why, and how much went through it."""
    tx.record(
        "console.open",
        ("instance", looker.instance_id),
        tenant=looker.tenant_id,
        stage="outcome",
        outcome="ok" if ok else "failed",
        details={"ticket": looker.ticket_id, "code": code, "typed_bytes": sent, "shown_bytes": received},
    )


def read_log(tx: UnitOfWork, caller: Caller, reference: str, last_bytes: int) -> InstanceRecord:
    """Write down that the caller reads what an instance's console said; return the instance, on its host.

    Raises:
        NotFoundError: `instance.unknown`, `console_log.none`.
        HostError: `console.host_unreachable`.
    """
    instance = instances.get(tx, caller, reference)
    if instance.host_id is None:
        raise no_log(instance.name)
    _demand_reachable(tx, instance.host_id)
    tx.record(
        "console_log.get",
        ("instance", instance.id),
        tenant=instance.tenant_id,
        stage="read",
        details={"last_bytes": last_bytes},
    )
    return instance


def sweep(tx: UnitOfWork) -> None:
    """Forget tickets that have expired; the audit log knows who made and used them."""
    tx.note(delete(_TICKETS).where(_TICKETS.c.expires_ms < tx.now_ms))


def no_log(name: str) -> NotFoundError:
    """Say that nothing was kept."""
    return NotFoundError(
        "console_log.none", f"no console log of {name} is kept", hint="it begins with its first start"
    )


def _place(tx: Reader, instance: InstanceRecord) -> str:
    """The host on which an instance runs."""
    if instance.host_id is None or instance.state not in _LIVE:
        raise ConflictError(
            "console.not_running",
            f"{instance.name} is {instance.state.value}; only what runs has a console",
            hint="start it, or read what was kept: bulkhead instance log NAME",
        )
    _demand_reachable(tx, instance.host_id)
    return instance.host_id


def _demand_reachable(tx: Reader, host_id: str) -> None:
    host = HOSTS.get(tx, PLATFORM, host_id)
    if host is None or host.state in _AWAY:
        raise _away()


def _demand_right(tx: Reader, tenant_id: str, principal_id: str, token_id: str, now_ms: int) -> str:
    """Return the kind of whoever made a ticket, if they could make it now."""
    principal = PRINCIPALS.get(tx, Scope(tenant_id), principal_id)
    if principal is None or principal.disabled:
        raise _refused()
    scopes = frozenset({"write"})
    if token_id:
        token = tx.first(select(_TOKENS).where(_TOKENS.c.key_id == token_id))
        if token is None or token.revoked_ms is not None or token.expires_ms <= now_ms:
            raise _refused()
        scopes = frozenset(token.scopes)
    if decide(principal, scopes, action_of(ACTION), tenant_id) is not Decision.ALLOW:
        raise _refused()
    return principal.kind


def _away() -> HostError:
    return HostError(
        "console.host_unreachable",
        "the instance's host is not heard of; the instance may run on",
        hint="try again later",
    )


def _refused() -> UnauthenticatedError:
    return UnauthenticatedError(
        "console_ticket.invalid",
        "the ticket is not valid: unknown, used, expired, or its maker may not do this any more",
        hint="make a new one: POST .../actions/console",
    )
