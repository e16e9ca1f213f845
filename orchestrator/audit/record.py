"""One audit record: what happened, its exact bytes, and a commitment to them.

The bytes are kept as they were hashed; whoever verifies hashes bytes and never writes them again. The salt
keeps a commitment from being guessed, and lets content be erased while the commitment stays. Draws no salt
and no time itself. The store's unit of work writes records, exports and the event stream read them.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.audit.canonical import canonical_bytes
from orchestrator.model.actor import Actor
from orchestrator.model.errors import InvalidInputError
from orchestrator.model.quota import DIMENSIONS

#: Says which form of record a commitment is about; first in the hash, so that no other hash equals one.
DOMAIN = b"bulkhead-audit/1"
#: Of one length, or salt and bytes could trade places at their border.
SALT_BYTES = 32
STAGES = frozenset({"intent", "outcome", "denied", "read"})
OUTCOMES = frozenset({"ok", "failed", "denied"})
PLATFORM_STREAM = "platform"
#: What the event stream shows of details, by noun (the first part of a kind): a new detail is private until
#: somebody lists it here.
PUBLIC_DETAILS: Mapping[str, frozenset[str]] = {
    "instance": frozenset({"name", "type", "image", "operation", "generation", "state", "code", "failures"}),
    "volume": frozenset({"name", "size_gib", "operation", "generation", "state", "code", "instance"}),
    "network": frozenset({"name", "cidr"}),
    "operation": frozenset({"kind", "state", "code"}),
    "request": frozenset({"state", "reason", "instance"}),
    "tenant": frozenset({"name", "state", *DIMENSIONS}),
    "quota": frozenset(DIMENSIONS),
    "user": frozenset({"name", "kind", "roles"}),
    "token": frozenset({"name", "scopes", "expires_ms", "user"}),
    "image": frozenset({"name", "digest"}),
    "instance_type": frozenset({"name", *DIMENSIONS}),
    "host": frozenset({"name", "reason", "was", "state"}),
    "gpu": frozenset({"reason", "was", "state"}),
}
_NAMED_ACTORS = frozenset({"user", "service"})
_VERSION = 1
_MAX_KIND = 63
_KIND = re.compile(r"[a-z][a-z0-9_-]*(?:\.[a-z0-9][a-z0-9_-]*)+")


@dataclass(frozen=True)
class AuditEvent:
    """What happened.

    Args:
        kind: noun and verb, such as `instance.create`.
        stage: `intent` with the wish, `outcome` with what came of it, `denied`, or `read`.
        at_ms: time of its transaction.
        actor: who asked; its request id stands in `request_id`.
        subject_kind, subject_id: what it is about.
        tenant: whose stream it stands in; None for the platform's.
        outcome: `ok`, `failed` or `denied`.
        details: strings, whole numbers, lists and objects; never a secret.

    Raises:
        InvalidInputError: `audit.kind`, `audit.stage`, `audit.outcome`.
    """

    kind: str
    stage: str
    at_ms: int
    actor: Actor
    subject_kind: str
    subject_id: str
    tenant: str | None
    request_id: str
    outcome: str
    details: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.kind) > _MAX_KIND or not _KIND.fullmatch(self.kind):
            raise InvalidInputError("audit.kind", "a kind is noun.verb in small letters", field="kind")
        if self.stage not in STAGES:
            raise InvalidInputError("audit.stage", f"a stage is one of {sorted(STAGES)}", field="stage")
        if self.outcome not in OUTCOMES:
            raise InvalidInputError(
                "audit.outcome", f"an outcome is one of {sorted(OUTCOMES)}", field="outcome"
            )

    @property
    def stream(self) -> str:
        """The stream it belongs to."""
        return PLATFORM_STREAM if self.tenant is None else self.tenant


@dataclass(frozen=True)
class AuditRecord:
    """An event as it is kept, at its place in its stream."""

    stream: str
    seq: int
    salt: bytes
    body: bytes
    commitment: bytes


def event_bytes(event: AuditEvent) -> bytes:
    """The exact bytes of an event, at most 32 KiB.

    Raises:
        InvalidInputError: `audit.value`.
        TooLargeError: `audit.too_large`.
    """
    actor = event.actor
    return canonical_bytes(
        {
            "v": _VERSION,
            "kind": event.kind,
            "stage": event.stage,
            "at_ms": event.at_ms,
            "actor": {
                "kind": actor.kind,
                "id": actor.id,
                "tenant": actor.tenant,
                "token": actor.token,
                "address": actor.address,
            },
            "subject": {"kind": event.subject_kind, "id": event.subject_id},
            "tenant": event.tenant,
            "request_id": event.request_id,
            "outcome": event.outcome,
            "details": dict(event.details),
        }
    )


def parse_event(body: bytes) -> AuditEvent:
    """Read an event's bytes; they must be exactly those that `event_bytes` gives.

    Raises:
        InvalidInputError: `audit.body`.
    """
    try:
        found = json.loads(body)
        event = AuditEvent(
            kind=found["kind"],
            stage=found["stage"],
            at_ms=found["at_ms"],
            actor=Actor(**found["actor"], request_id=found["request_id"]),
            subject_kind=found["subject"]["kind"],
            subject_id=found["subject"]["id"],
            tenant=found["tenant"],
            request_id=found["request_id"],
            outcome=found["outcome"],
            details=found["details"],
        )
        same = _typed(event) and event_bytes(event) == body
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, InvalidInputError) as exc:
        raise InvalidInputError("audit.body", "these bytes are no event") from exc
    if not same:
        raise InvalidInputError("audit.body", "these bytes are an event, but not in its one spelling")
    return event


def _typed(event: AuditEvent) -> bool:
    actor = event.actor
    texts = (event.subject_kind, event.subject_id, event.request_id, actor.kind, actor.id, actor.token)
    return (
        all(isinstance(text, str) for text in (*texts, actor.address))
        and all(isinstance(tenant, str | None) for tenant in (event.tenant, actor.tenant))
        and type(event.at_ms) is int
    )


def commitment(salt: bytes, body: bytes) -> bytes:
    """SHA-256 over domain, salt and exact bytes.

    Raises:
        InvalidInputError: `audit.salt`.
    """
    if len(salt) != SALT_BYTES:
        raise InvalidInputError("audit.salt", f"a salt has {SALT_BYTES} bytes, not {len(salt)}")
    return hashlib.sha256(DOMAIN + salt + body).digest()


def verify_record(record: AuditRecord) -> tuple[str, ...]:
    """Say what is wrong with one record, one phrase each; empty when it is as it was written.

    It says nothing about records that are not there; `orchestrator.audit.export` does.
    """
    if len(record.salt) != SALT_BYTES:
        return (f"the salt has {len(record.salt)} bytes, not {SALT_BYTES}",)
    found = []
    if not hmac.compare_digest(commitment(record.salt, record.body), record.commitment):
        found.append("salt and bytes do not give the commitment: one of the three was changed")
    try:
        event = parse_event(record.body)
    except InvalidInputError as exc:
        return (*found, exc.message)
    if event.stream != record.stream:
        found.append(f"the event belongs to stream {event.stream}")
    return tuple(found)


def public_event(body: bytes) -> dict[str, Any]:
    """What the event stream shows of a record: less than an auditor gets.

    Neither address nor token, and of the details only those that `PUBLIC_DETAILS` lists.

    Raises:
        InvalidInputError: `audit.body`.
    """
    event = parse_event(body)
    return {
        "kind": event.kind,
        "stage": event.stage,
        "at_ms": event.at_ms,
        "actor": _actor(event),
        "subject": {"kind": event.subject_kind, "id": event.subject_id},
        "tenant": event.tenant,
        "request_id": event.request_id,
        "outcome": event.outcome,
        "details": _details(event),
    }


def _actor(event: AuditEvent) -> dict[str, str]:
    # A tenant learns who of its own or of the platform's people acted, not on which host.
    named = event.actor.kind in _NAMED_ACTORS or event.tenant is None
    return {"kind": event.actor.kind, "id": event.actor.id if named else ""}


def _details(event: AuditEvent) -> dict[str, Any]:
    listed = PUBLIC_DETAILS.get(event.kind.split(".", 1)[0], frozenset())
    return {key: value for key, value in event.details.items() if key in listed and _flat(value)}


def _flat(value: object) -> bool:
    """An object inside could carry what nobody has listed."""
    if isinstance(value, list):
        return not any(isinstance(item, list | dict) for item in value)
    return not isinstance(value, dict)
