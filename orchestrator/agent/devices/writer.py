"""The program of the worker process: writes files in order, then says how it went. Standard library only.

It runs as `python -I -S writer.py JSON`, JSON being a list of `[path, text, optional]`. It stops at the first
write that fails and prints `{"path": ..., "errno": ...}` for it, or `{}` when all went well. A write to an
optional file that is not there (any more) is left out. It is a program of its own because a write to sysfs
may hang in the kernel for ever; whoever waits for it must be another process.
"""

from __future__ import annotations

import errno
import json
import os
import sys

_GONE = (errno.ENOENT, errno.ENODEV, errno.ENXIO)


def write_all(steps: list[tuple[str, str, bool]]) -> dict[str, object]:
    """Do the writes; return what failed, or nothing."""
    for path, text, optional in steps:
        try:
            write(path, text)
        except OSError as exc:
            if optional and exc.errno in _GONE:
                continue
            return {"path": path, "errno": exc.errno or errno.EIO}
    return {}


def write(path: str, text: str) -> None:
    """Hand the text to the kernel in one call; sysfs takes each call for a whole value."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    answer = write_all([(path, text, optional) for path, text, optional in json.loads(sys.argv[1])])
    try:
        os.write(1, json.dumps(answer).encode())
    except OSError:
        # Whoever asked gave up or died; the state of the device speaks for itself.
        sys.exit(1)
