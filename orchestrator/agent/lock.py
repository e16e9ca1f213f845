"""One agent per host: an flock that dies with its process."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.model.errors import ConflictError


@contextmanager
def host_lock(path: Path) -> Iterator[None]:
    """Hold the host for one agent.

    Raises:
        ConflictError: `agent.already_running`: another process holds it; its pid is in the message.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
            raise ConflictError(
                "agent.already_running",
                f"another agent (pid {holder}) holds {path}",
                hint="wait for it, or stop it: systemctl stop bulkhead-agent",
            ) from exc
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)
