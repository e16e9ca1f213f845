"""`bulkhead deployment ...`: the deployment as a whole, and going on after its database was restored."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.cli import checks
from orchestrator.cli.columns import Column, time
from orchestrator.cli.messages import say
from orchestrator.cli.options import (
    ColumnsOption,
    DryRunOption,
    NoHeadersOption,
    OutputOption,
    ReasonOption,
    YesOption,
)
from orchestrator.cli.output import show_object
from orchestrator.cli.running import confirm
from orchestrator.cli.session import session_of

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

COLUMNS = (
    Column("id", "id"),
    Column("epoch", "epoch", number=True),
    Column("observe_only", "observe_only"),
    Column("unheard", "unheard", flexible=True),
    Column("strays", "strays", number=True),
    Column("ahead", "ahead", flexible=True),
    Column("gone", "gone", flexible=True),
    Column("created", time("created_at"), wide=True),
)


@app.command()
def show(
    context: typer.Context,
    output: OutputOption = None,
    columns: ColumnsOption = None,
    no_headers: NoHeadersOption = False,
) -> None:
    """Show the deployment: whether it only observes, which hosts it has not heard yet, what does not agree.

    After a restore: `ahead` names instances that are in a later generation on their hosts, which is taken
    over on resuming; `gone` names instances that their hosts removed after the backup.
    """
    session = session_of(context)
    form = session.form(output, columns, no_headers, COLUMNS)
    with session.client() as client:
        show_object(client.deployment.get(), COLUMNS, form)


@app.command()
def resume(
    context: typer.Context,
    reason: ReasonOption,
    force: Annotated[
        bool, typer.Option("--force", help="Also while hosts have not reported since the restore.")
    ] = False,
    yes: YesOption = False,
    dry_run: DryRunOption = False,
    output: OutputOption = None,
) -> None:
    """Go on after a restore: hosts are made equal to what the database says, its removals included.

    Look first at what does not agree: bulkhead host list shows strays, bulkhead instance list errors.
    """
    session = session_of(context)
    form = session.form(output, None, False)
    words = checks.reason(reason)
    confirm("deployment", "resume", yes or dry_run, "resume")
    with session.client() as client:
        answer = client.deployment.act("resume", {"reason": words, "force": force}, dry_run=dry_run)
    show_object(answer.body, COLUMNS, form)
    say("dry run: nothing was changed" if dry_run else "the deployment goes on")
