"""Operations: what was asked for, how far it is. Steps are named once, when the operation is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import bindparam, func, select, tuple_, update

from orchestrator.controller.caller import Caller, unknown
from orchestrator.model.errors import ConflictError, InvalidInputError
from orchestrator.model.operation import Operation
from orchestrator.model.states import OperationState, RequestState
from orchestrator.store.nouns import OPERATIONS
from orchestrator.store.rows import PLATFORM, After, Part, to_value
from orchestrator.store.tables.instances import RequestRow
from orchestrator.store.tables.operations import OperationRow
from orchestrator.store.unit_of_work import Reader, UnitOfWork, table_of

TABLE, _REQUESTS = table_of(OperationRow), table_of(RequestRow)
_OVER = [state.value for state in OperationState if state.over]
_OPEN = select(TABLE).where(TABLE.c.id == bindparam("operation"), TABLE.c.state.not_in(_OVER))
_CHANGE = update(TABLE).where(TABLE.c.id == bindparam("operation"))
_BEFORE = _REQUESTS.alias("before")
_AHEAD = (
    select(func.count())
    .where(
        _BEFORE.c.tenant_id == _REQUESTS.c.tenant_id,
        _BEFORE.c.state == RequestState.WAITING,
        tuple_(_BEFORE.c.submitted_ms, _BEFORE.c.id) < tuple_(_REQUESTS.c.submitted_ms, _REQUESTS.c.id),
    )
    .scalar_subquery()
)
_WAITING = select(
    _REQUESTS.c.instance_id, _REQUESTS.c.reason, _REQUESTS.c.reason_ms, _AHEAD.label("ahead")
).where(
    _REQUESTS.c.instance_id.in_(bindparam("instances", expanding=True)),
    _REQUESTS.c.state == RequestState.WAITING,
)

#: What each kind of operation goes through, in order.
STEPS: Mapping[str, tuple[str, ...]] = {
    "instance.create": ("accepted", "placed", "provisioning", "running"),
    "instance.start": ("accepted", "starting", "running"),
    "instance.restart": ("accepted", "stopped", "running"),
    "instance.stop": ("accepted", "stopping", "stopped"),
    "instance.delete": ("accepted", "stopping", "erased", "deleted"),
    "volume.delete": ("accepted", "erased"),
    "instance.rebuild": ("accepted", "placed", "provisioning", "running"),
    "host.drain": ("accepted", "drained"),
    "host.evacuate": ("accepted", "rebuilt"),
}


def begin(tx: UnitOfWork, caller: Caller, kind: str, subject: tuple[str, str], identity: str) -> Operation:
    """Write down an operation whose first step is done with this transaction."""
    return begin_for(
        tx,
        kind,
        subject,
        identity,
        tenant_id=None if caller.tenant is None else caller.tenant.id,
        principal_id=caller.principal.id,
        request_id=caller.actor.request_id,
    )


def begin_for(
    tx: UnitOfWork,
    kind: str,
    subject: tuple[str, str],
    identity: str,
    *,
    tenant_id: str | None,
    principal_id: str,
    request_id: str,
    last: str | None = None,
) -> Operation:
    """As `begin`, for somebody whose call is over by now.

    Args:
        last: what it ends with, where that is not what its kind says.
    """
    names = STEPS[kind] if last is None else (*STEPS[kind][:-1], last)
    steps = [{"name": names[0], "state": "done", "at_ms": tx.now_ms}]
    steps += [{"name": name, "state": "pending", "at_ms": None} for name in names[1:]]
    steps[1]["state"] = "running"
    made = Operation(
        id=identity,
        tenant_id=tenant_id,
        kind=kind,
        subject_kind=subject[0],
        subject_id=subject[1],
        state=OperationState.RUNNING,
        steps=tuple(steps),
        error=None,
        principal_id=principal_id,
        request_id=request_id,
        created_ms=tx.now_ms,
        finished_ms=None,
    )
    tx.add(OperationRow, **{**vars(made), "steps": steps})
    return made


def get(tx: Reader, caller: Caller, identity: str) -> Operation:
    """Return one.

    Raises:
        NotFoundError: `operation.unknown`.
    """
    found = OPERATIONS.get(tx, caller.scope, identity)
    if found is None:
        raise unknown("operation", identity)
    return found


def platform(tx: Reader, identity: str) -> Operation:
    """Return one of the platform's own.

    Raises:
        NotFoundError: `operation.unknown`: also for a tenant's.
    """
    found = OPERATIONS.where(tx, PLATFORM, TABLE.c.id == identity, TABLE.c.tenant_id.is_(None))
    if not found:
        raise unknown("operation", identity)
    return found[0]


@dataclass(frozen=True)
class Wanted:
    """Which operations a list is to hold; None takes any."""

    state: OperationState | None = None
    kind: str | None = None
    subject: str | None = None


def page(
    tx: Reader, tenant_id: str | None, part: Part, wanted: Wanted
) -> tuple[list[Operation], After | None]:
    """A part of a tenant's operations, or (None) of the platform's own.

    Raises:
        InvalidInputError: `operation.kind`: there is none of that kind.
    """
    if wanted.kind is not None and wanted.kind not in STEPS:
        raise InvalidInputError(
            "operation.kind",
            "there are no operations of that kind",
            field="kind",
            hint=f"there are {', '.join(STEPS)}",
        )
    whose = TABLE.c.tenant_id.is_(None) if tenant_id is None else TABLE.c.tenant_id == tenant_id
    found = OPERATIONS.like(state=wanted.state, kind=wanted.kind, subject_id=wanted.subject)
    return OPERATIONS.page(tx, PLATFORM, part, [whose, *found])


@dataclass(frozen=True)
class Waiting:
    """Why an operation does not go on.

    Args:
        reason: the refusal's JSON form, which counts what is short; None before the first look for a place.
        reason_ms: when it counted.
        ahead: how many requests of the same tenant were there before; others' are nobody's business.
    """

    reason: Mapping[str, Any] | None
    reason_ms: int | None
    ahead: int


def waiting(tx: Reader, found: Sequence[Operation]) -> dict[str, Waiting]:
    """Return what those wait for that wait for capacity, by operation. Cost: one statement."""
    by_instance = {
        each.subject_id: each.id for each in found if each.subject_kind == "instance" and not each.state.over
    }
    asked, waits = list(by_instance), {}
    # SQLite takes a bounded number of parameters.
    for at in range(0, len(asked), 500):
        for row in tx.all(_WAITING, {"instances": asked[at : at + 500]}):
            waits[by_instance[row.instance_id]] = Waiting(row.reason, row.reason_ms, row.ahead)
    return waits


def advance(tx: UnitOfWork, identity: str | None, step: str) -> None:
    """Mark a step and all before it done; the last one ends the operation well. Over or unknown: nothing."""
    found = _open(tx, identity)
    if found is None:
        return
    names = [each["name"] for each in found.steps]
    if step not in names:
        return
    reached = names.index(step)
    steps = [dict(each) for each in found.steps]
    for number, each in enumerate(steps):
        if number <= reached and each["state"] != "done":
            each.update(state="done", at_ms=tx.now_ms)
        elif number == reached + 1:
            each["state"] = "running"
    over = reached == len(names) - 1
    _write(tx, found, steps, OperationState.SUCCEEDED if over else OperationState.RUNNING, None)


def progress(tx: UnitOfWork, identity: str, done: int, total: int) -> None:
    """Say how far the running step is, in things of one kind. Over, unknown or no news: nothing."""
    found = _open(tx, identity)
    if found is None:
        return
    steps = [dict(each) for each in found.steps]
    running = next(each for each in steps if each["state"] == "running")
    if (running.get("done"), running.get("total")) == (done, total):
        return
    running.update(done=done, total=total)
    # A count on the way is no news for an auditor: its end is.
    tx.note(update(TABLE).where(TABLE.c.id == identity).values(steps=steps))


def told(tx: UnitOfWork, identity: str, result: Mapping[str, Any]) -> None:
    """Write what an operation came to so far."""
    tx.execute(update(TABLE).where(TABLE.c.id == identity).values(result=dict(result)))


def trouble(tx: UnitOfWork, identity: str | None, error: Mapping[str, Any]) -> bool:
    """Show what keeps an operation that goes on trying; its next step takes the error away.

    Over, unknown or shown already: nothing.

    Returns:
        Whether it is another error than before, so that it is news.
    """
    found = _open(tx, identity)
    if found is None or found.error == error:
        return False
    tx.note(update(TABLE).where(TABLE.c.id == identity).values(error=dict(error)))
    return found.error is None or found.error.get("code") != error.get("code")


def fail(tx: UnitOfWork, identity: str | None, error: Mapping[str, Any]) -> None:
    """End an operation badly. Over or unknown: nothing."""
    _end(tx, identity, OperationState.FAILED, "failed", error)


def cancelled(tx: UnitOfWork, identity: str | None, why: Mapping[str, Any]) -> None:
    """End an operation because something later took its place. Over or unknown: nothing."""
    _end(tx, identity, OperationState.CANCELLED, "cancelled", why)


def must_be_open(operation: Operation) -> None:
    """Refuse to cancel what is over.

    Raises:
        ConflictError: `operation.over`.
    """
    if operation.state.over:
        raise ConflictError("operation.over", f"the operation has {operation.state.value} already")


def _open(tx: Reader, identity: str | None) -> Operation | None:
    if identity is None:
        return None
    row = tx.first(_OPEN, {"operation": identity})
    return None if row is None else to_value(Operation, row._mapping)


def _end(
    tx: UnitOfWork, identity: str | None, state: OperationState, mark: str, error: Mapping[str, Any]
) -> None:
    found = _open(tx, identity)
    if found is None:
        return
    steps = [dict(each) for each in found.steps]
    for each in steps:
        if each["state"] == "running":
            each.update(state=mark, at_ms=tx.now_ms)
    _write(tx, found, steps, state, error)


def _write(
    tx: UnitOfWork,
    operation: Operation,
    steps: Sequence[Mapping[str, Any]],
    state: OperationState,
    error: Mapping[str, Any] | None,
) -> None:
    finished = tx.now_ms if state.over else None
    tx.execute(
        _CHANGE,
        {
            "operation": operation.id,
            "steps": list(steps),
            "state": state,
            "error": None if error is None else dict(error),
            "finished_ms": finished,
        },
    )
    if state.over:
        # Who waits, waits for its end.
        tx.wake(f"operation:{operation.id}")
