"""Hosts and GPUs as the controller knows them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.model.evidence import Status
from orchestrator.model.states import GpuState, HostState


@dataclass(frozen=True)
class FleetHost:
    """One host.

    Args:
        generation: raised by each claim and release: the scheduler's compare-and-swap.
        revision: raised by each change of its assignment.
        reason: why an operator took it out.
        error: an error's JSON form: what is wrong and what to do; it takes nothing new meanwhile.
        strays: things on it with our marks that the database does not know there: `kind` and `id` of each.
        drain: `operation_id`, `policy` and `deadline_ms` of the drain that is under way; None when none is.
        evacuation_id: the operation that rebuilds its instances elsewhere; None when none does.
        heard_ms: when its agent was heard last, to the minute.
        evidence: `verdicts` on the host as a whole as it reported them last, as JSON, and `changed_ms`, since
            when they read so; None until it reported.
        doctor: what its doctor said last, in short: `checked_ms`, `changed_ms`, `agent_version`, `accepted`,
            ids of must checks in `failed` and `unknown`, of others in `warned`, and `counts` by verdict; None
            until an agent with a doctor spoke.
        doctor_asked_ms: when an operator asked for the doctor to look at once; None when nobody waits.
        cordoned_by: `operator` or `doctor` while it is cordoned; the doctor lifts only its own cordon.
    """

    id: str
    name: str
    state: HostState
    generation: int
    revision: int
    applied_epoch: int
    applied_revision: int
    boot_id: str
    agent_version: str
    reason: str
    disk_gib: int
    used_disk_gib: int
    created_ms: int
    reported_ms: int | None
    heard_ms: int | None = None
    error: Mapping[str, Any] | None = None
    strays: tuple[Mapping[str, Any], ...] = ()
    drain: Mapping[str, Any] | None = None
    evidence: Mapping[str, Any] | None = None
    doctor: Mapping[str, Any] | None = None
    doctor_asked_ms: int | None = None
    cordoned_by: str = ""
    evacuation_id: str | None = None

    @property
    def failed_checks(self) -> tuple[Mapping[str, Any], ...]:
        """Its verdicts that are not PASS; UNKNOWN is not."""
        verdicts = (self.evidence or {}).get("verdicts", ())
        return tuple(each for each in verdicts if each["status"] != Status.PASS)


@dataclass(frozen=True)
class StaleInstance:
    """What a host may still run of an instance that lives elsewhere by now.

    It keeps what it holds there (CPUs, memory, GPUs) until the host says that it is gone.

    Args:
        generation: the last one that the host can have heard of.
        placement: `model.placement.Placement.as_dict()` of then.
        volume_id, volume_generation, disk_gib: its boot volume of then; None, 0 and 0 when none was written.
    """

    id: str
    host_id: str
    instance_id: str
    tenant_id: str
    generation: int
    placement: Mapping[str, Any]
    page_size_kib: int
    volume_id: str | None
    volume_generation: int
    disk_gib: int
    created_ms: int


@dataclass(frozen=True)
class GpuRecord:
    """One GPU of the pool; identity is slot, ids and serial.

    Args:
        tenancy: number of the tenant life it is in; evidence of `clean` names it.
        evidence: what showed it clean last, as JSON.
    """

    id: str
    host_id: str
    address: str
    vendor: str
    device: str
    serial: str
    node: int
    state: GpuState
    tenancy: int
    tenant_id: str | None
    instance_id: str | None
    evidence: Mapping[str, Any] | None
    reason: str
    generation: int
    created_ms: int
