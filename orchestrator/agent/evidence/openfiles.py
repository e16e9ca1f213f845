"""One pass over what all processes have open: who runs machines, who holds VFIO files and volumes.

Made once per look, since the pass is the dearest part of it: one `readlink` per descriptor, and a `stat` for
those that are files. Files are told by device and inode, never by path: a rename or another mount namespace
does not hide them. Decides nothing. Called by `inspector`.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

#: How the kernel names the descriptor of a virtual machine (virt/kvm/kvm_main.c).
_MACHINE = "anon_inode:kvm-vm"
_VFIO = "/dev/vfio/"
#: The container's own file stands for no device.
_CONTAINER = "/dev/vfio/vfio"

#: st_dev and st_ino.
FileId = tuple[int, int]


@dataclass(frozen=True)
class OpenFiles:
    """Who has what open."""

    #: False when a process could not be looked into: then nobody must be taken for no holder.
    complete: bool
    #: All processes that were seen, by pid.
    pids: frozenset[int]
    #: Pids that hold a virtual machine.
    machines: frozenset[int]
    #: Paths below /dev/vfio by pid, the container's left out.
    vfio: Mapping[int, frozenset[str]]
    #: Pids by wanted file.
    files: Mapping[FileId, frozenset[int]]

    def vfio_holders(self, paths: Collection[str]) -> tuple[int, ...] | None:
        """Pids that have one of these files open, rising; None when not all could be seen."""
        if not self.complete:
            return None
        return tuple(sorted(pid for pid, held in self.vfio.items() if not held.isdisjoint(paths)))

    def file_holders(self, file: FileId) -> tuple[int, ...] | None:
        """Pids that have this file open, rising; None when not all could be seen."""
        return tuple(sorted(self.files.get(file, ()))) if self.complete else None


class _Pass:
    """Collects during one pass."""

    def __init__(self, wanted: Collection[FileId]) -> None:
        self.wanted = wanted
        self.complete = True
        self.pids: set[int] = set()
        self.machines: set[int] = set()
        self.vfio: defaultdict[int, set[str]] = defaultdict(set)
        self.files: defaultdict[FileId, set[int]] = defaultdict(set)

    def process(self, folder: str, pid: int) -> None:
        self.pids.add(pid)
        try:
            with os.scandir(f"{folder}/fd") as entries:
                for entry in entries:
                    self._descriptor(pid, entry.path)
        except (FileNotFoundError, ProcessLookupError):
            # The process ended; nobody holds anything through it.
            return
        except OSError:
            self.complete = False

    def _descriptor(self, pid: int, path: str) -> None:
        try:
            target = os.readlink(path)  # noqa: PTH115 - thousands of times per look
            if target == _MACHINE:
                self.machines.add(pid)
            elif target.startswith(_VFIO):
                if target != _CONTAINER:
                    self.vfio[pid].add(target)
            elif target.startswith("/") and self.wanted:
                found = os.stat(path)  # noqa: PTH116 - follows the kernel's link, whatever its text says
                if (found.st_dev, found.st_ino) in self.wanted:
                    self.files[found.st_dev, found.st_ino].add(pid)
        except (FileNotFoundError, ProcessLookupError):
            return


def scan(root: Path, wanted: Collection[FileId] = ()) -> OpenFiles:
    """Look at every descriptor of every process once.

    Args:
        root: where `proc` is.
        wanted: the files whose holders are asked for.
    """
    found = _Pass(frozenset(wanted))
    proc = str(root / "proc")
    try:
        names = [name for name in os.listdir(proc) if name.isdigit()]  # noqa: PTH208 - names are all that is needed
    except OSError:
        names = []
    for name in names:
        found.process(f"{proc}/{name}", int(name))
    return OpenFiles(
        # At least the first process is always there.
        complete=found.complete and bool(names),
        pids=frozenset(found.pids),
        machines=frozenset(found.machines),
        vfio={pid: frozenset(paths) for pid, paths in found.vfio.items()},
        files={file: frozenset(pids) for file, pids in found.files.items()},
    )
