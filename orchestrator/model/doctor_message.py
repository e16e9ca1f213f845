"""The doctor's findings on their way to the controller: a message of its own, with a version and an end.

Shape and bounds only; what follows from a finding `doctor` says, what becomes of a host the controller. A
controller one version back answers 404 to it, and an agent lives with that. The agents' API and the agent's
link call it; pure.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from orchestrator.model.doctor import Finding, Severity
from orchestrator.model.evidence import Status
from orchestrator.model.protocol import PROTOCOL_VERSION, BootId, Version, parse_message
from orchestrator.model.wire import Message, Short, Text

DOCTOR_VERSION = 1
#: Nine findings for each GPU, four for each instance, some forty for the host: a tenth of this at most.
MAX_DOCTOR_BYTES = 1024 * 1024
MAX_FINDINGS = 4096
#: Ids that an operator may accept; there are fewer checks.
MAX_ACCEPTED = 256
_MAX_TEXT, _MAX_SUBJECT = 1024, 128

CheckId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_.]{0,31}$")]
AcceptedId = Annotated[str, StringConstraints(pattern=r"^(\*|[A-Za-z][A-Za-z0-9_.]{0,31})$")]


class _Finding(Message):
    id: CheckId
    subject: Short
    severity: Severity
    status: Status
    expected: Text
    read: Text
    mend: Text
    accepted: bool

    @model_validator(mode="after")
    def _honest(self) -> Self:
        if self.accepted and self.status is Status.PASS:
            raise ValueError("what passes has nothing to accept")
        return self

    def value(self) -> Finding:
        return Finding(**{name: getattr(self, name) for name in type(self).model_fields})


class _DoctorMessage(Message):
    version: Literal[1]
    boot_id: BootId
    agent_version: Version
    accepted: tuple[AcceptedId, ...] = Field(max_length=MAX_ACCEPTED)
    #: Findings that were left out because there is an end to everything; all of them passed.
    passes_left_out: Annotated[int, Field(ge=0, lt=2**31)] = 0
    findings: tuple[_Finding, ...] = Field(min_length=1, max_length=MAX_FINDINGS)

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        keys = [(each.id, each.subject) for each in self.findings]
        if len(set(keys)) != len(keys):
            raise ValueError("a check stands there twice for one subject")
        return self


@dataclass(frozen=True)
class DoctorReport:
    """What the doctor of one host found, as a value.

    Args:
        accepted: what the agent's settings accept, sorted; `*` is everything.
        passes_left_out: how many passing findings the message had no room for.
    """

    boot_id: str
    agent_version: str
    accepted: tuple[str, ...]
    findings: tuple[Finding, ...]
    passes_left_out: int = 0

    def encode(self) -> bytes:
        """Write it for the wire. Where there is too much, findings that passed are left out, the last first.

        Cost: linear; twice that where something is left out.
        """
        rows = [_row(each) for each in self.findings]
        sizes = [len(json.dumps(row, separators=(",", ":"))) + 1 for row in rows]
        room, count, left_out = MAX_DOCTOR_BYTES - 64 * 1024, len(rows), 0
        total = sum(sizes)
        for index in range(len(rows) - 1, -1, -1):
            if total <= room and count <= MAX_FINDINGS:
                break
            if self.findings[index].status is Status.PASS and count > 1:
                total, count, left_out = total - sizes[index], count - 1, left_out + 1
                rows[index] = {}
        body = {
            "version": DOCTOR_VERSION,
            "boot_id": self.boot_id,
            "agent_version": self.agent_version,
            "accepted": list(self.accepted),
            "passes_left_out": self.passes_left_out + left_out,
            "findings": [row for row in rows if row],
        }
        return json.dumps(body, separators=(",", ":")).encode()


def parse_doctor(raw: bytes, peer: int = PROTOCOL_VERSION) -> DoctorReport:
    """Read the findings of a host that nobody trusts. Cost: linear in the bytes.

    Args:
        peer: the version that its agent speaks.

    Raises:
        InvalidInputError: `protocol.too_large`, `protocol.bad_message`.
    """
    message = parse_message(_DoctorMessage, raw, MAX_DOCTOR_BYTES, peer=peer)
    return DoctorReport(
        boot_id=message.boot_id,
        agent_version=message.agent_version,
        accepted=message.accepted,
        findings=tuple(each.value() for each in message.findings),
        passes_left_out=message.passes_left_out,
    )


def _row(finding: Finding) -> dict[str, Any]:
    row = {name: _cut(value, _MAX_TEXT) for name, value in dataclasses.asdict(finding).items()}
    return {**row, "subject": _cut(finding.subject, _MAX_SUBJECT)}


def _cut(value: Any, length: int) -> Any:
    if not isinstance(value, str):
        return value
    text = value if len(value) <= length else value[: length - 3] + "..."
    return str(text).encode("utf-8", "replace").decode()
