"""What the doctor says of a host: one finding per check and subject. Values; `hostprep.doctor` makes them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

from orchestrator.model.errors import InvalidInputError
from orchestrator.model.evidence import Status

#: Accepts every failing check.
ALL = "*"
#: Every check that there is.
CHECKS = frozenset(
    [
        *(f"K{number}" for number in range(1, 11)),
        *("L1", "L2", "L3", "L4", "L5", "L6", "L8", "N1", "N2", "S1", "S2", "S3"),
        *("gpu.bars", "gpu.driver", "gpu.fabric", "gpu.framebuffer", "gpu.numa", "gpu.pool", "gpu.power"),
        *("gpu.window", "kvm.loaded", "mem.hugepages", "mem.memlock", "mem.node", "ver.libvirt", "ver.qemu"),
    ]
)


def check_accepted(ids: Iterable[str]) -> None:
    """Refuse to accept a check that there is not.

    Raises:
        InvalidInputError: `doctor.unknown_check`.
    """
    for each in ids:
        if each != ALL and each not in CHECKS:
            raise InvalidInputError(
                "doctor.unknown_check",
                f"there is no check {each[:32]!r}",
                field="doctor_accepted",
                hint=f"known: {', '.join(sorted(CHECKS))}, or {ALL} for all",
            )


class Severity(StrEnum):
    """What a failing check means."""

    #: Isolation, or every start on this host, hangs on it: the host takes nothing new.
    MUST = "must"
    #: Worth mending; placements go on.
    POLICY = "policy"


@dataclass(frozen=True)
class Finding:
    """One answered question about a host. UNKNOWN is never PASS."""

    #: `K1`, `gpu.bars`, ...; docs/doctor.md lists them.
    id: str
    #: `host`, a PCI address, a node, an instance's process.
    subject: str
    severity: Severity
    status: Status
    expected: str
    read: str
    #: The command or the step that mends it; empty for what passed.
    mend: str

    @property
    def blocks(self) -> bool:
        """Whether the host should take nothing new because of it."""
        return self.severity is Severity.MUST and self.status is Status.FAIL


def blocking(findings: Iterable[Finding]) -> tuple[str, ...]:
    """Return the ids of must checks that fail, each once and sorted."""
    return tuple(sorted({each.id for each in findings if each.blocks}))


def accepting(findings: Iterable[Finding], accepted: frozenset[str]) -> tuple[Finding, ...]:
    """Return the findings with the accepted checks as policy: they are told, and block nothing."""
    return tuple(
        replace(each, severity=Severity.POLICY) if ALL in accepted or each.id in accepted else each
        for each in findings
    )
