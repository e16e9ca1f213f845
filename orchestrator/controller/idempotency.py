"""Idempotency keys: the same key and body makes one thing, however often and however parallel it is sent."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sqlalchemy import delete, select, update
from sqlalchemy.dialects import postgresql, sqlite

from orchestrator.controller.caller import Caller
from orchestrator.model.errors import InvalidInputError
from orchestrator.store.tables.operations import IdempotencyRow
from orchestrator.store.unit_of_work import UnitOfWork, table_of

_TABLE = table_of(IdempotencyRow)
_CLAIM = {
    # Drivers count the rows of such an insert each in its own way.
    name: dialect.insert(_TABLE).on_conflict_do_nothing().returning(_TABLE.c.key)
    for name, dialect in (("sqlite", sqlite), ("postgresql", postgresql))
}
KEPT_MS = 24 * 3600 * 1000
_KEY = re.compile(r"[\x21-\x7e]{1,128}")


@dataclass(frozen=True)
class Sent:
    """What a POST carried: its route's operation id, its key and its body's keyed hash."""

    route: str
    key: str
    body_mac: str


@dataclass(frozen=True)
class Made:
    """What an earlier call with the same key made."""

    operation_id: str | None
    subject_id: str


def check_key(key: str) -> str:
    """Return the key, if it is one.

    Raises:
        InvalidInputError: `idempotency.key`.
    """
    if not _KEY.fullmatch(key):
        raise InvalidInputError(
            "idempotency.key", "1 to 128 printable ASCII characters without spaces", field="Idempotency-Key"
        )
    return key


def claim(tx: UnitOfWork, caller: Caller, sent: Sent, made: Made) -> Made | None:
    """Take the key for what this transaction will make; or return what another made with it already.

    One statement where the key is new. Two calls at once wait for each other on the row, and the second gets
    the answer of the first.

    Raises:
        InvalidInputError: `idempotency.key_reused`.
    """
    owner = _owner(caller, sent)
    values = {
        **owner,
        "body_mac": sent.body_mac,
        "operation_id": made.operation_id,
        "subject_id": made.subject_id,
        "created_ms": tx.now_ms,
    }
    done = tx.execute(_CLAIM[tx.dialect], values)
    if done.first() is not None:
        return None
    row = tx.first(select(_TABLE).where(*(_TABLE.c[name] == value for name, value in owner.items())))
    assert row is not None  # noqa: S101 - the conflict was with it
    if row.body_mac != sent.body_mac:
        raise InvalidInputError(
            "idempotency.key_reused",
            "this key was sent before with another body",
            field="Idempotency-Key",
            hint="send a new key with each new request",
        )
    return Made(row.operation_id, row.subject_id)


def name_made(tx: UnitOfWork, caller: Caller, sent: Sent, subject_id: str) -> None:
    """Write down the id of what was made, where no operation stands for it."""
    mine = (_TABLE.c[name] == value for name, value in _owner(caller, sent).items())
    tx.execute(update(_TABLE).where(*mine).values(subject_id=subject_id))


def _owner(caller: Caller, sent: Sent) -> dict[str, str]:
    return {
        "tenant_id": "" if caller.tenant is None else caller.tenant.id,
        "principal_id": caller.principal.id,
        "route": sent.route,
        "key": sent.key,
    }


def sweep(tx: UnitOfWork) -> None:
    """Forget keys that are a day old."""
    tx.execute(delete(_TABLE).where(_TABLE.c.created_ms < tx.now_ms - KEPT_MS))
