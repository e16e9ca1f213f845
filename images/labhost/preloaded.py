"""The product's commands in a lab host, without waiting for Python to start each time: one end of `inside`.

One ssh session carries requests and answers, one at a time; it is opened when it is first needed, and anew
after a reboot. Called by `session`.
"""

from __future__ import annotations

import base64
import json
import select
import subprocess
import time
from typing import Any

from images.labhost import commands, lab

_PROGRAM = f"cd {commands.SOURCE} && exec /opt/bulkhead/venv/bin/python -m images.labhost.inside"
START_LIMIT_S = 120.0


class Preloaded:
    """The commands of one lab host."""

    def __init__(self, host: lab.LabHost) -> None:
        self._host = host
        self._process: subprocess.Popen[bytes] | None = None

    def run(
        self, *argv: str, timeout_s: float, stdin: bytes = b"", kill_after: int | None = None
    ) -> lab.Result:
        """Run `bulkhead ARGV...` as root in the lab host.

        Args:
            kill_after: the number of lines on its stderr after which it gets SIGKILL (status 137).

        Raises:
            LabDiedError: the lab host itself is dead.
            CommandError: it took longer than `timeout_s`; it was killed.
        """
        request: dict[str, Any] = {"argv": argv, "stdin": base64.b64encode(stdin).decode()}
        if kill_after is not None:
            request["kill_after"] = kill_after
        process = self._ready()
        assert process.stdin is not None  # noqa: S101 - opened as a pipe
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
        except OSError as exc:
            raise self._lost(f"bulkhead {' '.join(argv)}") from exc
        return lab.Result(**self._answer(process, timeout_s, f"bulkhead {' '.join(argv)}"))

    def close(self) -> None:
        """End it, and a command that still runs."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _ready(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.close()
        self._host.ssh("true")  # says why, if the lab host is dead
        self._process = subprocess.Popen(
            [*self._host.ssh_argv(), _PROGRAM], cwd=self._host.folder,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self._answer(self._process, START_LIMIT_S, "the start of the product")
        return self._process

    def _answer(self, process: subprocess.Popen[bytes], timeout_s: float, what: str) -> dict[str, Any]:
        assert process.stdout is not None  # noqa: S101 - opened as a pipe
        end = time.monotonic() + timeout_s
        while select.select([process.stdout], [], [], max(0.0, end - time.monotonic()))[0]:
            # An answer is written whole, so that a line that has begun also ends.
            line = process.stdout.readline()
            if not line:
                raise self._lost(what)
            found: dict[str, Any] = json.loads(line)
            return found
        self.close()
        self._host.raise_if_dead()
        raise lab.CommandError(f"took longer than {timeout_s:.0f} s in the lab host: {what}")

    def _lost(self, what: str) -> lab.LabError:
        self.close()
        self._host.raise_if_dead()
        return lab.CommandError(f"the connection ended during {what}")
