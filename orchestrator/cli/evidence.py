"""Evidence as a table: what was checked last, one line for each verdict. `instance` and `host` show it."""

from __future__ import annotations

from orchestrator.cli.columns import Column
from orchestrator.cli.messages import say
from orchestrator.cli.output import Form, Output, show_object, show_rows
from orchestrator.client import JsonObject

COLUMNS = (
    Column("check", "id", flexible=True),
    Column("of", "subject", flexible=True),
    Column("state", "status"),
    Column("expected", "expected", flexible=True),
    Column("read", "read", flexible=True),
)


def show(found: JsonObject, form: Form, none_yet: str) -> None:
    """Write evidence to stdout.

    Args:
        found: the API's object, with `verdicts`.
        none_yet: what to say to people when nothing was checked so far.
    """
    if form.output in (Output.JSON, Output.YAML):
        show_object(found, COLUMNS, form)
        return
    show_rows(found.get("verdicts") or [], COLUMNS, form)
    if found.get("verdicts") is None:
        say(f"{none_yet}: there is no evidence")
