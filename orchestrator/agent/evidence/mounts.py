"""Which file system holds a file, by a process' mountinfo, confirmed by the file's device number.

The mount is the one with the longest path in front of the file's; where something else is mounted over it the
device numbers differ, and then the answer is None. Called by `inspector`, and by `memory` for swap files.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_ESCAPE = re.compile(r"\\([0-7]{3})")
#: Before the dash: id, parent, device, root, mount point, options; behind it the type.
_DEVICE, _POINT = 2, 4


@dataclass(frozen=True)
class Mount:
    """One line of mountinfo."""

    point: str
    filesystem: str
    #: `major:minor`.
    device: str


def read_mounts(process: Path) -> tuple[Mount, ...] | None:
    """Read a process' mounts in the kernel's order; None when they cannot be read."""
    try:
        lines = (process / "mountinfo").read_text("utf-8", "surrogateescape").splitlines()
        return tuple(_mount(line) for line in lines)
    except (OSError, IndexError):
        return None


def _mount(line: str) -> Mount:
    head, _, tail = line.partition(" - ")
    words = head.split(" ")
    return Mount(unescape(words[_POINT]), tail.split(" ")[0], words[_DEVICE])


def unescape(text: str) -> str:
    """Read the kernel's octal escapes (`\\040`)."""
    return _ESCAPE.sub(lambda match: chr(int(match.group(1), 8)), text)


def device_of(path: Path) -> str | None:
    """Return `major:minor` of the file system that holds the file; None when it cannot be looked at."""
    try:
        number = path.stat().st_dev
    except OSError:
        return None
    return f"{os.major(number)}:{os.minor(number)}"


def filesystem_of(root: Path, mounts: Sequence[Mount] | None, path: str) -> str | None:
    """Return the type of the file system that holds a file; None when that cannot be told for sure.

    Args:
        root: where the host's files are.
        mounts: of the process that uses the file.
        path: absolute, as that process knows it.
    """
    real = _resolved(root, path)
    device = device_of(below(root, path))
    if mounts is None or real is None or device is None:
        return None
    best: Mount | None = None
    for mount in mounts:
        if _holds(mount.point, real) and (best is None or len(mount.point) >= len(best.point)):
            best = mount
    return best.filesystem if best is not None and best.device == device else None


def below(root: Path, path: str) -> Path:
    """Put an absolute path under the root."""
    return root / path.lstrip("/")


def _holds(point: str, path: str) -> bool:
    return point == "/" or path == point or path.startswith(point + "/")


def _resolved(root: Path, path: str) -> str | None:
    """Follow symbolic links; None where they lead out of the root."""
    base = os.path.realpath(root)
    real = os.path.realpath(below(root, path))
    if base == "/":
        return real
    return real.removeprefix(base) if real.startswith(base + "/") else None
