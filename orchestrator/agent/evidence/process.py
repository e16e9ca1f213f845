"""One process as /proc shows it: which one it is, its threads, whose it is, what it may do.

Reads and never judges. What cannot be read is None; a thread that ends while it is looked at is left out,
since QEMU's pool threads come and go. Called by `inspector` and `neighbours`.
"""

from __future__ import annotations

import errno
import operator
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import TypeVar

from hostprep.probe.files import read_text
from orchestrator.isolation.facts import UNLIMITED, CoreFacts
from orchestrator.model.cpus import parse_cpu_list

_T = TypeVar("_T")

#: proc(5): `starttime` is field 22 of stat, the 20th behind the name in brackets; the state is the first
#: there, the flags are the seventh.
_STATE, _FLAGS, _START = 0, 6, 19
#: include/linux/sched.h since Linux 6.4: a thread that the kernel cloned from the program's for itself. No
#: program can set it.
_PF_USER_WORKER = 0x4000
_DEAD = ("Z", "X", "x")


@dataclass(frozen=True)
class Thread:
    """One thread's `status`, by field name; user, group and capability fields belong to each thread."""

    tid: int
    fields: Mapping[str, str]
    #: It runs the kernel's code, never the program's. False also where that cannot be told.
    is_kernels: bool = False

    @property
    def name(self) -> str | None:
        """Its name (`comm`)."""
        return self.fields.get("Name")

    @property
    def cpus(self) -> frozenset[int] | None:
        """Host CPUs where it may run."""
        return _parsed(self.fields.get("Cpus_allowed_list"), parse_cpu_list)

    def ids(self, field: str) -> tuple[int, ...] | None:
        """Return the numbers of `Uid`, `Gid` or `Groups`."""
        return _parsed(self.fields.get(field), lambda text: tuple(int(each) for each in text.split()))

    def number(self, field: str, base: int = 10) -> int | None:
        """Return a field that is one number, whose unit (`kB`) is left out."""
        return _parsed(self.fields.get(field), lambda text: int(text.split()[0], base))


@dataclass(frozen=True)
class Standing:
    """Whose a process is and what it may do, all its threads together: the weakest one counts."""

    uids: frozenset[int] | None
    gids: frozenset[int] | None
    groups: frozenset[int] | None
    cap_effective: int | None
    cap_permitted: int | None
    no_new_privs: bool | None
    seccomp: int | None


def folder(root: Path, pid: int) -> Path:
    """Return a process' folder, whether or not it exists."""
    return root / "proc" / str(pid)


def start_ticks(process: Path) -> int | None:
    """Return when the process started, in clock ticks since boot; None once it is gone or dead."""
    text = read_text(process / "stat")
    # The name may hold blanks and brackets; nothing behind it does.
    parts = (text or "").rpartition(")")[2].split()
    if len(parts) <= _START or parts[_STATE] in _DEAD:
        return None
    return _parsed(parts[_START], int)


def threads(process: Path) -> tuple[Thread, ...] | None:
    """Return all threads by number, the process' own the first; None when they or that one cannot be read."""
    found = []
    try:
        for name in sorted(os.listdir(process / "task"), key=int):  # noqa: PTH208 - names are all that is needed
            status = _status(process / "task" / name / "status")
            if status is not None:
                found.append(Thread(int(name), status, _is_kernels(process / "task" / name / "stat")))
    except (OSError, ValueError):
        return None
    # Without the first one (whose number is the process') this is not the whole process.
    return tuple(found) if found and str(found[0].tid) == process.name else None


def _is_kernels(path: Path) -> bool:
    parts = (read_text(path) or "").rpartition(")")[2].split()
    flags = _parsed(parts[_FLAGS], int) if len(parts) > _FLAGS else None
    return flags is not None and bool(flags & _PF_USER_WORKER)


def _status(path: Path) -> dict[str, str] | None:
    try:
        text = path.read_text("utf-8", "replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    pairs = (line.partition(":") for line in text.splitlines())
    return {name: value.strip() for name, _, value in pairs}


def standing(all_threads: tuple[Thread, ...] | None) -> Standing:
    """Join the threads' ids and powers; a field that one thread does not show is None."""
    ours = all_threads or ()
    privileges = _all(each.number("NoNewPrivs") for each in ours)
    seccomp = _all(each.number("Seccomp") for each in ours)
    return Standing(
        uids=_joined(each.ids("Uid") for each in ours),
        gids=_joined(each.ids("Gid") for each in ours),
        groups=_joined(each.ids("Groups") for each in ours),
        cap_effective=_or(each.number("CapEff", 16) for each in ours),
        cap_permitted=_or(each.number("CapPrm", 16) for each in ours),
        no_new_privs=None if privileges is None else all(each == 1 for each in privileges),
        # 0 is off, 1 strict, 2 filter: strict would kill QEMU, so the smallest is the weakest.
        seccomp=None if seccomp is None else min(seccomp),
    )


def label(process: Path) -> str | None:
    """Return the security module's label; empty where no module gives one, None where it cannot be read."""
    for name in ("apparmor/current", "current"):
        try:
            return (process / "attr" / name).read_text("utf-8", "replace").strip("\0\n ")
        except FileNotFoundError:
            continue
        except OSError as exc:
            # EINVAL: no security module answers here.
            if exc.errno == errno.EINVAL and name == "current":
                return ""
    return None


def own_mount_namespace(root: Path, process: Path) -> bool | None:
    """Tell whether its mount namespace is another than the first process'."""
    try:
        return (process / "ns/mnt").readlink() != (root / "proc/1/ns/mnt").readlink()
    except OSError:
        return None


def core(root: Path, process: Path) -> CoreFacts | None:
    """Read core limits and where the kernel sends cores."""
    pattern = read_text(root / "proc/sys/kernel/core_pattern")
    for line in (read_text(process / "limits") or "").splitlines():
        if line.startswith("Max core file size") and pattern is not None:
            limits = [_parsed(word, _limit) for word in line.removeprefix("Max core file size").split()[:2]]
            if len(limits) == 2 and limits[0] is not None and limits[1] is not None:
                return CoreFacts(limits[0], limits[1], pattern)
    return None


def _limit(word: str) -> int:
    return UNLIMITED if word == "unlimited" else int(word)


def _parsed(text: str | None, parse: Callable[[str], _T]) -> _T | None:
    try:
        return None if text is None else parse(text)
    except (ValueError, IndexError):
        return None


def _all(values: Iterable[_T | None]) -> list[_T] | None:
    """Return the values; None when there are none, or one is missing."""
    found = []
    for value in values:
        if value is None:
            return None
        found.append(value)
    return found or None


def _joined(values: Iterable[tuple[int, ...] | None]) -> frozenset[int] | None:
    found = _all(values)
    return None if found is None else frozenset().union(*found)


def _or(values: Iterable[int | None]) -> int | None:
    found = _all(values)
    return None if found is None else reduce(operator.or_, found)
