"""What a host's doctor found: kept, audited when it changes, and what it means for placements.

A must check that fails takes a ready host out (`cordoned`, by the doctor), and only when every must check
passes or is accepted does the doctor bring it back; a person's cordon is never its to lift. A must check
without an answer is no pass: it lifts nothing, and keeps a host out that comes in for the first time. A host
that was passing is not taken out by it: one program that hangs would take out a fleet. Instances run on in
every case. Called by the agents' API, `reports`, `silence` and `hosts`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from sqlalchemy import select, update

from orchestrator.controller.caller import unknown
from orchestrator.model.doctor import Standing, blocking, reason_of, standing, unanswered
from orchestrator.model.doctor_message import DoctorReport
from orchestrator.model.errors import ConflictError
from orchestrator.model.evidence import Status
from orchestrator.model.fleet import FleetHost
from orchestrator.model.states import HostState
from orchestrator.store.nouns import HOSTS
from orchestrator.store.rows import PLATFORM
from orchestrator.store.tables.fleet import HostDoctorRow, HostRow
from orchestrator.store.unit_of_work import Reader, UnitOfWork, table_of

_HOSTS, _FINDINGS = table_of(HostRow), table_of(HostDoctorRow)
DOCTOR, OPERATOR = "doctor", "operator"
#: Parts of the short form whose change an auditor asks about; the rest is times and texts.
_NEWS = ("agent_version", "accepted", "verdicts_sha256")


@dataclasses.dataclass(frozen=True)
class Kept:
    """Everything that one host's doctor found last."""

    boot_id: str
    findings: tuple[Mapping[str, Any], ...]
    passes_left_out: int


def taken_in(tx: UnitOfWork, host_id: str, report: DoctorReport) -> None:
    """Take in what one host's doctor found.

    Raises:
        NotFoundError: `host.unknown`.
    """
    host = HOSTS.get(tx, PLATFORM, host_id, lock=True)
    if host is None:
        raise unknown("host", host_id)
    told = _in_short(report)
    before = host.doctor or {}
    news = any(before.get(name) != told[name] for name in _NEWS)
    kept = {**told, "checked_ms": tx.now_ms, "changed_ms": tx.now_ms if news else before["changed_ms"]}
    change = update(_HOSTS).where(_HOSTS.c.id == host.id).values(doctor=kept, doctor_asked_ms=None)
    if news:
        tx.execute(change)
        tx.record(
            "host.doctor",
            ("host", host.id),
            tenant=None,
            stage="outcome",
            outcome="failed" if told["failed"] else "ok",
            details={name: told[name] for name in (*_NEWS, "failed", "unknown", "lived_with")},
        )
    else:
        # Looked again, and found the same.
        tx.note(change)
    if host.doctor_asked_ms is not None:
        # Its poll sees that nobody waits any more.
        tx.wake(f"host:{host.id}")
    _keep(tx, host.id, report)
    _follow(tx, host, kept)


def _in_short(report: DoctorReport) -> dict[str, Any]:
    findings = report.findings
    not_passed = sorted(
        (each.id, each.subject, each.status.value, each.accepted)
        for each in findings
        if each.status is not Status.PASS
    )
    failed, without = blocking(findings), unanswered(findings)
    warned = {each.id for each in findings if not each.accepted and each.status is not Status.PASS}
    counts = Counter(each.status.value for each in findings)
    counts[Status.PASS.value] += report.passes_left_out
    return {
        "agent_version": report.agent_version,
        "accepted": sorted(report.accepted),
        "failed": list(failed),
        "unknown": list(without),
        "warned": sorted(warned - {*failed, *without}),
        "lived_with": sorted({each.id for each in findings if each.accepted}),
        "counts": {each.value: counts[each.value] for each in Status},
        "verdicts_sha256": hashlib.sha256(json.dumps(not_passed).encode()).hexdigest(),
    }


def _keep(tx: UnitOfWork, host_id: str, report: DoctorReport) -> None:
    values = {
        "boot_id": report.boot_id,
        "findings": [dataclasses.asdict(each) for each in report.findings],
        "passes_left_out": report.passes_left_out,
    }
    # Its digest stands in the log with the change of the host's row.
    if tx.note(update(_FINDINGS).where(_FINDINGS.c.host_id == host_id).values(**values)).rowcount == 0:
        tx.note(_FINDINGS.insert().values(host_id=host_id, **values))


