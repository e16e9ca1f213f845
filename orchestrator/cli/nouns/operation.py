"""`bulkhead operation ...`: work that was asked for, of a tenant or of the platform."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from orchestrator.cli import checks
from orchestrator.cli.columns import Column, time
from orchestrator.cli.filters import by_kind, by_reference, by_state
from orchestrator.cli.messages import say
from orchestrator.cli.options import (
    DEFAULT_TIMEOUT,
    ColumnsOption,
    DryRunOption,
    NoHeadersOption,
    OutputOption,
    PlatformOption,
    TenantOption,
    TimeoutOption,
)
from orchestrator.cli.output import show_object
from orchestrator.cli.progress import progress
from orchestrator.cli.running import seconds_of
from orchestrator.cli.session import session_of
from orchestrator.cli.verbs import Kind, add_list
from orchestrator.model.states import OperationState

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

IdArgument = Annotated[str, typer.Argument(metavar="ID", help="Id of the operation, op_...")]


def _steps(item: Mapping[str, Any]) -> str:
    return f"{item.get('steps_done', 0)}/{len(item.get('steps') or [])}"


COLUMNS = (
    Column("id", "id"),
    Column("kind", "kind"),
    Column("state", "state"),
    Column("steps", _steps, number=True),
    Column("error", "error.code", flexible=True),
    Column("subject", "subject_id", wide=True),
    Column("created", time("created_at"), wide=True),
    Column("finished", time("finished_at"), wide=True),
    Column("by", "principal_id", wide=True),
    Column("request", "request_id", wide=True),
)


KIND = Kind(
    "operation",
    COLUMNS,
    of_tenant=lambda tenant: tenant.operations,
    of_platform=lambda client: client.operations,
)
add_list(
    app,
    KIND,
    "List operations.",
    (
        by_state(OperationState),
        by_kind(),
        by_reference("subject", "subject", "Only those about this: an id."),
    ),
)


@app.command()
def show(
    context: typer.Context,
    identity: IdArgument,
    tenant: TenantOption = None,
    platform: PlatformOption = False,
    output: OutputOption = None,
    columns: ColumnsOption = None,
    no_headers: NoHeadersOption = False,
) -> None:
    """Show one operation and its steps."""
    session = session_of(context)
    form = session.form(output, columns, no_headers, COLUMNS)
    checks.reference("operation", identity)
    with KIND.open(session, tenant, platform=platform) as (_, operations, _same):
        show_object(operations[identity].get(), COLUMNS, form)


@app.command()
def wait(
    context: typer.Context,
    identity: IdArgument,
    tenant: TenantOption = None,
    platform: PlatformOption = False,
    timeout: TimeoutOption = DEFAULT_TIMEOUT,
    output: OutputOption = None,
) -> None:
    """Wait until an operation is over.

    Exit status 7: it is not yet. 8: it failed or was cancelled.
    """
    session = session_of(context)
    form = session.form(output, None, False)
    timeout_s = seconds_of(timeout)
    checks.reference("operation", identity)
    opened = KIND.open(session, tenant, platform=platform)
    with opened as (client, operations, _), progress() as shown:
        found = client.wait_for(operations[identity], timeout_s=timeout_s, told=shown.told)
    show_object(found, COLUMNS, form)


@app.command()
def cancel(
    context: typer.Context,
    identity: IdArgument,
    tenant: TenantOption = None,
    dry_run: DryRunOption = False,
    output: OutputOption = None,
) -> None:
    """Stop waiting for a place. What has begun on a host cannot be cancelled, only deleted afterwards."""
    session = session_of(context)
    form = session.form(output, None, False)
    checks.reference("operation", identity)
    with session.tenant(tenant) as (_, scope):
        answer = scope.operations[identity].act("cancel", dry_run=dry_run)
    show_object(answer.body, COLUMNS, form)
    say("dry run: nothing was changed" if dry_run else f"operation {identity} cancelled")
