"""What agents report becomes state: level-triggered, so that any report may come twice, late or not at all.

Only changes are written. A report about an older generation than the one wanted now says nothing about the
present and is left aside. Called by the agents' API with a host's identity from its certificate.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from sqlalchemy import bindparam, select, update

from orchestrator.controller import (
    cleaning,
    deployment,
    doctor,
    generations,
    host_errors,
    inventory,
    operations,
    release,
    stale,
    strays,
)
from orchestrator.controller.caller import unknown
from orchestrator.controller.instances import new_revision
from orchestrator.model.deployment import Deployment
from orchestrator.model.errors import BulkheadError, FencedError
from orchestrator.model.fleet import FleetHost
from orchestrator.model.host import HostFacts
from orchestrator.model.instance import InstanceRecord
from orchestrator.model.report import AbsentReport, HostReport, InstanceReport, Phase
from orchestrator.model.states import Desired, HostState, InstanceState, VolumeState, may_become
from orchestrator.model.volume import VolumeRecord
from orchestrator.store.nouns import HOSTS, INSTANCES, VOLUMES
from orchestrator.store.rows import PLATFORM
from orchestrator.store.tables.fleet import HostRow, RemovalRow
from orchestrator.store.tables.instances import InstanceRow
from orchestrator.store.tables.volumes import VolumeRow
from orchestrator.store.unit_of_work import UnitOfWork, table_of

_HOSTS, _INSTANCES, _REMOVALS = table_of(HostRow), table_of(InstanceRow), table_of(RemovalRow)
_VOLUMES = table_of(VolumeRow)
#: What every report asks and most change; written once.
_HELD = INSTANCES.wanting(PLATFORM, _INSTANCES.c.host_id == bindparam("host"))
_HOST = update(_HOSTS).where(_HOSTS.c.id == bindparam("host"))
_INSTANCE = update(_INSTANCES).where(
    _INSTANCES.c.id == bindparam("instance"), _INSTANCES.c.generation == bindparam("seen")
)
_IN_USE = (
    update(_VOLUMES)
    .where(_VOLUMES.c.instance_id == bindparam("instance"), _VOLUMES.c.state == VolumeState.CREATING)
    .values(state=VolumeState.IN_USE)
)

#: So many failures in a row, and an operator should look.
MAX_FAILURES = 5


@dataclasses.dataclass(frozen=True)
class Said:
    """One report as the wire brought it, parsed.

    Args:
        facts: what the probe read, when it changed since the last report; None otherwise.
        report: what came of the last assignment; None when it was refused whole.
        refusal: the error's JSON form, when the agent refused the assignment.
    """

    boot_id: str
    agent_version: str
    facts: HostFacts | None
    report: HostReport | None
    refusal: Mapping[str, Any] | None


def received(tx: UnitOfWork, host_id: str, said: Said) -> None:
    """Take in one report of one host.

    Raises:
        NotFoundError: `host.unknown`.
        FencedError: `report.foreign`: it speaks of another deployment, host or a future revision.
    """
    host = HOSTS.get(tx, PLATFORM, host_id, lock=True)
    if host is None:
        raise unknown("host", host_id)
    _host(tx, host, said)
    if said.facts is not None:
        inventory.take(tx, host, said.facts)
    if said.refusal is not None:
        host_errors.tell(tx, host, host_errors.refused(said.refusal))
    if said.report is not None:
        ours = deployment.get(tx)
        _refuse_foreign(ours, host, said.report)
        _applied(tx, host, said.report, ours)
        unknown_there = strays.found(tx, host, said.report.strays)
        _checked(tx, host, said.report)
        # What may leak between tenants comes before what is only not ours.
        failed = host_errors.fails_checks(said.report.verdicts)
        left = stale.of_host(tx, host.id)
        host_errors.tell(
            tx, host, failed or host_errors.holds_stale(left) or host_errors.runs_strays(unknown_there)
        )


def left_out(tx: UnitOfWork, host_id: str, failed: Mapping[str, BulkheadError]) -> None:
    """Say of a host's instances why they could not be put into its assignment; each is told once."""
    for instance in INSTANCES.where(
        tx, PLATFORM, _INSTANCES.c.host_id == host_id, _INSTANCES.c.id.in_(sorted(failed))
    ):
        _failed(tx, instance, failed[instance.id].as_dict())


def _host(tx: UnitOfWork, host: FleetHost, said: Said) -> None:
    changes: dict[str, Any] = {}
    if said.boot_id != host.boot_id:
        changes["boot_id"] = said.boot_id
    if said.agent_version != host.agent_version:
        changes["agent_version"] = said.agent_version
    if host.state in (HostState.ENROLLING, HostState.UNREACHABLE) and said.refusal is None:
        changes |= doctor.on_arrival(host.doctor, first=host.state is HostState.ENROLLING)
    if not changes:
        return
    tx.execute(
        update(_HOSTS)
        .where(_HOSTS.c.id == host.id)
        .values(**changes, generation=_HOSTS.c.generation + 1, reported_ms=tx.now_ms)
    )
    told = {name: str(value) for name, value in changes.items()}
    tx.record("host.reported", ("host", host.id), tenant=None, stage="outcome", details=told)
    tx.wake("scheduler")


