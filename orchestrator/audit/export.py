"""Audit exports: JSON lines that can be verified with no database at hand.

The first line says which stream this is, how far the stream went when it was read, and which filter ran; each
further line is one record with its event to read and its exact bytes to verify. A complete export holds every
number from 0 on, and so proves that none is missing; a filtered one says that it is filtered, and proves only
that what it holds was not changed. Whoever can write the database can write it all anew: that is what signed
checkpoints will stand against. Reads no file; the controller writes exports, the CLI verifies them.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from orchestrator.audit.canonical import canonical_bytes
from orchestrator.audit.record import AuditEvent, AuditRecord, parse_event, verify_record
from orchestrator.model.errors import BulkheadError, InvalidInputError

FORMAT = "bulkhead-audit-export/1"
#: A record's 32 KiB twice (to read and in base64), and what stands around it; double, for escapes.
MAX_LINE_BYTES = 256 * 1024
#: Whoever has read a hundred knows.
MAX_PROBLEMS = 100


@dataclass(frozen=True)
class AuditFilter:
    """Which records are wanted; what is None takes any.

    Args:
        from_ms: the first millisecond that is wanted.
        until_ms: the first one that is not wanted any more.
        actor: id of who asked.
        kind: `instance.create`, or a noun alone for all of its kinds.
        subject: id of what it is about.
        outcome: `ok`, `failed` or `denied`.
    """

    from_ms: int | None = None
    until_ms: int | None = None
    actor: str | None = None
    kind: str | None = None
    subject: str | None = None
    outcome: str | None = None

    @property
    def narrows(self) -> bool:
        """Something may be left out."""
        return self != AuditFilter()

    def matches(self, event: AuditEvent) -> bool:
        """Tell whether an event is wanted."""
        return (
            (self.from_ms is None or event.at_ms >= self.from_ms)
            and (self.until_ms is None or event.at_ms < self.until_ms)
            and (self.actor is None or event.actor.id == self.actor)
            and (self.kind is None or self.kind in (event.kind, event.kind.split(".", 1)[0]))
            and (self.subject is None or event.subject_id == self.subject)
            and (self.outcome is None or event.outcome == self.outcome)
        )


@dataclass(frozen=True)
class Problem:
    """Something wrong with an export: in which line (from 1), about which record, and what."""

    line: int
    stream: str
    seq: int | None
    what: str

    def __str__(self) -> str:
        record = self.stream if self.seq is None else f"{self.stream} {self.seq}"
        return f"line {self.line}, {record}: {self.what}"


@dataclass(frozen=True)
class Verification:
    """What verifying an export found; `complete` says that no record of the stream is missing in it."""

    stream: str
    records: int
    complete: bool
    problems: tuple[Problem, ...]


def export_lines(
    stream: str, next_seq: int, records: Iterable[AuditRecord], wanted: AuditFilter | None = None
) -> Iterator[str]:
    """Write an export, one line after the other without line ends; holds one record at a time.

    Args:
        next_seq: the number that the stream's next record would have got when the records were read.
        records: all of the stream's below `next_seq`, in order. Filtering happens here.
    A record whose bytes are no event any more is never left out: it is what an auditor must see.
    """
    wanted = wanted or AuditFilter()
    yield _header(stream, next_seq, wanted)
    for record in records:
        event = _event_of(record)
        if event is None or wanted.matches(event):
            yield _record_line(record, event)


def _event_of(record: AuditRecord) -> AuditEvent | None:
    try:
        return parse_event(record.body)
    except InvalidInputError:
        return None


def _header(stream: str, next_seq: int, wanted: AuditFilter) -> str:
    body: dict[str, Any] = {
        "format": FORMAT,
        "stream": stream,
        "next_seq": next_seq,
        "filtered": wanted.narrows,
        "filter": {key: value for key, value in dataclasses.asdict(wanted).items() if value is not None},
    }
    # Against accidents only: nothing else in the export says what this line says.
    return canonical_bytes({**body, "sha256": hashlib.sha256(canonical_bytes(body)).hexdigest()}).decode()


def _record_line(record: AuditRecord, event: AuditEvent | None) -> str:
    """Canonical JSON too; the event's bytes stand in it as they are."""
    shown = "null" if event is None else record.body.decode()
    return (
        f'{{"bytes":"{base64.b64encode(record.body).decode()}","commitment":"{record.commitment.hex()}",'
        f'"event":{shown},"salt":"{record.salt.hex()}","seq":{record.seq},'
        f'"stream":{canonical_bytes(record.stream).decode()}}}'
    )


