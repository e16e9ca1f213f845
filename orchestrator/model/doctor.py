"""What the doctor says of a host: one finding per check and subject, and what a host may do with them.

Values and pure answers; `hostprep.doctor` makes findings, the agent sends them, the controller keeps them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from orchestrator.model.errors import InvalidInputError
from orchestrator.model.evidence import Status

#: Accepts every failing check.
ALL = "*"
#: Ids in one reason.
_SHOWN = 6
#: Every check that there is.
CHECKS = frozenset(
    [
        *(f"K{number}" for number in range(1, 11)),
        *("L1", "L2", "L3", "L4", "L5", "L6", "L8", "N1", "N2", "S1", "S2", "S3"),
        *("gpu.bars", "gpu.driver", "gpu.fabric", "gpu.framebuffer", "gpu.numa", "gpu.pool", "gpu.power"),
        *(
            "cpu.host",
            "mod.loaded",
            "sys.units",
            "doctor.ran",
            "gpu.window",
            "kvm.loaded",
            "mem.hugepages",
            "mem.memlock",
            "mem.node",
            "ver.libvirt",
            "ver.qemu",
        ),
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
    #: An operator lives with it: it did not pass, and does not count.
    accepted: bool = False

    @property
    def counts(self) -> bool:
        """Whether it is a must check that nobody has accepted."""
        return self.severity is Severity.MUST and not self.accepted

    @property
    def blocks(self) -> bool:
        """Whether the host should take nothing new because of it."""
        return self.counts and self.status is Status.FAIL


def blocking(findings: Iterable[Finding]) -> tuple[str, ...]:
    """Return the ids of must checks that fail, each once and sorted."""
    return tuple(sorted({each.id for each in findings if each.blocks}))


def unanswered(findings: Iterable[Finding]) -> tuple[str, ...]:
    """Return the ids of must checks that nobody could answer, each once and sorted."""
    return tuple(sorted({each.id for each in findings if each.counts and each.status is Status.UNKNOWN}))


def accepting(findings: Iterable[Finding], accepted: frozenset[str]) -> tuple[Finding, ...]:
    """Return the findings with those marked that did not pass and that an operator lives with.

    They keep their severity and their verdict: what was accepted never reads as a pass.
    """
    return tuple(
        replace(each, accepted=True)
        if each.status is not Status.PASS and (ALL in accepted or each.id in accepted)
        else each
        for each in findings
    )


def not_ended(why: str) -> tuple[Finding, ...]:
    """Return the one finding of a doctor that broke or hung: nothing is known, so nothing passes."""
    return (
        Finding(
            "doctor.ran",
            "host",
            Severity.MUST,
            Status.UNKNOWN,
            "every check is asked and answers",
            why,
            "bulkhead agent doctor, on the host, shows where it stops",
        ),
    )


class Standing(StrEnum):
    """What the doctor's last word means for a host's placements."""

    #: Every must check passes or is accepted.
    SOUND = "sound"
    #: None fails, some have no answer.
    UNSURE = "unsure"
    FAILING = "failing"


def standing(failed: Collection[str], unknown: Collection[str]) -> Standing:
    """Judge the ids of must checks that fail, and of those that have no answer."""
    if failed:
        return Standing.FAILING
    return Standing.UNSURE if unknown else Standing.SOUND


def reason_of(failed: Sequence[str], unknown: Sequence[str]) -> str:
    """Say in one line why the doctor takes a host out; empty when it does not."""
    told = [f"{_some(failed)} fail{'s' if len(failed) == 1 else ''}"] if failed else []
    told += [f"{_some(unknown)} unknown"] if unknown else []
    return f"doctor: {', '.join(told)}" if told else ""


def _some(ids: Sequence[str]) -> str:
    return " ".join(ids[:_SHOWN]) + (f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else "")
