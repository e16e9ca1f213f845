"""Completes names from the server: within a second, and silent when that fails.

Typer completes nouns, verbs and options by itself. Nothing here may print, wait long, or fail.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import typer

from orchestrator.cli.checks import is_reference
from orchestrator.cli.flags import Flags
from orchestrator.cli.session import Session
from orchestrator.client import Client, Collection
from orchestrator.model.errors import BulkheadError

_MOST = 200

Opener = Callable[[Session, str | None], AbstractContextManager[tuple[Client, Collection, Collection]]]


def names_of(opened: Opener) -> Callable[[typer.Context, str], list[str]]:
    """Return what completes the names of a collection."""

    def complete(context: typer.Context, incomplete: str) -> list[str]:
        session = _session(context)
        try:
            with opened(session, context.params.get("tenant")) as (_, things, _operations):
                found = things.page({"page_size": str(_MOST)})["items"]
        except (BulkheadError, OSError):
            return []
        names = [str(each.get("name") or each.get("id")) for each in found]
        # A shell would take apart, or a terminal obey, what no name holds.
        return [name for name in names if name.startswith(incomplete) and is_reference(name)]

    return complete


def _session(context: typer.Context) -> Session:
    """Completion runs no callback of the root, so the session is made of what is typed so far."""
    given: dict[str, Any] = context.find_root().params
    ca = given.get("ca")
    return Session(
        Flags(given.get("profile"), given.get("url"), Path(str(ca)) if ca else None, debug=False), quick=True
    )
