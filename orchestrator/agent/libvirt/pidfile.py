"""QEMU's pid as libvirt itself wrote it down: there is no call of libvirt that tells it.

Trusts the file only where the process it names is this domain's QEMU, since pids are used again. Never
signals anything. Called by `domains`.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

#: Where libvirtd and virtqemud keep `<domain>.pid` while QEMU lives.
PID_DIR = Path("/run/libvirt/qemu")


def read_pid(name: str, uuid: str, *, pid_dir: Path = PID_DIR, proc: Path = Path("/proc")) -> int | None:
    """Return the pid of a domain's QEMU; None when there is no such process.

    libvirt starts every QEMU with `-uuid` and the domain's UUID, which no other process has.
    """
    try:
        pid = int((pid_dir / f"{name}.pid").read_text())
        words = (proc / str(pid) / "cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError):
        return None
    after = dict(pairwise(words))
    return pid if after.get(b"-uuid") == uuid.encode() else None
