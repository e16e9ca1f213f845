"""`bulkhead request ...`: what waits for capacity, and why it does not run yet."""

from __future__ import annotations

import typer

from orchestrator.cli.columns import Column, time
from orchestrator.cli.filters import by_state
from orchestrator.cli.verbs import Kind, add_list
from orchestrator.model.states import RequestState

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

COLUMNS = (
    Column("instance", "instance_id"),
    Column("state", "state"),
    Column("submitted", time("submitted_at")),
    Column("reason", "reason.message|reason.code", flexible=True),
    Column("counted", time("reason_at"), wide=True),
    Column("id", "id", wide=True),
    Column("tenant", "tenant_id", wide=True),
    Column("on_no_capacity", "on_no_capacity", wide=True),
    Column("decided", time("decided_at"), wide=True),
)


@app.callback()
def _noun() -> None:
    """What waits for capacity, and why."""


KIND = Kind(
    "request",
    COLUMNS,
    of_tenant=lambda tenant: tenant.requests,
    of_platform=lambda client: client.requests,
)
add_list(
    app, KIND, "List requests, oldest first, with the reason of each that waits.", (by_state(RequestState),)
)
