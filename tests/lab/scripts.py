"""Shell scripts to run inside guests."""

from __future__ import annotations


def ping(target: str, tries: int = 10) -> str:
    """Status 0 once an echo is answered. Each try waits 4 s: a guest on a busy emulated host is slow.

    The guest's kernel gives up a neighbour after three seconds of silence, whatever ping waits; hence tries.
    """
    return f"for i in $(seq {tries}); do ping -c 1 -W 4 {target} >/dev/null 2>&1 && exit 0; done; exit 1"
