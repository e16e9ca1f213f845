"""The agents' protocol, version 1: what an agent and its controller say to each other, and how much of it.

Decides the shape and the bounds of every message; what comes of one is the controller's and the agent's to
say. Bodies are JSON, closed and strict; every request and answer carries its sender's `Bulkhead-Protocol: 1`.
A host is a stranger's machine the moment somebody breaks into it, so nothing that it sends is without an end.
What a report is made of stands in `wire`. The agents' API and the agent's link call it; pure.

Controller and agent work one version apart. A version only adds: fields that its reader may leave aside, and
that have a default where an older sender lacks them. Of a newer sender, fields that are not known here are
left aside; of our own version and an older one, they are refused. An assignment is an order: it is read whole
or refused, so a newer controller writes it as an older agent, whose version its poll tells, reads it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import ConfigDict, Field, StringConstraints, ValidationError, model_validator

from orchestrator.model.assignment import Assignment, Generation
from orchestrator.model.errors import InvalidInputError, NotFoundError
from orchestrator.model.host import HostFacts
from orchestrator.model.ids import DeploymentId, HostId, InstanceId, VolumeId
from orchestrator.model.parsing import MAX_ASSIGNMENT_BYTES, field_path, parse_assignment
from orchestrator.model.report import HostReport
from orchestrator.model.wire import (
    ErrorBody,
    FactsBody,
    Message,
    ReportBody,
    Text,
    error_document,
    facts_document,
    report_document,
)

PROTOCOL_VERSION = 1
_FIRST_VERSION = 1
PROTOCOL_HEADER = "Bulkhead-Protocol"

#: A report of a thousand instances with forty checks each takes about 6 MiB.
MAX_REPORT_BYTES = 16 * 1024 * 1024
#: All other messages: names, a certificate, a list of streams.
MAX_SMALL_BYTES = 64 * 1024
#: `{"assignment": ...}` around the assignment itself.
MAX_ANSWER_BYTES = MAX_ASSIGNMENT_BYTES + 1024
#: The longest that a poll may wait, in seconds: below what middleboxes take for a dead connection.
MAX_WAIT_S = 55
MAX_STREAMS = 64
#: Of a kept console log, at most this much of its end; virtlogd rolls its files at 2 MiB.
MAX_LOG_BYTES = 4 << 20
#: A PEM certificate or request of a P-256 key takes about 1 KiB.
MAX_PEM = 16 * 1024

Pem = Annotated[
    str, StringConstraints(pattern=r"^-----BEGIN [A-Z ]+-----\n[A-Za-z0-9+/=\n -]+$", max_length=MAX_PEM)
]
BootId = Annotated[str, StringConstraints(pattern=r"^[!-~]{1,128}$")]
Version = Annotated[str, StringConstraints(pattern=r"^[0-9A-Za-z.+-]{1,64}$")]
AgentsUrl = Annotated[str, StringConstraints(pattern=r"^https://[^\s/]+/?$", max_length=512)]
RequestId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{0,64}$")]
StreamId = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_]{0,62}$")]
#: base64 text of 32 bytes.
Passphrase = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9+/]{43}=$")]

_ENVELOPE = re.compile(rb'\s*\{\s*"assignment"\s*:(.*)\}\s*', re.DOTALL)

M = TypeVar("M", bound=Message)


class EnrolRequest(Message):
    """An agent's first words, on the public listener: the join token and what it wants signed."""

    token: str = Field(max_length=256, repr=False)
    csr_pem: Pem


class EnrolAnswer(Message):
    """Who the host is from now on, and where its controller listens for it."""

    certificate_pem: Pem
    ca_pem: Pem
    host: HostId
    deployment: DeploymentId
    agents_url: AgentsUrl


class RenewRequest(Message):
    """A request for the next certificate, over a connection that shows the present one."""

    csr_pem: Pem


class RenewAnswer(Message):
    """The next certificate, of the same host and authority."""

    certificate_pem: Pem


class AssignmentAnswer(Message):
    """What one host must run."""

    assignment: Assignment


class Heartbeat(Message):
    """The host lives; kept in memory only."""

    boot_id: BootId


class HeartbeatAnswer(Message):
    """What a controller wants of a host that lives; most are answered with nothing."""

    model_config = ConfigDict(extra="ignore")

    #: Somebody waits for the doctor: examine now, and say what was found even if it is what was said before.
    doctor: bool = False


class KeyRequest(Message):
    """One volume's key, for the assignment that the host has now."""

    volume: VolumeId
    generation: Generation


class KeyAnswer(Message):
    """The volume's passphrase; it exists on the host only between here and the end of a start."""

    passphrase: Passphrase = Field(repr=False)


class StreamOrder(Message):
    """Somebody waits for bytes of one instance: dial `/agent/v1/streams/{id}`."""

    id: StreamId
    kind: Literal["console", "console-log"]
    instance: InstanceId
    #: Of a kept log, this much of its end.
    last_bytes: Annotated[int, Field(ge=1, le=MAX_LOG_BYTES)] = MAX_LOG_BYTES
    #: Of the call that wants it, so that a line of the agent's log can be joined to one of the controller's.
    request_id: RequestId = ""
    #: The listener of the controller that holds the other end, where there are several; None is this one.
    url: AgentsUrl | None = None


