"""Hosts: made by an operator, enrolled by their agent, taken out and brought back with a reason."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from sqlalchemy import update
from sqlalchemy.exc import IntegrityError

from orchestrator.controller import doctor, enrolment, operations
from orchestrator.controller.caller import Caller, unknown
from orchestrator.model.errors import ConflictError, ForbiddenError
from orchestrator.model.fleet import FleetHost
from orchestrator.model.states import HostState
from orchestrator.store.ids import new_id
from orchestrator.store.nouns import HOSTS
from orchestrator.store.rows import PLATFORM
from orchestrator.store.tables.fleet import HostRow
from orchestrator.store.tables.keys import JoinTokenRow
from orchestrator.store.unit_of_work import Reader, UnitOfWork, table_of

_HOSTS, _TOKENS = table_of(HostRow), table_of(JoinTokenRow)
JOIN_TOKEN_MS = 24 * 3600 * 1000

_H = HostState
#: From which states each verb may be said, and where it leads.
_VERBS = {
    "cordon": (frozenset({_H.READY, _H.UNREACHABLE, _H.DRAINED, _H.DRAINING}), _H.CORDONED),
    "uncordon": (frozenset({_H.CORDONED, _H.DRAINED, _H.DRAINING}), _H.READY),
    "fence": (frozenset({_H.UNREACHABLE, _H.CORDONED}), _H.FENCED),
}
_PAST = {"cordon": "cordoned", "uncordon": "uncordoned", "fence": "fenced"}


@dataclass(frozen=True)
class JoinToken:
    """A join token as it is kept: only the hash of its secret."""

    id: str
    host_id: str
    expires_ms: int


def create(tx: UnitOfWork, name: str, disk_gib: int) -> FleetHost:
    """Make a host that waits for its agent.

    Raises:
        ConflictError: `host.name_taken`.
    """
    identity = new_id("hst")
    try:
        tx.add(
            HostRow,
            id=identity,
            name=name,
            state=HostState.ENROLLING,
            disk_gib=disk_gib,
            used_disk_gib=0,
            created_ms=tx.now_ms,
        )
    except IntegrityError as exc:
        raise ConflictError("host.name_taken", f"there is a host {name} already", field="name") from exc
    tx.record("host.create", ("host", identity), tenant=None, details={"name": name, "disk_gib": disk_gib})
    return get(tx, identity)


def get(tx: Reader, reference: str, *, lock: bool = False) -> FleetHost:
    """Return one.

    Raises:
        NotFoundError: `host.unknown`.
    """
    found = HOSTS.get(tx, PLATFORM, reference, lock=lock)
    if found is None:
        raise unknown("host", reference)
    return found


def add_join_token(tx: UnitOfWork, host: FleetHost, secret: bytes) -> JoinToken:
    """Let one agent enrol as this host within a day; earlier tokens of it stop working."""
    use_up(tx, host.id)
    made = JoinToken(new_id("jt"), host.id, tx.now_ms + JOIN_TOKEN_MS)
    tx.add(
        JoinTokenRow,
        id=made.id,
        host_id=host.id,
        secret_hash=hashlib.sha256(secret).digest(),
        expires_ms=made.expires_ms,
        used_ms=None,
    )
    tx.record("host.join_token", ("host", host.id), tenant=None, details={"join_token": made.id})
    return made


def wanted(tx: Reader, caller: Caller, reference: str) -> str:
    """Return the id of the host that a list of instances is narrowed to.

    Raises:
        NotFoundError: `host.unknown`.
        ForbiddenError: `host.hidden`: a tenant's people are not told where anything runs.
    """
    if caller.principal.tenant_id is not None:
        raise ForbiddenError(
            "host.hidden", "where an instance runs is told to the platform's people alone", field="host"
        )
    return get(tx, reference).id


def change_state(tx: UnitOfWork, reference: str, verb: str, reason: str) -> FleetHost:
    """Cordon, uncordon or fence a host; its VMs are left alone. A drain that is under way ends with it.

    Raises:
        NotFoundError: `host.unknown`.
        ConflictError: `host.state`, `host.doctor_failed`.
    """
    host = get(tx, reference, lock=True)
    before, after = _VERBS[verb]
    taken_over = verb == "cordon" and host.state is _H.CORDONED and host.cordoned_by == doctor.DOCTOR
    if host.state not in before and not taken_over:
        hint = "cordon it first" if verb == "fence" and host.state is HostState.READY else None
        raise ConflictError(
            "host.state", f"{host.name} is {host.state.value}; it cannot be {_PAST[verb]}", hint=hint
        )
    if verb == "uncordon":
        doctor.check_uncordon(host)
    if host.drain is not None:
        why = {"code": "host.drain_ended", "message": f"the host was {_PAST[verb]}", "retryable": False}
        operations.cancelled(tx, host.drain["operation_id"], why)
    _set_state(tx, host, after, reason)
    tx.record(
        f"host.{verb}", ("host", host.id), tenant=None, details={"reason": reason, "was": host.state.value}
    )
    if verb == "fence":
        # A fenced host may come back as somebody else's machine: nothing it holds opens anything any more.
        enrolment.revoke(tx, host.id)
        # A poll that waits is answered no more either.
        tx.wake(f"host:{host.id}")
    return get(tx, host.id)


def _set_state(tx: UnitOfWork, host: FleetHost, state: HostState, reason: str) -> None:
    tx.execute(
        update(_HOSTS)
        .where(_HOSTS.c.id == host.id)
        .values(
            state=state,
            reason=reason,
            drain=None,
            cordoned_by=doctor.OPERATOR if state is HostState.CORDONED else "",
            generation=_HOSTS.c.generation + 1,
        )
    )
    tx.wake("scheduler")


def revoke(tx: UnitOfWork, reference: str, reason: str) -> FleetHost:
    """Take back a host's certificates and unused join tokens; its VMs run on, and nobody hears it any more.

    Raises:
        NotFoundError: `host.unknown`.
        ConflictError: `host.no_certificate`: it has none that counts, and no token either.
    """
    host = get(tx, reference, lock=True)
    certificates, tokens = enrolment.revoke(tx, host.id), use_up(tx, host.id)
    if not certificates and not tokens:
        raise ConflictError("host.no_certificate", f"{host.name} has no certificate that could be taken back")
    details = {"reason": reason, "certificates": certificates, "join_tokens": tokens}
    tx.record("host.revoke", ("host", host.id), tenant=None, details=details)
    tx.wake(f"host:{host.id}")
    return get(tx, host.id)


def use_up(tx: UnitOfWork, host_id: str) -> int:
    """End join tokens that nobody has used; how many there were."""
    unused = update(_TOKENS).where(_TOKENS.c.host_id == host_id, _TOKENS.c.used_ms.is_(None))
    return int(tx.execute(unused.values(used_ms=tx.now_ms)).rowcount)
