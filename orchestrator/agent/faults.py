"""Named fault points: where tests make an effect fail, or the whole agent die.

`Effects` passes through one before and one after every effect on the host. In a real agent the hook is
unset and a fault point costs one comparison. The list of names is what a recording hook saw: nothing has to
be kept in step.
"""

from __future__ import annotations

from collections.abc import Callable

Hook = Callable[[str], None]

_hook: Hook | None = None


def faultpoint(name: str) -> None:
    """Pass the point `name`; a test's hook may raise here."""
    if _hook is not None:
        _hook(name)


def set_hook(hook: Hook | None) -> None:
    """Set or clear (None) the process-wide hook. Tests only."""
    global _hook
    _hook = hook
