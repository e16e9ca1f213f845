"""Runs inside the lab host: carries out the product's commands in children of a process that has loaded it.

A start of Python takes five emulated seconds, a fork a tenth of one. What a child runs is the command line
from its first line on, in a process of its own that can be killed like any other. Requests come on standard
input, one JSON object a line: `argv`, `stdin` (base64), and `kill_after`, the number of lines on the
command's stderr after which it gets SIGKILL. Answers go to standard output: `rc`, `stdout`, `stderr`.
`preloaded` is the other end; when that goes away, so does a command that still runs.
"""

from __future__ import annotations

import base64
import contextlib
import importlib
import json
import os
import selectors
import signal
import sys
from typing import Any

#: What the agent's commands load when they run.
_LOADED = (
    "orchestrator.processes.agent_commands", "orchestrator.agent.devices", "orchestrator.agent.evidence",
    "orchestrator.agent.guest", "orchestrator.agent.libvirt", "orchestrator.agent.network",
    "orchestrator.agent.volumes", "hostprep.probe",
)  # fmt: skip
_PIECE = 1 << 16


def main() -> None:
    """Answer requests until standard input ends."""
    for name in _LOADED:
        importlib.import_module(name)
    # The real ones are the channel; children get pipes in their place.
    asked, answers = os.dup(0), os.dup(1)
    os.set_inheritable(asked, False)
    os.set_inheritable(answers, False)
    _say(answers, {"ready": os.getpid()})
    with os.fdopen(asked, "rb") as lines:
        while line := lines.readline():
            _say(answers, _carry_out(json.loads(line), asked, answers))


def _carry_out(request: dict[str, Any], channel: int, answers: int) -> dict[str, Any]:
    pipes = [os.pipe() for _ in range(3)]
    child = os.fork()
    if child == 0:
        for number, (reading, writing) in enumerate(pipes):
            os.dup2(reading if number == 0 else writing, number)
        for end in (*(end for ends in pipes for end in ends), channel, answers):
            os.close(end)
        os._exit(_command(request["argv"]))
    (stdin_end, into), (out, out_end), (err, err_end) = pipes
    for end in (stdin_end, out_end, err_end):
        os.close(end)
    followed = _Followed(child, into, {"stdout": out, "stderr": err}, request, channel)
    said = followed.to_its_end()
    _pid, status = os.waitpid(child, 0)
    rc = os.waitstatus_to_exitcode(status)
    return {"rc": rc if rc >= 0 else 128 - rc, **said}


def _command(argv: list[str]) -> int:
    """Be the command line; return its exit status."""
    from orchestrator.__main__ import main as bulkhead

    sys.argv = ["bulkhead", *argv]
    code = 0
    try:
        bulkhead()
    except SystemExit as exc:
        code = exc.code if isinstance(exc.code, int) else 0 if exc.code is None else 1
    except BaseException:
        # As the interpreter does at its end.
        sys.excepthook(*sys.exc_info())
        code = 1
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    return code


class _Followed:
    """A child that is fed, read, and killed when it is time to.

    Args:
        into: the child's standard input.
        ends: by name, what it says.
        channel: readable when whoever asked is gone.
    """

    def __init__(
        self, child: int, into: int, ends: dict[str, int], request: dict[str, Any], channel: int
    ) -> None:
        self._child, self._into, self._ends, self._channel = child, into, ends, channel
        self._waiting = memoryview(base64.b64decode(request.get("stdin", "")))
        self._said = {end: bytearray() for end in ends.values()}
        self._kill_after: int | None = request.get("kill_after")
        self._selector = selectors.DefaultSelector()

    def to_its_end(self) -> dict[str, str]:
        """Return what the child said until it was over; what a grandchild may still say is not waited for."""
        over = os.pidfd_open(self._child)
        for end in (over, self._channel, *self._said):
            self._selector.register(end, selectors.EVENT_READ)
        self._selector.register(self._into, selectors.EVENT_WRITE)
        for end in (self._into, *self._said):
            os.set_blocking(end, False)
        ended = False
        while not ended:
            ready = {key.fd for key, _events in self._selector.select()}
            ended = over in ready
            if self._channel in ready:
                # Nobody asks before an answer: the other end is gone.
                os.kill(self._child, signal.SIGKILL)
                self._selector.unregister(self._channel)
            if self._into in ready:
                self._feed()
            for end in self._said if ended else ready & self._said.keys():
                self._read(end)
        for end in {key.fd for key in self._selector.get_map().values()} - {self._channel}:
            os.close(end)
        self._selector.close()
        return {name: self._said[end].decode(errors="replace") for name, end in self._ends.items()}

    def _feed(self) -> None:
        try:
            if self._waiting:
                self._waiting = self._waiting[os.write(self._into, self._waiting) :]
        except BrokenPipeError:
            self._waiting = self._waiting[:0]
        if not self._waiting:
            self._done_with(self._into)

    def _read(self, end: int) -> None:
        """Read what is there now."""
        with contextlib.suppress(BlockingIOError):
            while end in self._selector.get_map():
                data = os.read(end, _PIECE)
                if not data:
                    self._done_with(end)
                self._said[end] += data
                self._kill_if_due()

    def _kill_if_due(self) -> None:
        if self._kill_after is not None and self._said[self._ends["stderr"]].count(b"\n") >= self._kill_after:
            os.kill(self._child, signal.SIGKILL)

    def _done_with(self, end: int) -> None:
        self._selector.unregister(end)
        os.close(end)


def _say(answers: int, what: dict[str, Any]) -> None:
    rest = memoryview(json.dumps(what).encode() + b"\n")
    while rest:
        rest = rest[os.write(answers, rest) :]


if __name__ == "__main__":
    main()
