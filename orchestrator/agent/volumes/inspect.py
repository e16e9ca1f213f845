"""Refuses an image that is declared raw and looks like something else.

A second line behind `-f raw`: bytes that some tool would take for qcow2, VMDK and so on never enter a volume.
Never decides by name. The image cache calls it.
"""

from __future__ import annotations

import os
from typing import IO, cast

from orchestrator.model.errors import ConflictError, HostError

_CHUNK_BYTES = 1 << 20
#: oslo.utils' own names for "nothing but bytes" and "a partition table on bytes".
_RAW = frozenset({"raw", "gpt"})


def refuse_other_format(fd: int) -> None:
    """Look at the whole open file as all known formats at once.

    Raises:
        ConflictError: `image.format_refused`.
        HostError: `image.inspector_missing`, `image.unreadable`.
    """
    try:
        from oslo_utils.imageutils import format_inspector
    except ImportError as exc:
        raise HostError(
            "image.inspector_missing",
            f"images cannot be inspected: no module {exc.name}",
            hint="install bulkhead[host]",
        ) from exc
    wrapper = format_inspector.InspectWrapper(cast(IO[bytes], _Reader(fd)))
    try:
        while wrapper.read(_CHUNK_BYTES):
            pass
        wrapper.close()
        found = {str(inspector) for inspector in wrapper.formats or ()}
    except OSError as exc:
        raise HostError("image.unreadable", f"the image cannot be read: {exc.strerror}") from exc
    except (
        Exception
    ) as exc:  # the inspectors parse hostile bytes: whatever they trip over is no plain raw image
        raise ConflictError(
            "image.format_refused", f"the image upsets the inspector: {type(exc).__name__}"
        ) from exc
    if not found <= _RAW:
        named = ", ".join(sorted(found))
        raise ConflictError("image.format_refused", f"declared raw, but looks like {named}")


class _Reader:
    """Reads a descriptor from its start without moving its position."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._offset = 0

    def read(self, size: int) -> bytes:
        chunk = os.pread(self._fd, size, self._offset)
        self._offset += len(chunk)
        return chunk

    def close(self) -> None:
        """The descriptor belongs to the caller."""
