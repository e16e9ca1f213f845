"""The deployment: what a database and its hosts believe to be one."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Deployment:
    """The one deployment of a database.

    Args:
        epoch: raised when the database was brought back from a backup; agents refuse a lower one.
        observe_only: agents look and report, and nothing is placed or removed.
    """

    id: str
    epoch: int
    observe_only: bool
    created_ms: int
