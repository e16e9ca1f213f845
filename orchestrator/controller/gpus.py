"""GPUs of the pool: which step each takes. The database refuses any step that the table of edges lacks."""

from __future__ import annotations

from typing import Any

from sqlalchemy import bindparam, select, update
from sqlalchemy.exc import IntegrityError

from orchestrator.controller.caller import unknown
from orchestrator.model.errors import ConflictError
from orchestrator.model.fleet import GpuRecord
from orchestrator.model.states import GpuState
from orchestrator.store.nouns import GPUS
from orchestrator.store.rows import PLATFORM
from orchestrator.store.tables.fleet import GpuRow, HostRow
from orchestrator.store.unit_of_work import Reader, UnitOfWork, table_of

#: The class of what was not cleaned yet.
NOT_YET = "none"
_TABLE, _HOSTS = table_of(GpuRow), table_of(HostRow)
_MOVE = (
    update(_TABLE)
    .where(_TABLE.c.id == bindparam("gpu"))
    .values(previous=_TABLE.c.state, generation=_TABLE.c.generation + 1)
)


def get(tx: Reader, identity: str) -> GpuRecord:
    """Return one.

    Raises:
        NotFoundError: `gpu.unknown`.
    """
    found = GPUS.get(tx, PLATFORM, identity)
    if found is None:
        raise unknown("gpu", identity)
    return found


def move(tx: UnitOfWork, identity: str, state: GpuState, **changes: Any) -> None:
    """Let a GPU take one step.

    Raises:
        ConflictError: `gpu.step`: there is no such edge.
    """
    try:
        tx.execute(_MOVE, {"gpu": identity, "state": state, **changes})
    except IntegrityError as exc:
        before = "where it is"
        raise ConflictError("gpu.step", f"{identity} cannot go from {before} to {state.value}") from exc


def quarantine(tx: UnitOfWork, identity: str, reason: str) -> GpuRecord:
    """Take a GPU out of the pool until an operator has looked at it; who has it keeps it.

    Raises:
        NotFoundError: `gpu.unknown`.
        ConflictError: `gpu.quarantined`.
    """
    gpu = get(tx, identity)
    if gpu.state is GpuState.QUARANTINED:
        raise ConflictError("gpu.quarantined", f"{identity} is quarantined already: {gpu.reason}")
    move(tx, identity, GpuState.QUARANTINED, reason=reason)
    return _changed(tx, gpu, "gpu.quarantine", reason)


def release(tx: UnitOfWork, identity: str, reason: str) -> GpuRecord:
    """Let a quarantined GPU come back: it is dirty until it is shown clean.

    Raises:
        NotFoundError: `gpu.unknown`.
        ConflictError: `gpu.not_quarantined`, `gpu.in_use`.
    """
    gpu = get(tx, identity)
    if gpu.state is not GpuState.QUARANTINED:
        raise ConflictError("gpu.not_quarantined", f"{identity} is {gpu.state.value}, not quarantined")
    if gpu.instance_id is not None:
        raise ConflictError(
            "gpu.in_use", f"{gpu.instance_id} still has it", hint="delete that instance first"
        )
    move(tx, identity, GpuState.DIRTY, reason=reason)
    readmit(tx, identity)
    return _changed(tx, gpu, "gpu.release", reason)


def readmit(tx: UnitOfWork, identity: str) -> None:
    """Let a dirty GPU into the pool.

    Nobody has cleaned it yet, and its evidence says just that: its agent resets it before each start, and
    the start fails if the reset does.
    """
    for state in (GpuState.SANITISING, GpuState.VERIFYING):
        move(tx, identity, state)
    tenancy = int(tx.scalar(select(_TABLE.c.tenancy).where(_TABLE.c.id == identity)))
    move(tx, identity, GpuState.CLEAN, evidence=evidence_of(tx, tenancy, NOT_YET, "before_next_start"))
    tx.wake("scheduler")


def evidence_of(tx: UnitOfWork, tenancy: int, kind: str, when: str, **more: Any) -> dict[str, Any]:
    """Return evidence of a cleaning as it is kept.

    Args:
        kind: DESIGN §4's class, as the agent said it; `NOT_YET` where nothing was done.
        when: `after_release`, `before_start`, or `before_next_start`: what is still to come.
        more: `method`, and `count`: the agent's own number of the exposure.
    """
    return {"class": kind, "when": when, "tenancy": tenancy, "at_ms": tx.now_ms, **more}


def _changed(tx: UnitOfWork, gpu: GpuRecord, kind: str, reason: str) -> GpuRecord:
    tx.execute(update(_HOSTS).where(_HOSTS.c.id == gpu.host_id).values(generation=_HOSTS.c.generation + 1))
    tx.record(kind, ("gpu", gpu.id), tenant=None, details={"reason": reason, "was": gpu.state.value})
    return get(tx, gpu.id)
