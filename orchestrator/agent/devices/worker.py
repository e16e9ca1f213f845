"""Runs kernel calls that may never return in processes of their own: a deadline, and one per device.

The mark that a call is under way is an flock on a file named by the device's address, inherited by the
worker: the kernel keeps it for as long as the process exists, also when it hangs uninterruptibly and after
the agent has died, and drops it the moment the process is gone. So no pid can be mistaken for another's, and
nothing stale is left after a crash or a reboot. What the file says (pid, action, since when) is for people.

Past the deadline the worker is killed: either it goes at once, or it is stuck in the one kernel call it is in
and goes when that returns, without making another. It decides nothing about devices; called by `binding` and
`reset`.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from orchestrator.agent.devices import writer
from orchestrator.model.errors import HostError

#: How long a killed worker gets to go before it counts as stuck in the kernel.
_KILL_GRACE_S = 0.5


@dataclass(frozen=True)
class Write:
    """One write to sysfs."""

    path: Path
    text: str
    #: Left out where the file is not there: to unbind what has no driver is nothing to do.
    optional: bool = False


@dataclass(frozen=True)
class InFlight:
    """A worker that has not come back."""

    pid: int | None
    action: str


class WriteFailedError(Exception):
    """The kernel refused a write."""

    def __init__(self, path: str, number: int) -> None:
        super().__init__(f"{path}: {os.strerror(number)}")
        self.path = path
        self.errno = number


class OverdueError(Exception):
    """The deadline passed."""

    def __init__(self, pid: int, deadline_s: float, *, stuck: bool) -> None:
        state = f"process {pid} hangs in the kernel" if stuck else "it was ended"
        super().__init__(f"no answer within {deadline_s:g} s; {state}")
        self.stuck = stuck


class BusyError(Exception):
    """An earlier worker for this device has not come back."""

    def __init__(self, earlier: InFlight) -> None:
        super().__init__(f"process {earlier.pid or 'unknown'} still hangs in an earlier {earlier.action}")


class Worker(Protocol):
    """Makes kernel calls on behalf of one device; all raise BusyError and OverdueError."""

    def write(self, address: str, action: str, writes: Sequence[Write]) -> None:
        """Do the writes in order; WriteFailedError at the first that fails, with the rest left undone."""

    def read(self, address: str, path: Path) -> str | None:
        """Read an attribute that the kernel guards with the device lock; None where it cannot be read."""

    def in_flight(self, address: str) -> InFlight | None:
        """Tell whether a worker for this device has not come back."""


class ProcessWorker:
    """The real worker.

    Args:
        marker_dir: where the marks are; made when needed. On /run, where other agents of this host look too.
        deadline_s: seconds for one call.
        kill: how an overdue process is ended; tests put a kernel in its place that does not let it die.
    """

    def __init__(
        self,
        marker_dir: Path,
        deadline_s: float,
        kill: Callable[[subprocess.Popen[bytes]], None] = subprocess.Popen.kill,
    ) -> None:
        self._marker_dir = marker_dir
        self._deadline_s = deadline_s
        self._kill = kill
        self._stuck: list[subprocess.Popen[bytes]] = []

    def write(self, address: str, action: str, writes: Sequence[Write]) -> None:
        """Do the writes in order in a fresh process."""
        steps = [[str(each.path), each.text, each.optional] for each in writes]
        program = [sys.executable, "-I", "-S", str(Path(writer.__file__)), json.dumps(steps)]
        code, output = self._run(address, action, program)
        try:
            answer = json.loads(output)
        except ValueError as exc:
            raise HostError(
                "device.worker_died", f"the worker for {address} ended with status {code}"
            ) from exc
        if answer:
            raise WriteFailedError(str(answer["path"]), int(answer["errno"]))

    def read(self, address: str, path: Path) -> str | None:
        """Read by `cat`, which starts faster than an interpreter."""
        code, output = self._run(address, "read", ["cat", "--", str(path)])
        return output.decode("utf-8", "replace").strip() if code == 0 else None

    def in_flight(self, address: str) -> InFlight | None:
        """Try the lock; a mark whose worker is gone is cleared."""
        if not self._path(address).exists():
            return None
        try:
            mark = self._acquire(address)
        except BusyError:
            return self._describe(address)
        self._release(address, mark)
        return None

    def _run(self, address: str, action: str, program: Sequence[str]) -> tuple[int, bytes]:
        self._stuck = [process for process in self._stuck if process.poll() is None]
        mark = self._acquire(address)
        try:
            process = self._start(program, mark)
        except OSError as exc:
            self._release(address, mark)
            raise HostError(
                "device.worker_failed", f"no worker for {address} could be started: {exc}"
            ) from exc
        try:
            about = {"pid": process.pid, "action": action, "since": time.time()}
            os.pwrite(mark, json.dumps(about).encode(), 0)
            output, _ = process.communicate(timeout=self._deadline_s)
        except subprocess.TimeoutExpired:
            raise OverdueError(process.pid, self._deadline_s, stuck=self._end(process)) from None
        finally:
            if process.returncode is None:
                # The worker alone holds the mark from here: it goes when the worker does.
                os.close(mark)
            else:
                self._release(address, mark)
        return process.returncode, output

    @staticmethod
    def _start(program: Sequence[str], mark: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            program,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pass_fds=(mark,),
            # Ctrl-C and the agent's own end must not cut a rebinding in the middle.
            start_new_session=True,
            env={"LC_ALL": "C", "PATH": os.environ.get("PATH", os.defpath)},
        )

    def _end(self, process: subprocess.Popen[bytes]) -> bool:
        """Kill an overdue worker; tell whether it is stuck."""
        self._kill(process)
        if process.stdout is not None:
            process.stdout.close()
        try:
            process.wait(_KILL_GRACE_S)
        except subprocess.TimeoutExpired:
            self._stuck.append(process)
            return True
        return False

    def _path(self, address: str) -> Path:
        return self._marker_dir / f"{address}.json"

    def _acquire(self, address: str) -> int:
        """Lock the device's mark and return its descriptor."""
        path = self._path(address)
        try:
            self._marker_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            while True:
                mark = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                try:
                    fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if self._is_at(path, mark):
                        os.ftruncate(mark, 0)
                        return mark
                except BlockingIOError:
                    os.close(mark)
                    raise BusyError(self._describe(address)) from None
                # Whoever held it before took the file away between our open and our lock.
                os.close(mark)
        except OSError as exc:
            raise HostError("device.worker_failed", f"cannot mark {address} at {path}: {exc}") from exc

    def _release(self, address: str, mark: int) -> None:
        self._path(address).unlink(missing_ok=True)
        os.close(mark)

    @staticmethod
    def _is_at(path: Path, mark: int) -> bool:
        try:
            there = path.stat()
        except FileNotFoundError:
            return False
        ours = os.fstat(mark)
        return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)

    def _describe(self, address: str) -> InFlight:
        try:
            about = json.loads(self._path(address).read_text())
            return InFlight(int(about["pid"]), str(about["action"]))
        except (OSError, ValueError, KeyError):
            # Read between the lock and the writing of the text; the lock alone counts.
            return InFlight(None, "call")
