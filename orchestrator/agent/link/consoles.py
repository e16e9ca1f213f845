"""A real host's consoles: the pty that libvirt made for people, and the file that virtlogd keeps of it.

Decides how the bytes are reached, never who may see them: the controller asks only for whom it may. The pty
is opened raw, as a terminal of nobody. Called by `streams`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import termios
import tty
from collections.abc import Callable
from pathlib import Path

from orchestrator.agent.link.streams import MESSAGE_BYTES, ConsoleEnd
from orchestrator.model.errors import HostError, NotFoundError
from orchestrator.model.protocol import MAX_LOG_BYTES


class HostConsoles:
    """Consoles by instance id.

    Args:
        log_path: where an instance's console is kept.
        pty_of: the path of a running instance's pty; called in a thread. Raises `NotFoundError`.
    """

    def __init__(self, log_path: Callable[[str], str], pty_of: Callable[[str], str]) -> None:
        self._log_path = log_path
        self._pty_of = pty_of

    async def open(self, instance: str, kind: str, last_bytes: int = MAX_LOG_BYTES) -> ConsoleEnd:
        """Open one; see `streams.Consoles`."""
        if kind == "console-log":
            return KeptLog(Path(self._log_path(instance)), instance, last_bytes)
        path = await asyncio.to_thread(self._pty_of, instance)
        return Terminal(path, instance)


class KeptLog:
    """The end of a kept log, then an end."""

    def __init__(self, path: Path, instance: str, last_bytes: int) -> None:
        try:
            # A link here would be somebody's trick: virtlogd makes files.
            self._descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError as exc:
            raise NotFoundError("console.unknown", f"no console of {instance} is kept here") from exc
        except OSError as exc:
            raise HostError("console.failed", f"{path}: {exc.strerror}") from exc
        size = os.fstat(self._descriptor).st_size
        os.lseek(self._descriptor, max(0, size - last_bytes), os.SEEK_SET)
        # What is written while we read belongs to the next who asks.
        self._left = min(size, last_bytes)

    async def read(self) -> bytes:
        """Return the next piece."""
        data = os.read(self._descriptor, min(MESSAGE_BYTES, self._left))
        self._left -= len(data)
        return data

    async def write(self, data: bytes) -> None:
        """Nobody types into a log."""

    async def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


class Terminal:
    """A pty, both ways."""

    def __init__(self, path: str, instance: str) -> None:
        flags = os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            self._descriptor = os.open(path, flags)
        except OSError as exc:
            raise HostError("console.failed", f"the console of {instance}: {exc.strerror}") from exc
        try:
            tty.setraw(self._descriptor)
        except termios.error as exc:
            os.close(self._descriptor)
            raise HostError("console.failed", f"the console of {instance} is no terminal") from exc

    async def read(self) -> bytes:
        """Wait for output."""
        while True:
            try:
                return os.read(self._descriptor, MESSAGE_BYTES)
            except BlockingIOError:
                await self._ready(reading=True)
            except OSError as exc:
                # The other end of a pty that was closed: QEMU is gone.
                if exc.errno == errno.EIO:
                    return b""
                raise HostError("console.failed", f"the console cannot be read: {exc.strerror}") from exc

    async def write(self, data: bytes) -> None:
        """Type all of it; a guest that does not read makes us wait."""
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:
                await self._ready(reading=False)
            except OSError as exc:
                raise HostError("console.failed", f"the console takes nothing: {exc.strerror}") from exc

    async def close(self) -> None:
        """Close our side; the instance's stays."""
        with contextlib.suppress(OSError):
            os.close(self._descriptor)

    async def _ready(self, *, reading: bool) -> None:
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()
        watch, forget = (
            (loop.add_reader, loop.remove_reader) if reading else (loop.add_writer, loop.remove_writer)
        )
        # It may be called again before it is forgotten.
        watch(self._descriptor, lambda: None if ready.done() else ready.set_result(None))
        try:
            await ready
        finally:
            forget(self._descriptor)
