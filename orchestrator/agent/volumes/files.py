"""Files that survive a crash: written whole under another name, synced, then named; wiped before they go.

Never decides what a file means. Volumes, images and seeds call it. Every OSError becomes a `HostError` here,
or a `CapacityError` when the disk is full.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.model.errors import BulkheadError, CapacityError, HostError

_CHUNK_BYTES = 1 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Turn an OSError into `volume.no_space` or `volume.io_failed`, told with what was being done."""
    try:
        yield
    except OSError as exc:
        raise io_error(doing, exc) from exc


def io_error(doing: str, exc: OSError) -> BulkheadError:
    """Make the error for an OSError."""
    if exc.errno in _FULL:
        return CapacityError("volume.no_space", f"no space left while {doing}")
    return HostError("volume.io_failed", f"{doing} failed: {exc.strerror or exc}")


def sync_directory(path: Path) -> None:
    """Make names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_file(path: Path) -> None:
    """Make a file's content durable, whoever wrote it."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_atomically(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Give `path` this content, whole or not at all, durably."""
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(fd, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        part.rename(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def read_small(path: Path, limit_bytes: int) -> bytes | None:
    """Read a small regular file of ours; None when it is missing, no regular file or too large."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as exc:
        if exc.errno == errno.ELOOP:
            return None
        raise
    with os.fdopen(fd, "rb") as stream:
        content = stream.read(limit_bytes + 1)
    return content if len(content) <= limit_bytes else None


def wipe(path: Path, head_bytes: int) -> None:
    """Overwrite a file's head with zeros on disk, give its blocks back, unlink it. Missing is fine."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        # Never longer than the file: a full disk must not stand in the way of erasing.
        left = min(head_bytes, os.fstat(fd).st_size)
        while left > 0:
            left -= os.write(fd, bytes(min(left, _CHUNK_BYTES)))
        os.fsync(fd)
        os.ftruncate(fd, 0)
        os.fsync(fd)
    finally:
        os.close(fd)
    path.unlink(missing_ok=True)
    sync_directory(path.parent)
