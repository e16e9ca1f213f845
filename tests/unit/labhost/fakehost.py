"""A lab host with a small process of our own for QEMU and a function for ssh; pids and sockets are real."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from images.labhost import lab

#: Stands for QEMU: serves QMP in the folder it runs in, says who it is on the console, and stays until told.
PROGRAM = """
import json, signal, socket, sys
if "--stubborn" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
open("pid", "w").write("x")
served = socket.socket(socket.AF_UNIX)
served.bind("qmp.sock")
served.listen()
open("console.log", "w").write("Linux version 6.12 (fake)\\n")
while True:
    link, _ = served.accept()
    stream = link.makefile("rwb")
    stream.write(b'{"QMP": {}}\\n')
    stream.flush()
    for line in stream:
        asked = json.loads(line)["execute"]
        if asked == "quit" and "--stubborn" in sys.argv:
            answer = {"error": {"desc": "no"}}
        else:
            answer = {"return": {"status": "running"} if asked == "query-status" else {}}
        stream.write(b'{"event": "NOISE"}\\n' + json.dumps(answer).encode() + b"\\n")
        stream.flush()
        if asked == "quit" and "--stubborn" not in sys.argv:
            sys.exit(0)
"""


def recorded(*options: str, shape: str = "everyday") -> lab.Running:
    """The record from which the fake QEMU is started."""
    argv = (sys.executable, "-c", PROGRAM, *options, "-kernel", "/none")
    return lab.Running(0, "", 1, shape, "tcg", "7.2.0", argv)


class FakeHost(lab.LabHost):
    """`answer` is called in place of ssh; it may raise what `subprocess.run` raises."""

    def __init__(self, folder: Path, number: int = 1) -> None:
        super().__init__(number, folder)
        self.answer: Callable[[str], lab.Result] = lambda command: lab.Result(0, "", "")

    def _ssh(self, command: str, timeout_s: float, data: bytes | None) -> lab.Result:
        return self.answer(command)

    def boot(self, *options: str, shape: str = "everyday") -> lab.Running:
        """Start the fake QEMU and wait until its socket is there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._spawn(recorded(*options, shape=shape))
        assert lab._wait_for(lambda: (self.folder / "console.log").exists(), 60)
        running = self.running()
        assert running is not None
        return running

    def console(self, text: str) -> None:
        """Let the kernel say something more."""
        with (self.folder / "console.log").open("a") as stream:
            stream.write(text)
