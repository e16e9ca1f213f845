"""The one way in which a verdict comes from a fact: None is UNKNOWN, True is PASS, anything else is FAIL."""

from __future__ import annotations

from orchestrator.model.evidence import Status, Verdict

#: What a verdict reads when its fact is missing.
NOT_READ = "not read"


def verdict(id_: str, subject: str, expected: str, read: object, ok: bool | None) -> Verdict:
    """Make a verdict.

    Args:
        id_: stable id.
        subject: id of what it is about.
        expected: what was ordered, for people.
        read: what the kernel says; shown only when the fact was read.
        ok: None when the fact is missing.
    """
    if ok is None:
        return Verdict(id_, subject, Status.UNKNOWN, expected, NOT_READ)
    return Verdict(id_, subject, Status.PASS if ok else Status.FAIL, expected, str(read))


def numbers(values: frozenset[int] | None) -> str:
    """Write numbers sorted, joined by commas; `none` for an empty set."""
    return ",".join(str(value) for value in sorted(values or ())) or "none"
