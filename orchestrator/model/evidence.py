"""Verdicts: one question about one running thing, what was expected, what the kernel said, and the answer.

They travel from agent to controller and into the audit log. UNKNOWN is never PASS.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    """The answer."""

    PASS = "pass"  # noqa: S105 - a verdict, not a password
    FAIL = "fail"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Verdict:
    """One answered question."""

    #: Stable id such as `gpu.holder` (docs/evidence.md lists them).
    id: str
    #: What it is about: an instance, device, volume or port id, or one of its parts.
    subject: str
    status: Status
    expected: str
    read: str