def _refuse_foreign(ours: Deployment, host: FleetHost, report: HostReport) -> None:
    if (report.deployment, report.host, report.epoch) != (ours.id, host.id, ours.epoch):
        raise FencedError(
            "report.foreign",
            f"the report speaks of {report.deployment} {report.host} epoch {report.epoch}, "
            f"this is {ours.id} {host.id} epoch {ours.epoch}",
        )
    if report.revision > host.revision:
        raise FencedError("report.foreign", f"revision {report.revision} was never given out")


def _applied(tx: UnitOfWork, host: FleetHost, report: HostReport, ours: Deployment) -> None:
    held = {each.id: each for each in INSTANCES.found(tx, _HELD, {"host": host.id})}
    for each in report.instances:
        instance = held.get(each.instance)
        if instance is not None and each.generation == instance.generation:
            _instance(tx, host, instance, each, ours)
    _removed(tx, host, held, report.absent, ours)
    cleaning.taken_in(tx, host, report)
    if (report.epoch, report.revision) > (host.applied_epoch, host.applied_revision):
        # What an agent has applied is in its own report; nothing that an auditor asks about changes.
        tx.note(
            _HOST,
            {
                "host": host.id,
                "applied_epoch": report.epoch,
                "applied_revision": report.revision,
                "reported_ms": tx.now_ms,
            },
        )


def _checked(tx: UnitOfWork, host: FleetHost, report: HostReport) -> None:
    """Keep what the host as a whole was found to be, when that is news."""
    verdicts = [dict(vars(each)) for each in report.verdicts]
    before = None if host.evidence is None else host.evidence["verdicts"]
    if before == verdicts:
        return
    kept, digest = {"verdicts": verdicts, "changed_ms": tx.now_ms}, _digest({"verdicts": verdicts})
    tx.execute(update(_HOSTS).where(_HOSTS.c.id == host.id).values(evidence=kept))
    failed = dataclasses.replace(host, evidence=kept).failed_checks
    tx.record(
        "host.checked",
        ("host", host.id),
        tenant=None,
        stage="outcome",
        outcome="failed" if failed else "ok",
        details={"checks": len(verdicts), "failed": len(failed), "evidence_sha256": digest},
    )


def _instance(
    tx: UnitOfWork, host: FleetHost, instance: InstanceRecord, seen: InstanceReport, ours: Deployment
) -> None:
    if seen.phase is Phase.ERROR and generations.was_removed(ours, seen):
        if not instance.gone:
            _failed(tx, instance, generations.lost(tx, instance, seen))
    elif seen.phase is Phase.ERROR and not generations.adopted(tx, ours, instance, seen):
        # While agents only look, nobody tries again: what is wrong is for people to see.
        error = dict(seen.error or {})
        _failed(tx, instance, {**error, "retryable": False} if ours.observe_only else error)
    elif seen.phase is Phase.RUNNING and instance.desired is Desired.RUNNING:
        _became(tx, instance, InstanceState.RUNNING, seen)
    elif seen.phase is Phase.STOPPED and instance.desired is Desired.STOPPED:
        _became(tx, instance, InstanceState.STOPPED, seen)
        _restart(tx, host, instance)


def _became(tx: UnitOfWork, instance: InstanceRecord, state: InstanceState, seen: InstanceReport) -> None:
    evidence = _evidence(seen)
    changed = instance.state is not state
    if not changed and instance.error is None and instance.evidence == evidence:
        return
    if not may_become(instance.state, state):
        return
    tx.execute(
        _INSTANCE,
        {
            "instance": instance.id,
            "seen": instance.generation,
            "state": state,
            "evidence": evidence,
            "error": None,
            "failures": 0,
            "updated_ms": tx.now_ms,
        },
    )
    if changed and state is InstanceState.RUNNING:
        tx.execute(_IN_USE, {"instance": instance.id})
    operations.advance(tx, instance.operation_id, state.value)
    tx.record(
        f"instance.{state.value}",
        ("instance", instance.id),
        tenant=instance.tenant_id,
        stage="outcome",
        details={"generation": instance.generation, "evidence_sha256": _digest(evidence)},
    )


def _restart(tx: UnitOfWork, host: FleetHost, instance: InstanceRecord) -> None:
    """What was stopped for a restart is wanted again."""
    operation = tx.first(
        select(operations.TABLE.c.kind, operations.TABLE.c.state).where(
            operations.TABLE.c.id == (instance.operation_id or "")
        )
    )
    if operation is None or operation.kind != "instance.restart" or operation.state != "running":
        return
    tx.execute(
        update(_INSTANCES)
        .where(_INSTANCES.c.id == instance.id, _INSTANCES.c.generation == instance.generation)
        .values(
            state=InstanceState.STARTING,
            desired=Desired.RUNNING,
            generation=instance.generation + 1,
            updated_ms=tx.now_ms,
        )
    )
    tx.record("instance.start", ("instance", instance.id), tenant=instance.tenant_id)
    new_revision(tx, host.id)