def last(tx: Reader, host: FleetHost) -> Kept | None:
    """Return every finding of a host's doctor; None before it spoke."""
    row = tx.first(select(_FINDINGS).where(_FINDINGS.c.host_id == host.id))
    if row is None or host.doctor is None:
        return None
    return Kept(row.boot_id, tuple(row.findings), row.passes_left_out)


def standing_of(host: FleetHost) -> Standing | None:
    """Judge what a host's doctor said last; None before it spoke."""
    said = host.doctor
    return None if said is None else standing(said["failed"], said["unknown"])


def moved(state: HostState, cordoned_by: str, found: Standing) -> HostState | None:
    """Return the state that a host has after its doctor spoke; None where that is not the doctor's to say."""
    if state is HostState.READY:
        return HostState.CORDONED if found is Standing.FAILING else HostState.READY
    if state is HostState.CORDONED and cordoned_by == DOCTOR:
        return HostState.READY if found is Standing.SOUND else HostState.CORDONED
    return None


def on_arrival(said: Mapping[str, Any] | None, *, first: bool) -> dict[str, Any]:
    """Return what becomes of a host that is heard: columns of its row.

    Args:
        said: what its doctor said last, in short; None before it spoke (agents before the doctor never do).
        first: it comes in; else it comes back, and was passing before.
    """
    found = Standing.SOUND if said is None else standing(said["failed"], said["unknown"])
    if said is not None and (found is Standing.FAILING or (first and found is Standing.UNSURE)):
        reason = reason_of(said["failed"], said["unknown"])
        return {"state": HostState.CORDONED, "reason": reason, "cordoned_by": DOCTOR}
    return {"state": HostState.READY, "reason": "", "cordoned_by": ""}


def _follow(tx: UnitOfWork, host: FleetHost, said: Mapping[str, Any]) -> None:
    after = moved(host.state, host.cordoned_by, standing(said["failed"], said["unknown"]))
    if after is None:
        return
    reason = reason_of(said["failed"], said["unknown"]) if after is HostState.CORDONED else ""
    if host.state is after and (after is HostState.READY or host.reason == reason):
        return
    by = DOCTOR if after is HostState.CORDONED else ""
    tx.execute(
        update(_HOSTS)
        .where(_HOSTS.c.id == host.id)
        .values(state=after, reason=reason, cordoned_by=by, generation=_HOSTS.c.generation + 1)
    )
    tx.record(
        "host.cordon" if by else "host.uncordon",
        ("host", host.id),
        tenant=None,
        stage="outcome",
        details={"by": DOCTOR, "reason": reason, "was": host.state.value},
    )
    tx.wake("scheduler")


def check_uncordon(host: FleetHost) -> None:
    """Refuse to bring a host back that its doctor would take out again, or that it took out and is unsure of.

    Raises:
        ConflictError: `host.doctor_failed`.
    """
    said, found = host.doctor, standing_of(host)
    if said is None or said["agent_version"] != host.agent_version:
        # An agent of another version spoke, and the one that runs may have no doctor.
        return
    own = host.state is HostState.CORDONED and host.cordoned_by == DOCTOR
    if found is Standing.FAILING or (own and found is Standing.UNSURE):
        raise ConflictError(
            "host.doctor_failed",
            f"{host.name} cannot take instances: {reason_of(said['failed'], said['unknown'])}",
            hint=f"bulkhead host doctor {host.name} tells what mends it; checks to live with go into "
            "doctor_accepted of its agent's settings",
        )


def ask(tx: UnitOfWork, host: FleetHost) -> None:
    """Have a host's doctor look at once: its agent hears it with its next sign of life.

    Raises:
        ConflictError: `host.state`: nobody is there to hear it.
    """
    if host.state in (HostState.ENROLLING, HostState.FENCED, HostState.UNREACHABLE):
        raise ConflictError("host.state", f"{host.name} is {host.state.value}; nobody there hears it")
    tx.execute(update(_HOSTS).where(_HOSTS.c.id == host.id).values(doctor_asked_ms=tx.now_ms))
    tx.record("host.ask_doctor", ("host", host.id), tenant=None)
    tx.wake(f"host:{host.id}")
