"""Shows how hosts are prepared: one line a host that changes on a terminal, else a line for each task.

Writes to stderr only. Decides nothing: `hostprep.run` makes of the playbook's events what is shown here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from hostprep.run import HostOutcome, Outcomes, State
from orchestrator.cli.columns import clean
from orchestrator.cli.messages import say

_MARKS = {State.RUNNING: "...", State.DONE: "done", State.FAILED: "FAILED"}
#: What is shown of changes while they are made; all of them come with the result.
_LAST_CHANGES = 3


@contextmanager
def shown(outcomes: Outcomes) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Return what takes the playbook's events, as long as the block runs."""
    console = Console(stderr=True, highlight=False, emoji=False, markup=False)
    if not (console.is_terminal and sys.stderr.isatty()):
        yield _Lines(outcomes).see
        return
    with Live(console=console, refresh_per_second=4, transient=True) as live:

        def see(event: Mapping[str, Any]) -> None:
            if outcomes.see(event) is not None:
                live.update(_table(outcomes))

        yield see


class _Lines:
    """For logs and pipes: each task of each host once, when it has ended."""

    def __init__(self, outcomes: Outcomes) -> None:
        self._outcomes = outcomes
        self._told: dict[str, int] = {}

    def see(self, event: Mapping[str, Any]) -> None:
        host = self._outcomes.see(event)
        if host is None:
            return
        kind = event.get("event")
        if kind == "runner_on_ok":
            changes = host.changed[self._told.get(host.host, 0) :]
            self._told[host.host] = len(host.changed)
            say(f"  {host.host} {host.tasks} {host.task}{' - changed' if changes else ''}")
        elif kind in ("runner_on_failed", "runner_on_unreachable"):
            say(f"  {host.host} {host.task} FAILED")


def _table(outcomes: Outcomes) -> Table:
    """Return a line for each host, and what was changed last."""
    table = Table.grid(padding=(0, 1))
    for name in sorted(outcomes.hosts):
        host = outcomes.hosts[name]
        table.add_row(
            Text(host.host),
            Text(_MARKS[host.state]),
            Text(str(host.tasks)),
            _fitting(host.task),
            _count(host),
        )
        if len(outcomes.hosts) == 1:
            for each in host.changed[-_LAST_CHANGES:]:
                table.add_row("", "", "", _fitting(f"changed {each}"), "")
    return table


def _fitting(text: str) -> Text:
    return Text(clean(text), no_wrap=True, overflow="ellipsis")


def _count(host: HostOutcome) -> Text:
    return Text(f"{len(host.changed)} changed", no_wrap=True)