def _failed(tx: UnitOfWork, instance: InstanceRecord, error: dict[str, Any]) -> None:
    same = instance.error is not None and instance.error.get("code") == error.get("code")
    settled = instance.state in (InstanceState.ERROR, InstanceState.NEEDS_ATTENTION)
    if same and settled:
        return
    failures = instance.failures + 1
    retryable = bool(error.get("retryable")) and failures < MAX_FAILURES
    state = instance.state
    if not retryable:
        attention = instance.state is InstanceState.RUNNING or failures >= MAX_FAILURES
        state = InstanceState.NEEDS_ATTENTION if attention else InstanceState.ERROR
        if not may_become(instance.state, state):
            state = instance.state
    tx.execute(
        update(_INSTANCES)
        .where(_INSTANCES.c.id == instance.id, _INSTANCES.c.generation == instance.generation)
        .values(state=state, error=error, failures=failures, updated_ms=tx.now_ms)
    )
    if not retryable:
        operations.fail(tx, instance.operation_id, error)
    tx.record(
        "instance.failed",
        ("instance", instance.id),
        tenant=instance.tenant_id,
        stage="outcome",
        outcome="failed",
        details={"code": str(error.get("code", "")), "failures": failures, "state": state.value},
    )


def _removed(
    tx: UnitOfWork,
    host: FleetHost,
    held: Mapping[str, InstanceRecord],
    absent: tuple[AbsentReport, ...],
    ours: Deployment,
) -> None:
    _done(tx, host, {each.id for each in absent if each.phase is Phase.ABSENT})
    for each in absent:
        adopted = each.phase is Phase.ERROR and generations.adopted_removal(tx, ours, host, each)
        if each.phase is Phase.ERROR and each.id in held and not adopted:
            _failed(tx, held[each.id], dict(each.error or {}))
        elif each.phase is Phase.ERROR and each.kind == "volume":
            volume = _being_erased(tx, host, each.id)
            if volume is not None:
                release.cannot_erase(tx, volume, dict(each.error or {}))
    waiting = [each for each in held.values() if each.state is InstanceState.DELETING]
    for instance in waiting:
        _release_if_gone(tx, instance)


def _done(tx: UnitOfWork, host: FleetHost, gone: set[str]) -> None:
    """End the orders that a host has followed; what another host has is not this one's to call gone."""
    mine = (
        _REMOVALS.c.host_id == host.id,
        _REMOVALS.c.subject_id.in_(gone),
        _REMOVALS.c.done_ms.is_(None),
    )
    ended = tx.all(select(_REMOVALS).where(*mine).order_by(_REMOVALS.c.id)) if gone else ()
    if not ended:
        return
    tx.execute(update(_REMOVALS).where(*mine).values(done_ms=tx.now_ms))
    # They leave the assignment one by one, and no revision is given out with two contents.
    new_revision(tx, host.id)
    for row in ended:
        tx.record(
            f"{row.kind}.removed",
            (row.kind, row.subject_id),
            tenant=row.tenant_id,
            stage="outcome",
            details={"host": host.id, "generation": row.generation},
        )
        if row.kind == "volume":
            _volume_gone(tx, host, row.subject_id)
        elif row.kind == "instance":
            stale.gone(tx, host.id, row.subject_id, row.generation)


def _release_if_gone(tx: UnitOfWork, instance: InstanceRecord) -> None:
    boot = select(_VOLUMES.c.id).where(_VOLUMES.c.instance_id == instance.id, _VOLUMES.c.boot)
    open_ = select(_REMOVALS.c.id).where(
        # What another host still has of it is from before it was built anew, and holds nothing up.
        _REMOVALS.c.host_id == instance.host_id,
        (_REMOVALS.c.subject_id == instance.id) | _REMOVALS.c.subject_id.in_(boot),
        _REMOVALS.c.done_ms.is_(None),
    )
    if tx.first(open_) is None:
        release.instance(tx, instance)


def _volume_gone(tx: UnitOfWork, host: FleetHost, subject: str) -> None:
    volume = _being_erased(tx, host, subject)
    if volume is not None:
        release.standalone_volume(tx, volume)
    release.lost_volume(tx, host.id, subject)


def _being_erased(tx: UnitOfWork, host: FleetHost, subject: str) -> VolumeRecord | None:
    """A volume of its own that this host is to erase."""
    volume = VOLUMES.get(tx, PLATFORM, subject)
    if volume is None or volume.boot or volume.host_id != host.id:
        return None
    return volume if volume.state is VolumeState.DELETING else None


def _evidence(seen: InstanceReport) -> dict[str, Any]:
    # Flat values: `dataclasses.asdict` would copy each string, for every instance of every report.
    return {
        "verdicts": [dict(vars(each)) for each in seen.verdicts],
        "resets": [dict(vars(each)) for each in seen.resets],
        "pid": seen.pid,
        "uid": seen.uid,
    }


def _digest(evidence: Mapping[str, Any] | None) -> str:
    return hashlib.sha256(json.dumps(evidence, sort_keys=True).encode()).hexdigest()
