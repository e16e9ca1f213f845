"""Every effect of the reconciler goes through here: progress, fault points and durations in one place."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol, TypeVar

from orchestrator.agent.faults import faultpoint
from orchestrator.model.errors import BulkheadError
from orchestrator.model.report import StepRecord

T = TypeVar("T")


class Progress(Protocol):
    """Who wants to see steps as they happen."""

    def started(self, subject: str, step: str) -> None:
        """A step begins."""

    def finished(self, subject: str, step: str, duration_s: float, error: BulkheadError | None) -> None:
        """A step ended, well or not."""


class Silent:
    """Progress for nobody."""

    def started(self, subject: str, step: str) -> None:
        """Say nothing."""

    def finished(self, subject: str, step: str, duration_s: float, error: BulkheadError | None) -> None:
        """Say nothing."""


class Effects:
    """Runs effects one at a time and remembers them."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self.records: list[StepRecord] = []

    def do(self, subject: str, step: str, effect: Callable[[], T]) -> T:
        """Run one named effect on the host between its two fault points."""
        self._progress.started(subject, step)
        began = time.monotonic()
        error: BulkheadError | None = None
        try:
            faultpoint(f"{step}.before")
            value = effect()
            faultpoint(f"{step}.after")
        except BulkheadError as exc:
            error = exc
            raise
        finally:
            duration_s = time.monotonic() - began
            self.records.append(StepRecord(subject, step, duration_s))
            self._progress.finished(subject, step, duration_s, error)
        return value
