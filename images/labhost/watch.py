"""Judges whether a lab host lives, from its process and its console: its own death is no failure of ours.

Pure reading; nothing here starts, stops or repairs. Called by `lab` after every command that did not come
back.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

PANIC = re.compile(
    r"Kernel panic - not syncing[^\n]*|Attempted to kill init![^\n]*|BUG: unable to handle[^\n]*"
)
STALL = re.compile(r"rcu: INFO: \S+ (?:self-)?detected (?:expedited )?stalls?[^\n]*")
ASSERTION = re.compile(r"[^\n]*(?:Assertion [^\n]* failed|assertion failed|Aborted|Segmentation fault)[^\n]*")
BOOT_MARK = "Linux version "


def process_start(pid: int, proc: Path = Path("/proc")) -> str | None:
    """Return a process' start time in clock ticks, or None if it is gone; it tells a pid from its reuse."""
    try:
        text = (proc / str(pid) / "stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    # Field 3 is the state, field 20 the number of threads, field 22 the start time. A zombie is gone, but one
    # whose other threads still end has its files and locks.
    return None if fields[0] in "ZX" and int(fields[17]) <= 1 else fields[19]


def is_running(pid: int, started: str) -> bool:
    """Tell whether the very process that was started still runs."""
    return process_start(pid) == started


def thread_times(pid: int, proc: Path = Path("/proc")) -> list[str]:
    """Return each thread's name, state and CPU seconds: a silent emulator spins or sleeps."""
    found = []
    for task in sorted((proc / str(pid) / "task").glob("*"), key=lambda path: int(path.name)):
        try:
            name, _, rest = (task / "stat").read_text().partition("(")[2].rpartition(")")
        except OSError:
            continue
        fields = rest.split()
        ticks = int(fields[11]) + int(fields[12])
        found.append(f"thread {task.name} {name}: {fields[0]}, {ticks / os.sysconf('SC_CLK_TCK'):.0f} s")
    return found


def since_last_boot(console: str) -> str:
    """Return the console from the last kernel start on."""
    at = console.rfind(BOOT_MARK)
    return console if at < 0 else console[at:]


def console_death(console: str) -> str | None:
    """Return the kernel's own words for its death since it last started, if it died."""
    match = PANIC.search(since_last_boot(console))
    return f"the lab host's kernel died: {match.group(0).strip()}" if match else None


def console_stall(console: str) -> str | None:
    """Return the last RCU stall since the kernel started; it counts as death only when ssh is silent too."""
    found = STALL.findall(since_last_boot(console))
    return f"the lab host hangs: {found[-1].strip()}" if found else None


def emulator_death(log: str) -> str:
    """Return what a QEMU that is gone said last."""
    match = ASSERTION.search(log)
    said = match.group(0).strip() if match else (log.strip().splitlines() or ["it said nothing"])[-1]
    return f"the lab host's QEMU is gone: {said}"


def read_tail(path: Path, limit: int = 4 << 20) -> str:
    """Read a log's end; a missing log is empty."""
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - limit))
            return stream.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
