"""Small readers of kernel files, where a file that is not there means that the fact is unknown."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path, PurePath
from typing import Protocol, Self

from orchestrator.model.cpus import parse_cpu_list
from orchestrator.model.errors import HostError


class HostPath(Protocol):
    """As much of `pathlib.Path` as reading a host takes: a path of this machine, or of a recording."""

    @property
    def name(self) -> str:
        """The last part."""

    def __truediv__(self, part: str, /) -> Self:
        """Return the path of something below."""

    def read_text(self, encoding: str | None = None, errors: str | None = None) -> str:
        """Return the content as text; OSError where there is none."""

    def read_bytes(self) -> bytes:
        """Return the content; OSError where there is none."""

    def readlink(self) -> PurePath:
        """Return where a link points; OSError where there is none."""

    def iterdir(self) -> Iterable[HostPath]:
        """Return what a folder holds; OSError where there is none."""


def read_text(path: HostPath) -> str | None:
    """Return the file's text without the last newline; None where the kernel gives none.

    sysfs answers ENOENT for facts that a device lacks, and ENODEV, EIO or EINVAL while one is going away.
    """
    try:
        return path.read_text("utf-8", "replace").strip()
    except OSError:
        return None


def read_number(path: HostPath, base: int = 10) -> int | None:
    """Return the number in the file; None where there is no file.

    Raises:
        HostError: `host.unreadable`: there is a text, but no number.
    """
    text = read_text(path)
    if text is None:
        return None
    try:
        return int(text, base)
    except ValueError as exc:
        raise unreadable(path, text, "a number") from exc


def read_cpu_set(path: HostPath) -> frozenset[int] | None:
    """Return the CPUs in the kernel's list form; None where there is no file.

    Raises:
        HostError: `host.unreadable`.
    """
    text = read_text(path)
    if text is None:
        return None
    try:
        return parse_cpu_list(text)
    except ValueError as exc:
        raise unreadable(path, text, "a CPU list") from exc


def read_link_name(path: HostPath) -> str | None:
    """Return the last part of where a link points; None where there is no link."""
    target = read_link(path)
    return None if target is None else target.name


def read_link(path: HostPath) -> PurePath | None:
    """Return where a link points, as it is written; None where there is no link."""
    try:
        return path.readlink()
    except OSError:
        return None


def names(folder: HostPath) -> tuple[str, ...]:
    """Return the names in a folder, sorted; none where there is no folder."""
    return listing(folder) or ()


def listing(folder: HostPath) -> tuple[str, ...] | None:
    """Return the names in a folder, sorted; None where there is no folder.

    Only a listing shows that something is absent; a file that cannot be read is unknown.
    """
    try:
        return tuple(sorted(each.name for each in folder.iterdir()))
    except OSError:
        return None


def unreadable(path: HostPath, text: str, wanted: str) -> HostError:
    """Make the error for a file that holds something else than its kind."""
    return HostError("host.unreadable", f"{path} holds {text[:80]!r}, which is not {wanted}")


def filesystem_of(path: Path) -> str:
    """Name the type of the file system that holds this existing path (`/proc/self/mountinfo`, proc(5))."""
    device = path.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if before.split()[2] == wanted:
            return after.split()[0]
    return "an unknown file system"
