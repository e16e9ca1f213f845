"""Looks for a secret where none may be: argv and environment of all processes, files, the journal.

    python -m orchestrator.agent.evidence.canary DIR... <secret

The secret comes on standard input, byte for byte, and is never printed; names that hold it are left out.
Prints `{"hits": [{"where", "encoding"}], "scanned": {...}}`. Status 0: looked everywhere, found nothing;
1: found; 2: found nothing, but could not look everywhere (`scanned.unreadable` says where). Processes' memory
is not looked at, so the agent's own and this one's do not count. Called by hand and by the lab's tests.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from orchestrator.agent.evidence.mounts import read_mounts
from orchestrator.agent.evidence.needles import Search, needles

CHUNK_BYTES = 1 << 20
#: The kernel's own file systems: reading them has effects, and processes are looked at on their own.
_KERNEL = frozenset(
    {"proc", "sysfs", "cgroup", "cgroup2", "debugfs", "tracefs", "securityfs", "configfs", "bpf", "nsfs"}
)
_GONE = (FileNotFoundError, ProcessLookupError, NotADirectoryError)


class Canary:
    """One scan.

    Args:
        secret: what to look for.
        root: where `proc` is.
        chunk_bytes: how much of a file is in memory at once.

    Raises:
        ValueError: the secret is too short.
    """

    def __init__(self, secret: bytes, root: Path = Path("/"), chunk_bytes: int = CHUNK_BYTES) -> None:
        self._search = Search(needles(secret))
        self._root = root
        self._chunk_bytes = chunk_bytes
        self._skipped = self._kernel_devices()
        self.hits: list[dict[str, str]] = []
        self.counts: Counter[str] = Counter(processes=0, files=0, bytes=0, journal_bytes=0)
        self.unreadable: list[str] = []

    def _kernel_devices(self) -> frozenset[str]:
        mounts = read_mounts(self._root / "proc/self") or ()
        return frozenset(mount.device for mount in mounts if mount.filesystem in _KERNEL)

    def processes(self) -> None:
        """Look at argv and environment of every process."""
        try:
            pids = sorted(int(each.name) for each in (self._root / "proc").iterdir() if each.name.isdigit())
        except OSError:
            pids = []
        if not pids:
            self.unreadable.append("processes")
        for pid in pids:
            self.counts["processes"] += 1
            for kind, name in (("argv", "cmdline"), ("environ", "environ")):
                try:
                    found = self._search.within([(self._root / "proc" / str(pid) / name).read_bytes()])
                except _GONE:
                    continue
                except OSError:
                    self.unreadable.append(f"{kind} of process {pid}")
                    continue
                self._hit(f"{kind} of process {pid}", found)

    def tree(self, top: Path) -> None:
        """Look at all regular files below a folder, at names and at link targets; links are not followed."""
        try:
            status = os.lstat(top)
        except OSError:
            self.unreadable.append(self._shown(str(top)))
            return
        waiting = [str(top)] if stat.S_ISDIR(status.st_mode) else []
        if not waiting:
            self._entry(str(top), status)
        while waiting:
            folder = waiting.pop()
            try:
                with os.scandir(folder) as entries:
                    children = sorted(entry.path for entry in entries)
            except _GONE:
                continue
            except OSError:
                self.unreadable.append(self._shown(folder))
                continue
            waiting += [path for path in children if self._child(path)]

    def _child(self, path: str) -> bool:
        """Look at one entry; tell whether it is a folder to go into."""
        self._hit(f"a name in {self._shown(os.path.dirname(path))}", self._named(path))
        try:
            status = os.lstat(path)
        except _GONE:
            return False
        except OSError:
            self.unreadable.append(self._shown(path))
            return False
        if stat.S_ISDIR(status.st_mode):
            device = f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}"
            return device not in self._skipped and path not in ("/proc", "/sys")
        self._entry(path, status)
        return False

    def _entry(self, path: str, status: os.stat_result) -> None:
        try:
            if stat.S_ISLNK(status.st_mode):
                target = os.fsencode(os.readlink(path))  # noqa: PTH115
                self._hit(f"target of {self._shown(path)}", self._search.within([target]))
            elif stat.S_ISREG(status.st_mode):
                self.counts["files"] += 1
                self._hit(self._shown(path), self._search.within(self._data(path)))
        except _GONE:
            return
        except OSError as exc:
            # A namespace bound to a name is a regular file without content.
            if exc.errno != errno.EINVAL:
                self.unreadable.append(self._shown(path))

    def _data(self, path: str) -> Iterator[bytes]:
        """Read a file's data; holes are skipped but for their edges, since a spelling may hold zero bytes."""
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            at, overlap = 0, self._search.overlap_bytes
            for start, end in _segments(descriptor):
                at = max(at, start - overlap)
                while at < end + overlap:
                    piece = os.pread(descriptor, min(self._chunk_bytes, end + overlap - at), at)
                    if not piece:
                        break
                    at += len(piece)
                    self.counts["bytes"] += len(piece)
                    yield piece
        finally:
            os.close(descriptor)

    def journal(self) -> None:
        """Look at the journal, unpacked and with all fields, where there is one to read."""
        program = shutil.which("journalctl")
        if program is None:
            return
        with subprocess.Popen(
            [program, "--quiet", "--no-pager", "--all", "--output=export"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as process:
            self._hit("journal", self._search.within(self._output(process)))
        if process.returncode != 0:
            self.unreadable.append("journal")

    def _output(self, process: subprocess.Popen[bytes]) -> Iterator[bytes]:
        while process.stdout is not None and (piece := process.stdout.read(self._chunk_bytes)):
            self.counts["journal_bytes"] += len(piece)
            yield piece

    def report(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"hits": self.hits, "scanned": {**self.counts, "unreadable": self.unreadable}}

    def _hit(self, where: str, encodings: frozenset[str]) -> None:
        self.hits += [{"where": where, "encoding": encoding} for encoding in sorted(encodings)]

    def _named(self, path: str) -> frozenset[str]:
        return self._search.within([os.fsencode(path.rpartition("/")[2])])

    def _shown(self, path: str) -> str:
        """Return a path that may be printed: parts that hold the secret are left out."""
        parts = ["(left out)" if self._named(part) else part for part in path.split("/")]
        return os.fsencode("/".join(parts)).decode("utf-8", "backslashreplace")


def _segments(descriptor: int) -> Iterator[tuple[int, int]]:
    """Yield where a file has data; a file system that does not know says everywhere."""
    end = 0
    while True:
        try:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
            end = os.lseek(descriptor, start, os.SEEK_HOLE)
        except OSError as exc:
            if exc.errno == errno.ENXIO:
                return
            raise
        yield start, end


def main(arguments: Sequence[str], root: Path = Path("/")) -> int:
    """Scan, print, and return the exit status."""
    try:
        canary = Canary(sys.stdin.buffer.read(), root)
    except ValueError as exc:
        print(exc, file=sys.stderr)
        return 2
    canary.processes()
    for folder in arguments:
        canary.tree(Path(folder))
    canary.journal()
    print(json.dumps(canary.report()))
    if canary.hits:
        return 1
    return 2 if canary.unreadable else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
