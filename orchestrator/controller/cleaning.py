"""What was done to a GPU between tenants: written down when its agent says so, and as what it was.

A GPU that an instance gave back is clean when its host's pool shows it so; one that runs has the evidence of
the reset before its start. Where nothing was done yet, the record says that. Called by `reports`.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import bindparam, update

from orchestrator.controller.gpus import NOT_YET, evidence_of, move
from orchestrator.model.fleet import FleetHost, GpuRecord
from orchestrator.model.report import DeviceReport, HostReport
from orchestrator.model.states import GpuState
from orchestrator.store.nouns import GPUS
from orchestrator.store.rows import PLATFORM
from orchestrator.store.tables.fleet import GpuRow
from orchestrator.store.unit_of_work import UnitOfWork, table_of

_TABLE = table_of(GpuRow)
#: Every report asks this; written once.
_CHANGING = GPUS.wanting(
    PLATFORM,
    _TABLE.c.host_id == bindparam("host"),
    _TABLE.c.state.in_((GpuState.SANITISING, GpuState.EXPOSED)),
)


def taken_in(tx: UnitOfWork, host: FleetHost, report: HostReport) -> None:
    """Take in what a report says of the host's pool; a report that was overtaken says nothing any more."""
    if (report.epoch, report.revision) < (host.applied_epoch, host.applied_revision):
        return
    seen = {each.address: each for each in report.devices}
    for gpu in GPUS.found(tx, _CHANGING, {"host": host.id}):
        found = seen.get(gpu.address)
        if gpu.state is GpuState.SANITISING:
            _given_back(tx, gpu, found)
        elif found is not None and found.instance == gpu.instance_id:
            _started(tx, gpu, found)


def _given_back(tx: UnitOfWork, gpu: GpuRecord, found: DeviceReport | None) -> None:
    """The instance that had it is gone from its host."""
    if found is not None and found.instance is not None:
        return
    if found is not None and found.state == "clean" and found.evidence_class:
        evidence = evidence_of(
            tx, gpu.tenancy, found.evidence_class, "after_release", method=found.method, count=found.tenancy
        )
    else:
        # It never came as far as a VM, so that its agent cleaned nothing.
        evidence = evidence_of(tx, gpu.tenancy, NOT_YET, "before_next_start")
    move(tx, gpu.id, GpuState.VERIFYING)
    move(tx, gpu.id, GpuState.CLEAN, evidence=evidence)
    _record(tx, gpu, evidence)
    tx.wake("scheduler")


def _started(tx: UnitOfWork, gpu: GpuRecord, found: DeviceReport) -> None:
    """It was cleaned for the VM that has it now; each start is a cleaning of its own."""
    known = gpu.evidence or {}
    if found.state != "exposed" or not found.evidence_class:
        return
    if (known.get("tenancy"), known.get("when"), known.get("count")) == (
        gpu.tenancy,
        "before_start",
        found.tenancy,
    ):
        return
    evidence = evidence_of(
        tx, gpu.tenancy, found.evidence_class, "before_start", method=found.method, count=found.tenancy
    )
    tx.execute(update(_TABLE).where(_TABLE.c.id == gpu.id).values(evidence=evidence))
    _record(tx, gpu, evidence)


def _record(tx: UnitOfWork, gpu: GpuRecord, evidence: dict[str, Any]) -> None:
    tx.record("gpu.cleaned", ("gpu", gpu.id), tenant=None, stage="outcome", details=evidence)