def verify_lines(lines: Iterable[str]) -> Verification:
    """Verify an export line by line: changed bytes, gaps, wrong order, what does not belong.

    Each line must be exactly as it would be written anew, so no byte of it can change unnoticed. Holds one
    line at a time.
    """
    reading = iter(lines)
    first = next(reading, None)
    header = None if first is None else _parse_header(_bare(first))
    if header is None:
        problem = Problem(1, "", None, "this is not the first line of an audit export")
        return Verification("", 0, False, (problem,))
    check = _Check(*header)
    for line in reading:
        check.take(_bare(line))
        if len(check.problems) >= MAX_PROBLEMS:
            break
    return check.finish()


class _Check:
    """The state between two lines."""

    def __init__(self, stream: str, next_seq: int, wanted: AuditFilter) -> None:
        self.stream = stream
        self.problems: list[Problem] = []
        self._next_seq = next_seq
        self._wanted = wanted
        self._line = 1
        self._records = 0
        self._expected = 0

    def take(self, line: str) -> None:
        self._line += 1
        self._records += 1
        record = _parse_record(line)
        if record is None:
            # Its number is unknown: the one that should stand here is the one that is missed.
            self._say(None if self._wanted.narrows else self._expected, "the line was changed or cut")
            self._expected += 1
            return
        if record.stream != self.stream:
            self._say(record.seq, f"a record of stream {record.stream} in an export of {self.stream}")
        self._place(record.seq)
        wrong = verify_record(record)
        for what in wrong:
            self._say(record.seq, what)
        if not wrong and not self._wanted.matches(parse_event(record.body)):
            self._say(record.seq, "it does not match the filter of the first line")

    def _place(self, seq: int) -> None:
        if seq < self._expected:
            self._say(seq, f"out of order or double: {self._expected} or later should stand here")
            return
        if seq > self._expected and not self._wanted.narrows:
            self._missing(seq)
        if seq >= self._next_seq:
            self._say(seq, f"beyond the stream's end, which was at {self._next_seq}")
        self._expected = seq + 1

    def _missing(self, until: int) -> None:
        last = f" to {until - 1}" if until - 1 > self._expected else ""
        self._say(self._expected, f"missing: {self._expected}{last}")

    def finish(self) -> Verification:
        """Look whether the end is there; not after giving up."""
        full = not self._wanted.narrows
        if full and len(self.problems) < MAX_PROBLEMS and self._expected < self._next_seq:
            self._line += 1
            self._missing(self._next_seq)
        complete = full and not self.problems
        return Verification(self.stream, self._records, complete, tuple(self.problems))

    def _say(self, seq: int | None, what: str) -> None:
        self.problems.append(Problem(self._line, self.stream, seq, what))


def _bare(line: str) -> str:
    return line.removesuffix("\n")


def _parse_header(line: str) -> tuple[str, int, AuditFilter] | None:
    """Read the first line; None unless it is exactly what `_header` writes."""
    try:
        found = _parse(line)
        stream, next_seq, wanted = found["stream"], found["next_seq"], AuditFilter(**found["filter"])
        if not isinstance(stream, str) or type(next_seq) is not int or not _typed(wanted):
            return None
        same = _header(stream, next_seq, wanted) == line
    except (ValueError, KeyError, TypeError, RecursionError, BulkheadError):
        return None
    return (stream, next_seq, wanted) if same and next_seq >= 0 else None


def _typed(wanted: AuditFilter) -> bool:
    times = (wanted.from_ms, wanted.until_ms)
    texts = (wanted.actor, wanted.kind, wanted.subject, wanted.outcome)
    return all(time is None or type(time) is int for time in times) and all(
        isinstance(text, str | None) for text in texts
    )


def _parse_record(line: str) -> AuditRecord | None:
    """Read a record's line; None unless it is exactly what `_record_line` writes."""
    try:
        found = _parse(line)
        record = AuditRecord(
            stream=found["stream"],
            seq=found["seq"],
            salt=bytes.fromhex(found["salt"]),
            body=base64.b64decode(found["bytes"], validate=True),
            commitment=bytes.fromhex(found["commitment"]),
        )
        if not isinstance(record.stream, str) or type(record.seq) is not int or record.seq < 0:
            return None
        same = _record_line(record, _event_of(record)) == line
    except (ValueError, KeyError, TypeError, RecursionError, binascii.Error, BulkheadError):
        return None
    return record if same else None


def _parse(line: str) -> dict[str, Any]:
    if len(line) > MAX_LINE_BYTES:
        raise ValueError("too long")
    found = json.loads(line)
    if not isinstance(found, dict):
        raise TypeError("not an object")
    return found
