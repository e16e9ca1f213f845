"""Hosts and GPUs, for the platform's people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from api.schemas.common import ErrorOut, In, Name, Out, Reason, Reference, Whole, at, maybe_at
from orchestrator.controller.doctor import Kept
from orchestrator.controller.hosts import JoinToken
from orchestrator.model.fleet import FleetHost, GpuRecord, StaleInstance
from orchestrator.model.states import HostState


class HostIn(In):
    """A host to be let in; `disk_gib` is what tenants' volumes may take of it."""

    name: Name
    disk_gib: Whole = Field(ge=0, le=10**6)


class FenceIn(In):
    """Why a host is shut out. `powered_off` says that somebody saw to it that the machine is off.

    Only then can its instances be rebuilt elsewhere without running twice.
    """

    reason: Reason
    powered_off: Literal[True]


class DrainIn(In):
    """How a host is drained: `each` as each instance says (`on_drain`), `stop` stops all, `wait` stops none.

    After `deadline_s` seconds the operation fails with what still runs, and the host stays draining.
    """

    reason: Reason
    policy: Annotated[str, StringConstraints(pattern=r"^(each|stop|wait)$")] = "each"
    deadline_s: Whole = Field(default=3600, ge=1, le=30 * 86_400)


class DrainOut(Out):
    """A drain that is under way."""

    operation_id: str
    policy: str
    deadline_at: str
    overdue: bool


class RemoveHostIn(In):
    """Why a host goes for good. `lost` gives up the volumes on it, and what it may still run.

    Otherwise a host that still has any of that is not removed.
    """

    reason: Reason
    lost: bool = False


class JoinTokenOut(Out):
    """A join token just made. `join_token` is null when the same call was answered before."""

    host_id: str
    name: str
    join_token: str | None
    join_token_expires_at: str | None

    @classmethod
    def made(cls, host: FleetHost, shown: str | None, token: JoinToken | None) -> JoinTokenOut:
        """From the host and the token."""
        expires = at(token.expires_ms) if token is not None else None
        return cls(host_id=host.id, name=host.name, join_token=shown, join_token_expires_at=expires)


class RemoveStrayIn(In):
    """One stray that a host reported, and why it goes for good."""

    kind: Annotated[str, StringConstraints(pattern=r"^(instance|volume)$")]
    id: Reference
    reason: Reason


class StrayOut(Out):
    """Something on a host with our marks that the database does not know there."""

    kind: str
    id: str


class DoctorOut(Out):
    """What a host's doctor said last, in short.

    Ids of must checks stand in `failed` and `unknown` (no answer; never a pass), of others that did not pass
    in `warned`, and of those that did not pass and that the host's operator accepted in `lived_with`.
    `accepted` is what its agent's settings accept; `*` is everything.
    """

    checked_at: str
    changed_at: str
    agent_version: str
    failed: list[str]
    unknown: list[str]
    warned: list[str]
    lived_with: list[str]
    accepted: list[str]
    counts: dict[str, int]


class HostOut(Out):
    """A host. `cordoned_by` is `operator` or `doctor` while it is cordoned; `doctor` null until it spoke."""

    id: str
    name: str
    state: str
    reason: str
    generation: int
    revision: int
    applied_epoch: int
    applied_revision: int
    boot_id: str
    agent_version: str
    disk_gib: int
    used_disk_gib: int
    error: ErrorOut | None
    failed_checks: int | None
    doctor: DoctorOut | None
    cordoned_by: str | None
    drain: DrainOut | None
    evacuation_id: str | None
    strays: list[StrayOut]
    created_at: str
    reported_at: str | None
    heard_at: str | None

    @classmethod
    def of(cls, host: FleetHost) -> HostOut:
        """From its value."""
        return cls(**_host(host))


class StaleOut(Out):
    """An instance that was rebuilt elsewhere, and that this host may still run, in a generation up to this.

    What it holds here (CPUs, memory, GPUs) is nobody else's until the host says that it is gone.
    """

    instance_id: str
    tenant_id: str
    generation: int
    gpu_ids: list[str]
    since: str

    @classmethod
    def made(cls, left: StaleInstance) -> StaleOut:
        """From its value."""
        return cls(
            instance_id=left.instance_id,
            tenant_id=left.tenant_id,
            generation=left.generation,
            gpu_ids=[each["id"] for each in left.placement.get("devices", ())],
            since=at(left.created_ms),
        )


class HostDetailOut(HostOut):
    """A host with what its agent's probe read last, and what it may still run that lives elsewhere by now."""

    certificate_expires_at: str | None
    stale: list[StaleOut]
    facts: dict[str, Any] | None

    @classmethod
    def told(
        cls,
        host: FleetHost,
        facts: Mapping[str, Any] | None,
        stale: Sequence[StaleInstance],
        certificate_ends_ms: int | None,
    ) -> HostDetailOut:
        """From its values."""
        return cls(
            **_host(host),
            certificate_expires_at=maybe_at(certificate_ends_ms),
            stale=[StaleOut.made(each) for each in stale],
            facts=None if facts is None else dict(facts),
        )


