"""The time that waits and pauses go by. Here alone, so that a test can be the clock."""

from __future__ import annotations

import time


def now() -> float:
    """Return seconds from some fixed moment."""
    return time.monotonic()


def sleep(seconds: float) -> None:
    """Let time pass."""
    time.sleep(seconds)
