"""Keeps the C library's heap of a long-lived process small; what Python itself keeps is not touched.

glibc gives each of many threads an arena, and raises by itself the size from which a freed block goes back at
once. In a process whose threads take turns that is memory nobody uses: a busy hour stays for ever. And what
is free between blocks in use goes back only when somebody asks.
"""

from __future__ import annotations

import ctypes
from typing import Any

#: How often a process that waits gives back what is free. It takes some milliseconds.
GIVE_BACK_S = 30.0
#: mallopt(3): numbers of <malloc.h>, and what they are set to.
_SETTINGS = (
    (-8, 2),  # M_ARENA_MAX: two are enough where one thread runs at a time
    (-3, 64 * 1024),  # M_MMAP_THRESHOLD: bytes from which a block goes back at once
    (-1, 128 * 1024),  # M_TRIM_THRESHOLD: free bytes at the heap's end from which they go back
)


def keep_small() -> bool:
    """Set it for this process, before it has threads; tell whether its C library is one that takes it."""
    mallopt = _of_glibc("mallopt")
    return mallopt is not None and all(mallopt(number, value) == 1 for number, value in _SETTINGS)


def give_back() -> bool:
    """Give the system what is free in the heap; tell whether there was anything."""
    trim = _of_glibc("malloc_trim")
    return trim is not None and trim(0) == 1


def _of_glibc(name: str) -> Any:
    """Return a function of the C library, or None where that has no such one."""
    return getattr(ctypes.CDLL(None), name, None)