class HostMadeOut(HostOut):
    """A host just made. `join_token` is shown this once; null when the same call was answered before."""

    join_token: str | None
    join_token_expires_at: str | None

    @classmethod
    def made(cls, host: FleetHost, shown: str | None, token: JoinToken | None) -> HostMadeOut:
        """From its value and the token that lets its agent in."""
        expires = at(token.expires_ms) if token is not None else None
        return cls(**_host(host), join_token=shown, join_token_expires_at=expires)


class HostEvidenceOut(Out):
    """What a host checked of itself as a whole last; nulls until it reported.

    `changed_at` is since when the verdicts read so; a host that is heard (`heard_at`) goes on checking.
    """

    host_id: str
    applied_epoch: int
    applied_revision: int
    changed_at: str | None
    heard_at: str | None
    verdicts: list[dict[str, Any]] | None

    @classmethod
    def of(cls, host: FleetHost) -> HostEvidenceOut:
        """From its value."""
        found: Mapping[str, Any] = host.evidence or {}
        return cls(
            host_id=host.id,
            applied_epoch=host.applied_epoch,
            applied_revision=host.applied_revision,
            changed_at=maybe_at(found.get("changed_ms")),
            heard_at=maybe_at(host.heard_ms),
            verdicts=found.get("verdicts"),
        )


class FindingOut(Out):
    """One finding of a host's doctor; an `accepted` one did not pass, and its operator lives with it."""

    id: str
    subject: str
    severity: str
    status: str
    accepted: bool
    expected: str
    read: str
    mend: str


class HostDoctorOut(Out):
    """Everything that a host's doctor found last; nulls until it spoke.

    `asked_at` is set while somebody waits for it to look again.
    """

    host_id: str
    host_name: str
    boot_id: str | None
    asked_at: str | None
    summary: DoctorOut | None
    passes_left_out: int
    findings: list[FindingOut] | None

    @classmethod
    def of(cls, host: FleetHost, kept: Kept | None) -> HostDoctorOut:
        """From its values."""
        return cls(
            host_id=host.id,
            host_name=host.name,
            boot_id=None if kept is None else kept.boot_id,
            asked_at=maybe_at(host.doctor_asked_ms),
            summary=None if host.doctor is None else _doctor(host.doctor),
            passes_left_out=0 if kept is None else kept.passes_left_out,
            findings=None if kept is None else [FindingOut(**each) for each in kept.findings],
        )


class GpuOut(Out):
    """A GPU of the pool."""

    id: str
    host_id: str
    address: str
    vendor: str
    device: str
    serial: str
    node: int
    state: str
    tenancy: int
    tenant_id: str | None
    instance_id: str | None
    evidence: dict[str, Any] | None
    reason: str
    generation: int
    created_at: str

    @classmethod
    def of(cls, gpu: GpuRecord) -> GpuOut:
        """From its value."""
        return cls(
            id=gpu.id,
            host_id=gpu.host_id,
            address=gpu.address,
            vendor=gpu.vendor,
            device=gpu.device,
            serial=gpu.serial,
            node=gpu.node,
            state=gpu.state.value,
            tenancy=gpu.tenancy,
            tenant_id=gpu.tenant_id,
            instance_id=gpu.instance_id,
            evidence=None if gpu.evidence is None else dict(gpu.evidence),
            reason=gpu.reason,
            generation=gpu.generation,
            created_at=at(gpu.created_ms),
        )


def _host(host: FleetHost) -> dict[str, Any]:
    return {
        "id": host.id,
        "name": host.name,
        "state": host.state.value,
        "reason": host.reason,
        "generation": host.generation,
        "revision": host.revision,
        "applied_epoch": host.applied_epoch,
        "applied_revision": host.applied_revision,
        "boot_id": host.boot_id,
        "agent_version": host.agent_version,
        "disk_gib": host.disk_gib,
        "used_disk_gib": host.used_disk_gib,
        "error": ErrorOut.of(host.error),
        "failed_checks": None if host.evidence is None else len(host.failed_checks),
        "doctor": None if host.doctor is None else _doctor(host.doctor),
        "cordoned_by": host.cordoned_by or None if host.state is HostState.CORDONED else None,
        "drain": None if host.drain is None else _drain(host.drain),
        "evacuation_id": host.evacuation_id,
        "strays": [StrayOut(kind=each["kind"], id=each["id"]) for each in host.strays],
        "created_at": at(host.created_ms),
        "reported_at": maybe_at(host.reported_ms),
        "heard_at": maybe_at(host.heard_ms),
    }


def _doctor(said: Mapping[str, Any]) -> DoctorOut:
    listed = ("failed", "unknown", "warned", "lived_with", "accepted")
    return DoctorOut(
        checked_at=at(said["checked_ms"]),
        changed_at=at(said["changed_ms"]),
        agent_version=said["agent_version"],
        counts=dict(said["counts"]),
        **{name: list(said[name]) for name in listed},
    )


def _drain(drain: Mapping[str, Any]) -> DrainOut:
    return DrainOut(
        operation_id=drain["operation_id"],
        policy=drain["policy"],
        deadline_at=at(drain["deadline_ms"]),
        overdue=drain["overdue"],
    )
