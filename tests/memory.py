"""Where tests write: in memory where there is room, since stores, journals and keys sync each write."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

_MEMORY = Path("/dev/shm")
_FREE_MIB = 1024


def memory_folder() -> Path | None:
    """A folder where a synced write costs nothing; None where it is missing or small."""
    if not os.access(_MEMORY, os.W_OK) or shutil.disk_usage(_MEMORY).free < _FREE_MIB << 20:
        return None
    return _MEMORY
