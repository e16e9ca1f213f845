"""Shows how far an operation is while a command waits for it: one line that changes, or one line a step.

Writes to stderr only. Decides nothing: `client.operations` waits.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.status import Status
from rich.text import Text

from orchestrator.cli.columns import clean
from orchestrator.cli.messages import say

#: What the moving mark takes of a line, with the space behind it.
_SPINNER = 2


class Progress:
    """Is told an operation after each look at it."""

    def __init__(self, status: Status | None) -> None:
        self._status = status
        self._said: set[str] = set()

    def told(self, operation: dict[str, Any]) -> None:
        """Say what is new."""
        steps = [each for each in operation.get("steps") or [] if isinstance(each, dict)]
        if self._status is not None:
            # One line, however narrow the terminal is: the request shows the whole reason.
            line = Text(_line(operation, steps))
            line.truncate(self._status.console.width - _SPINNER, overflow="ellipsis")
            self._status.update(line)
            return
        if (waits := _waits(operation)) and waits not in self._said:
            self._said.add(waits)
            say(f"  {operation.get('kind', '')} {waits}")
        for number, step in enumerate(steps, 1):
            name = str(step.get("name", ""))
            counted = _counted(step)
            if counted and step.get("state") == "running" and f"{name}{counted}" not in self._said:
                self._said.add(f"{name}{counted}")
                say(f"  {operation.get('kind', '')} {number}/{len(steps)} {name}{counted}")
            if step.get("state") in ("done", "failed") and name not in self._said:
                self._said.add(name)
                say(f"  {operation.get('kind', '')} {number}/{len(steps)} {name} {step['state']}")


def _line(operation: dict[str, Any], steps: list[dict[str, Any]]) -> str:
    done = sum(1 for step in steps if step.get("state") == "done")
    now = next(
        (f"{each.get('name')}{_counted(each)}" for each in steps if each.get("state") == "running"), ""
    )
    return clean(f"{operation.get('kind', '')} {done}/{len(steps)} {_waits(operation) or now}")


def _waits(operation: dict[str, Any]) -> str:
    """Say why it does not go on, if it waits for capacity."""
    waits = operation.get("waits")
    if not isinstance(waits, dict):
        return ""
    reason = waits.get("reason") or {}
    ahead = waits.get("ahead")
    place = f" behind {ahead} of your own" if ahead else ""
    return f"waits{place}: {reason['message']}" if reason.get("message") else f"waits{place}"


def _counted(step: dict[str, Any]) -> str:
    return f" ({step.get('done')} of {step['total']})" if step.get("total") else ""


@contextmanager
def progress() -> Iterator[Progress]:
    """Show progress as long as the block runs: a moving line on a terminal, else a line per step."""
    console = Console(stderr=True, highlight=False, emoji=False, markup=False)
    if not (console.is_terminal and sys.stderr.isatty()):
        yield Progress(None)
        return
    with console.status(Text("waiting")) as status:
        yield Progress(status)
