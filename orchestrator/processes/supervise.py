"""Keeps child processes running: starts them again when they end, ever more slowly, and ends them in order.

Knows nothing of what they are. `machine` uses it for one controller and one agent.
"""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

RETRY_FIRST_S, RETRY_LONGEST_S = 1.0, 30.0
#: Who ran for so long is started again at once when it ends, as if it had never failed.
STEADY_S = 60.0
#: A child gets so long to end by itself: more than a controller's open calls and an agent's running step.
END_S = 45.0
_LOOK_S = 0.2


@dataclass
class Child:
    """One program that is to run."""

    name: str
    argv: Sequence[str]
    start: Callable[..., subprocess.Popen[bytes]]
    running: subprocess.Popen[bytes]
    began: float
    retry_s: float = RETRY_FIRST_S
    again_at: float | None = None


class Supervisor:
    """Keeps children running until told to end.

    Args:
        say: who is told, in one line, that a child ended or was started again.
        clock: monotonic seconds.
    """

    def __init__(self, say: Callable[[str], None], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._say = say
        self._clock = clock
        self._children: list[Child] = []

    def keep(
        self,
        name: str,
        argv: Sequence[str],
        start: Callable[..., subprocess.Popen[bytes]],
        running: subprocess.Popen[bytes] | None = None,
    ) -> None:
        """Keep a program running from now on; `running` is one that was started already."""
        self._children.append(Child(name, argv, start, running or start(argv), self._clock()))

    def run(self, ended: threading.Event) -> None:
        """Watch until `ended` is set."""
        while not ended.wait(_LOOK_S):
            for child in self._children:
                self.look(child)

    def look(self, child: Child) -> None:
        """Look at one child, and start it again when its time has come."""
        now = self._clock()
        if child.again_at is None:
            status = child.running.poll()
            if status is None:
                return
            if now - child.began >= STEADY_S:
                child.retry_s = RETRY_FIRST_S
            child.again_at = now + child.retry_s
            self._say(f"{child.name} ended with {status}, again in {child.retry_s:g} s")
            child.retry_s = min(child.retry_s * 2, RETRY_LONGEST_S)
        elif now >= child.again_at:
            child.running, child.began, child.again_at = child.start(child.argv), now, None
            self._say(f"{child.name} started again")

    def end(self) -> None:
        """End all, the last one first, each before the next; who does not end in time is killed."""
        for child in reversed(self._children):
            with contextlib.suppress(ProcessLookupError):
                child.running.terminate()
            try:
                child.running.wait(END_S)
            except subprocess.TimeoutExpired:
                self._say(f"{child.name} does not end and is killed")
                child.running.kill()
                child.running.wait()

    @property
    def children(self) -> tuple[Child, ...]:
        """Those that are kept, in the order of their start."""
        return tuple(self._children)
