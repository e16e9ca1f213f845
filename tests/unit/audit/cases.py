"""Events and records that the audit tests share."""

from __future__ import annotations

import hashlib
from typing import Any

from orchestrator.audit.record import AuditEvent, AuditRecord, commitment, event_bytes
from orchestrator.model.actor import Actor

ACTOR = Actor("user", "usr_a", "ten_a", "tok_a", "192.0.2.7", "req_1")


def event(**changes: Any) -> AuditEvent:
    fields: dict[str, Any] = {
        "kind": "instance.create",
        "stage": "intent",
        "at_ms": 1_760_000_000_000,
        "actor": ACTOR,
        "subject_kind": "instance",
        "subject_id": "vm_a",
        "tenant": "ten_a",
        "request_id": "req_1",
        "outcome": "ok",
        "details": {"name": "röd-1", "gpus": 1},
    }
    return AuditEvent(**{**fields, **changes})


def record(seq: int, what: AuditEvent | None = None, **changes: Any) -> AuditRecord:
    what = what or event(at_ms=1_760_000_000_000 + seq, subject_id=f"vm_{seq}")
    body = event_bytes(what)
    salt = hashlib.sha256(f"{what.stream} {seq}".encode()).digest()
    fields = {
        "stream": what.stream,
        "seq": seq,
        "salt": salt,
        "body": body,
        "commitment": commitment(salt, body),
    }
    return AuditRecord(**{**fields, **changes})