class StreamsAnswer(Message):
    """The streams that nobody has dialled yet."""

    streams: tuple[StreamOrder, ...] = Field(max_length=MAX_STREAMS)


class _ReportMessage(Message):
    boot_id: BootId
    agent_version: Version
    facts: FactsBody | None
    report: ReportBody | None
    refusal: ErrorBody | None

    @model_validator(mode="after")
    def _one_outcome(self) -> Self:
        if self.report is not None and self.refusal is not None:
            raise ValueError("an assignment was followed or refused, not both")
        return self


class _Problem(Message):
    """As much of an RFC 9457 problem as an agent acts on; the rest is for people."""

    model_config = ConfigDict(extra="ignore")

    code: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_.]{0,127}$")]
    detail: Text = ""


@dataclass(frozen=True)
class Report:
    """One report as a value.

    Args:
        facts: what the host is made of, when that changed since the last report; None otherwise.
        report: what came of the last assignment; None when there was none yet or it was refused.
        refusal: an error's JSON form, when the assignment was refused whole.
    """

    boot_id: str
    agent_version: str
    facts: HostFacts | None
    report: HostReport | None
    refusal: Mapping[str, Any] | None

    def encode(self) -> bytes:
        """Write it for the wire; texts and lists beyond the bounds are cut, so that no report is stuck."""
        body = {
            "boot_id": self.boot_id,
            "agent_version": self.agent_version,
            "facts": None if self.facts is None else facts_document(self.facts),
            "report": None if self.report is None else report_document(self.report),
            "refusal": None if self.refusal is None else error_document(self.refusal),
        }
        return json.dumps(body, separators=(",", ":"), allow_nan=False).encode()


def parse_report(raw: bytes, peer: int = PROTOCOL_VERSION) -> Report:
    """Read a report from a host that nobody trusts. Cost: linear in the bytes.

    Args:
        peer: the version that its agent speaks.

    Raises:
        InvalidInputError: `protocol.too_large`, `protocol.bad_message`.
    """
    message = parse_message(_ReportMessage, raw, MAX_REPORT_BYTES, peer=peer)
    return Report(
        boot_id=message.boot_id,
        agent_version=message.agent_version,
        facts=None if message.facts is None else message.facts.value(),
        report=None if message.report is None else message.report.value(),
        refusal=None if message.refusal is None else message.refusal.value(),
    )


def parse_message(
    kind: type[M], raw: bytes, limit: int = MAX_SMALL_BYTES, *, peer: int = PROTOCOL_VERSION
) -> M:
    """Read one message.

    Args:
        peer: the version that its sender speaks; what a newer one adds is left aside.

    Raises:
        InvalidInputError: `protocol.too_large`, `protocol.bad_message`: with the first field that is wrong;
            never with its value, which may be a secret.
    """
    if len(raw) > limit:
        raise InvalidInputError("protocol.too_large", f"a message of {len(raw)} bytes; {limit} are allowed")
    try:
        return kind.model_validate_json(raw, extra="ignore" if peer > PROTOCOL_VERSION else None)
    except ValidationError as exc:
        # The cause is left out on purpose: it may quote what it read.
        details = exc.errors(include_url=False, include_input=False, include_context=False)
        first = details[0]
        raise InvalidInputError(
            "protocol.bad_message",
            f"no message of version {PROTOCOL_VERSION}: {_plain(first['msg'])}"
            + (f", and {len(details) - 1} more" if len(details) > 1 else ""),
            field=field_path(first["loc"]) or None,
        ) from None


def parse_assignment_answer(raw: bytes) -> Assignment:
    """Read `{"assignment": ...}` with all the care of `parse_assignment`.

    Raises:
        InvalidInputError: `protocol.bad_message`: it is no such envelope.
        AssignmentRefused: what stands in it is wrong.
    """
    match = _ENVELOPE.fullmatch(raw)
    if match is None:
        raise InvalidInputError("protocol.bad_message", "the answer is no assignment in its envelope")
    return parse_assignment(match[1])


def problem_of(raw: bytes) -> tuple[str, str]:
    """Read code and sentence of a problem document; two empty texts when it is none."""
    try:
        problem = parse_message(_Problem, raw)
    except InvalidInputError:
        return "", ""
    return problem.code, problem.detail


def check_version(said: str | None, ours: int = PROTOCOL_VERSION) -> int:
    """Return the version that the other side speaks; refuse one that is more than one apart, or none.

    Raises:
        ProtocolVersionError: `protocol.version`.
    """
    for peer in range(max(_FIRST_VERSION, ours - 1), ours + 2):
        if said == str(peer):
            return peer
    shown = "none" if said is None else repr(said[:16])
    raise ProtocolVersionError(
        "protocol.version",
        f"this side speaks version {ours} of the protocol, the other side {shown}",
        hint="controller and agent work one version apart: bring the older one up",
    )


class ProtocolVersionError(InvalidInputError):
    """The other side speaks another version; nothing was read."""

    http_status = 426


def unknown_key(volume: str, generation: int) -> NotFoundError:
    """The controller has no key of this volume for this host now."""
    return NotFoundError(
        "key.unknown",
        f"the controller gives no key for {volume} generation {generation} to this host",
        hint="a host gets keys only for what is assigned to it now",
    )


def _plain(text: str) -> str:
    return "".join(each if each.isprintable() else "?" for each in text[:200])
