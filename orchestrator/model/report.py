"""What an agent reports: what became of each instance, the evidence, what it found that nobody ordered."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from orchestrator.model.evidence import Status, Verdict
from orchestrator.model.observed import ResetEvidence


class Phase(StrEnum):
    """What an instance or an absent thing came to."""

    RUNNING = "running"
    STOPPED = "stopped"
    ABSENT = "absent"
    #: Ordered away but only seen once so far; it goes on the next sighting.
    SIGHTED = "sighted"
    ERROR = "error"


@dataclass(frozen=True)
class StepRecord:
    """One effect on the host."""

    subject: str
    step: str
    duration_s: float


@dataclass(frozen=True)
class InstanceReport:
    """One instance after the agent looked at it."""

    instance: str
    tenant: str
    name: str
    generation: int
    phase: Phase
    error: dict[str, object] | None = None
    pid: int | None = None
    uid: int | None = None
    verdicts: tuple[Verdict, ...] = ()
    #: What cleaned its devices before they were exposed to it. Empty unless it runs.
    resets: tuple[ResetEvidence, ...] = ()
    #: Path of the guest channel's socket on the host, for asking the guest.
    guest_socket: str | None = None
    #: What the host has is of this generation, or was removed up to it: why an older order was refused.
    held_generation: int | None = None


@dataclass(frozen=True)
class AbsentReport:
    """One removal order after the agent followed it."""

    kind: str
    id: str
    phase: Phase
    error: dict[str, object] | None = None
    #: What is there is of this generation: why an older order was refused.
    held_generation: int | None = None


@dataclass(frozen=True)
class Stray:
    """Something that carries our marks and that no assignment named."""

    kind: str
    id: str
    sightings: int


@dataclass(frozen=True)
class DeviceReport:
    """One device of the pool, as the agent's journal has it.

    Args:
        state: `dirty`, `clean` or `exposed`.
        tenancy: the agent's own count of its exposures.
        instance: whom it is exposed to, or was and could not be cleaned since.
        evidence_class: of the last cleaning since it was dirty; empty for none.
        method: how that was done (`bus`, `flr`, ...).
    """

    address: str
    state: str
    tenancy: int
    instance: str | None
    evidence_class: str
    method: str


@dataclass(frozen=True)
class HostReport:
    """One application of an assignment."""

    deployment: str
    host: str
    epoch: int
    revision: int
    instances: tuple[InstanceReport, ...]
    absent: tuple[AbsentReport, ...]
    strays: tuple[Stray, ...]
    #: `FlowProgram.digest()` of what the switch is to run.
    flows_digest: str
    #: Whether any effect on the host was needed.
    changed: bool
    #: Checks of the host as a whole.
    verdicts: tuple[Verdict, ...] = ()
    steps: tuple[StepRecord, ...] = field(default=())
    #: The whole application, effects and our own time.
    duration_s: float = 0.0
    #: The pool after it.
    devices: tuple[DeviceReport, ...] = ()

    @property
    def ok(self) -> bool:
        """Everything is as ordered: no error, no check failed, no removal waiting for its second sighting."""
        bad = (Phase.ERROR, Phase.SIGHTED)
        phases = [r.phase for r in self.instances] + [r.phase for r in self.absent]
        return not any(phase in bad for phase in phases) and all(
            v.status is Status.PASS for v in self.verdicts
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {**dataclasses.asdict(self), "ok": self.ok}
