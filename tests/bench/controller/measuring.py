"""Processes to measure, what they use, and the table of what was found, printed when all is done."""

from __future__ import annotations

import contextlib
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[3]
_TICKS = os.sysconf("SC_CLK_TCK")
_MIB = 1024


@dataclass(frozen=True)
class Found:
    """One line of the table; what has no baseline leaves it and the ratio empty."""

    what: str
    ours: str
    baseline: str = ""
    ratio: str = ""
    wanted: str = ""


FOUND: list[Found] = []


def table() -> list[str]:
    """The lines of the table."""
    head = Found("what", "ours", "baseline", "ratio", "wanted")
    rows = [(each.what, each.ours, each.baseline, each.ratio, each.wanted) for each in (head, *FOUND)]
    widths = [max(len(row[place]) for row in rows) for place in range(5)]
    return [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def own_cpu_s() -> float:
    """Seconds of processor time that this process has used: the simulated fleet and its client."""
    return time.process_time()


def durable_ms(folder: Path, count: int = 30) -> float:
    """Milliseconds that writing one page durably takes here, median: each commit of SQLite waits for one."""
    took = []
    with (folder / "durable").open("wb", buffering=0) as file:
        for _ in range(count):
            file.write(bytes(4096))
            began = time.monotonic()
            os.fsync(file.fileno())
            took.append((time.monotonic() - began) * 1000)
    return statistics.median(took)


@dataclass(frozen=True)
class Measured:
    """A process of ours that runs."""

    pid: int
    stdout: object

    def cpu_s(self) -> float:
        """Seconds of processor time that it has used: what others do on the machine does not count."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def rss_mib(self) -> float:
        """Memory that it holds now."""
        return self._status("VmRSS") / _MIB

    def threads(self) -> int:
        """Threads that it has now."""
        return self._status("Threads")

    def _status(self, name: str) -> int:
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1])
        raise AssertionError(name)


@contextlib.contextmanager
def process(
    *argv: str, log: Path, env: dict[str, str] | None = None
) -> Iterator[tuple[Measured, subprocess.Popen]]:
    """Run one of our modules; its log goes to a file, as a service's does."""
    with log.open("w") as stderr:
        started = subprocess.Popen(
            [sys.executable, *argv],
            cwd=ROOT,
            env={**os.environ, **(env or {})},
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    try:
        yield Measured(started.pid, started.stdout), started
    finally:
        started.send_signal(signal.SIGTERM)
        try:
            started.wait(30)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait()
