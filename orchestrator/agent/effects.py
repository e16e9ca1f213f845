"""Every effect of the reconciler goes through here: progress, fault points, durations and whose turn it is.

Whoever works on the host has the turn, so decisions and short effects happen one at a time and nobody sees
another's half. Around what takes long and touches only what is its own, a job steps aside and the next one
goes on.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
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
    """Runs effects and remembers them. Whoever makes it has the turn."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._turn = threading.Lock()
        self._turn.acquire()
        self.records: list[StepRecord] = []

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Let others have the turn within: for what takes long and touches nothing that they look at."""
        self._turn.release()
        try:
            yield
        finally:
            self._turn.acquire()

    def side_by_side(self, jobs: Sequence[Callable[[], T]], at_once: int) -> tuple[T, ...]:
        """Run jobs in threads, so many at once, each with the turn but where it steps aside.

        They begin in their order, each when the one before it first steps aside or ends: what they decide
        before that comes out the same each time. Returns what they returned, in their order; what one raises
        is raised when all have ended.
        """
        if min(at_once, len(jobs)) <= 1:
            return tuple(job() for job in jobs)
        # Nothing waits in the pool's own queue: it would have the turn and no thread to use it.
        places = threading.Semaphore(at_once)

        def one(job: Callable[[], T]) -> T:
            try:
                return job()
            finally:
                self._turn.release()
                places.release()

        with self.aside(), ThreadPoolExecutor(at_once, thread_name_prefix="instance") as pool:
            running = []
            for job in jobs:
                places.acquire()
                self._turn.acquire()
                try:
                    running.append(pool.submit(one, job))
                except BaseException:
                    # No thread to be had: those that run need the turn to end.
                    self._turn.release()
                    raise
        return tuple(each.result() for each in running)

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
