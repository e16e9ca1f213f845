"""Asks a guest over its virtio-serial socket and hands the bytes to a worker without rights.

Connects, starts the worker, bounds its time and its output, checks what it printed again. The guest's own
bytes are never parsed in this process. The `bulkhead agent ask` command and tests call it.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.agent.guest import worker
from orchestrator.model.errors import HostError, InvalidInputError

#: `nobody`: owns no file.
NOBODY = 65534
_MAX_REQUEST_BYTES = 256 * 1024
#: The worker keeps the deadline itself; it is killed so much later, in case it does not (an emulated host is
#: slow).
_GRACE_S = 5.0


class GuestChannel:
    """Questions to guests, one process each."""

    def __init__(self, uid: int = NOBODY, gid: int = NOBODY, python: str = sys.executable) -> None:
        self._uid = uid
        self._gid = gid
        self._python = python

    def ask(self, socket_path: str, request: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """Send one request and return its bounded, parsed answer (with `id` and `ok`).

        Raises:
            HostError: `guest.no_answer`, `guest.bad_answer`.
            InvalidInputError: `guest.bad_request`.
        """
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with connection:
            connection.settimeout(timeout_s)
            try:
                connection.connect(socket_path)
            except OSError as exc:
                raise HostError(
                    "guest.no_answer",
                    f"the guest channel {socket_path} cannot be reached: {exc.strerror or exc}",
                ) from exc
            return self.ask_connected(connection, request, timeout_s)

    def ask_connected(
        self, connection: socket.socket, request: Mapping[str, Any], timeout_s: float
    ) -> dict[str, Any]:
        """As `ask`, over a socket that is connected already."""
        number = 1 + secrets.randbelow(2**48)
        try:
            line = json.dumps({**request, "id": number}, allow_nan=False).encode()
        except (TypeError, ValueError) as exc:
            raise InvalidInputError("guest.bad_request", "the request is not JSON") from exc
        if len(line) > _MAX_REQUEST_BYTES:
            raise InvalidInputError(
                "guest.bad_request", f"the request is longer than {_MAX_REQUEST_BYTES} bytes"
            )
        status, told = self._run(connection.fileno(), line, timeout_s)
        if status == worker.EXIT_NO_ANSWER:
            raise HostError("guest.no_answer", f"no answer within {timeout_s} s: {_shown(told)}")
        if status == worker.EXIT_BAD_ANSWER:
            raise HostError("guest.bad_answer", f"the guest's answer was refused: {_shown(told)}")
        if status != 0:
            raise HostError(
                "guest.bad_answer", f"the worker that read the guest's answer ended with {status}"
            )
        try:
            reply = worker.parse(told)
            worker.expect_shape(reply)
        except worker.BadAnswer as exc:
            raise HostError("guest.bad_answer", f"the worker's output was refused: {exc}") from exc
        if not worker.is_answer(reply, number):
            raise HostError("guest.bad_answer", "the worker's output answers another question")
        return reply

    def _run(self, descriptor: int, request: bytes, timeout_s: float) -> tuple[int, bytes]:
        """Run the worker to its end; its status and at most so much output as an answer may have."""
        command = [self._python, "-I", "-S", str(Path(worker.__file__).resolve()), str(descriptor)]
        command += [str(self._uid), str(self._gid), str(timeout_s)]
        # From memory, not a pipe: a request longer than a pipe would need someone to keep writing.
        stdin = os.memfd_create("bulkhead-request", os.MFD_CLOEXEC)
        try:
            os.write(stdin, request)
            os.lseek(stdin, 0, os.SEEK_SET)
            child = subprocess.Popen(
                command,
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={},
                cwd="/",
                pass_fds=(descriptor,),
                start_new_session=True,
            )
        except OSError as exc:
            raise HostError("guest.no_answer", f"the worker cannot be started: {exc.strerror}") from exc
        finally:
            os.close(stdin)
        try:
            return _collect(child, timeout_s + _GRACE_S)
        finally:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            child.wait()
            if child.stdout is not None:
                child.stdout.close()


def _collect(child: subprocess.Popen[bytes], timeout_s: float) -> tuple[int, bytes]:
    """Read what the worker prints, within bounds."""
    assert child.stdout is not None  # noqa: S101 (opened as a pipe one line above)
    ends_s = time.monotonic() + timeout_s
    found = bytearray()
    poll = select.poll()
    poll.register(child.stdout, select.POLLIN)
    while True:
        left_s = ends_s - time.monotonic()
        if left_s <= 0 or not poll.poll(left_s * 1000):
            raise HostError("guest.no_answer", "the worker did not end in time and was killed")
        chunk = os.read(child.stdout.fileno(), 65536)
        if not chunk:
            break
        found += chunk
        if len(found) > worker.MAX_OUTPUT_BYTES:
            raise HostError("guest.bad_answer", "the worker's output is too long")
    try:
        return child.wait(max(0.1, ends_s - time.monotonic())), bytes(found)
    except subprocess.TimeoutExpired as exc:
        raise HostError("guest.no_answer", "the worker did not end in time and was killed") from exc


def _shown(told: bytes) -> str:
    """What the worker gave as its reason, as harmless text."""
    text = told[:100].decode("ascii", "replace")
    return "".join(c for c in text if c.isprintable()) or "no reason"
