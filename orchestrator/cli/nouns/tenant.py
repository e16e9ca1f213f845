"""`bulkhead tenant ...`: tenants, which operators make and take away."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.cli import checks
from orchestrator.cli.columns import Column, time
from orchestrator.cli.messages import say
from orchestrator.cli.nouns.quota import limits_of
from orchestrator.cli.options import DEFAULT_TIMEOUT, DryRunOption, OutputOption
from orchestrator.cli.output import show_object
from orchestrator.cli.running import finish, waiting
from orchestrator.cli.session import session_of
from orchestrator.cli.verbs import Kind, add_delete, add_list, add_show
from orchestrator.client import JsonObject

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

COLUMNS = (
    Column("name", "name", flexible=True),
    Column("state", "state"),
    Column("id", "id"),
    Column("created", time("created_at")),
    Column("generation", "generation", wide=True, number=True),
)

KIND = Kind("tenant", COLUMNS, of_platform=lambda client: client.tenants)

add_list(app, KIND, "List tenants.")
add_show(app, KIND, "Show one tenant.")


@app.command()
def create(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its name, unique on the platform.")],
    limits: Annotated[
        list[str] | None,
        typer.Option("--limit", metavar="WHAT=N", help="A limit of its quota; repeat it for more."),
    ] = None,
    dry_run: DryRunOption = False,
    output: OutputOption = None,
) -> None:
    """Make a tenant. What no --limit names it may not use at all.

    \b
    bulkhead tenant create acme --limit instances=8 --limit vcpus=64 \\
      --limit memory_mib=262144 --limit gpus=8 --limit disk_gib=2000 \\
      --limit volumes=16 --limit networks=4
    """
    session = session_of(context)
    form = session.form(output, None, False)
    body = {"name": checks.name("tenant", name), "limits": limits_of(limits or [])}
    with session.client() as client:
        answer = client.tenants.create(body, dry_run=dry_run)
        finish(
            client,
            answer,
            waiting(False, DEFAULT_TIMEOUT, dry_run),
            operations=client.operations,
            columns=COLUMNS,
            form=form,
            subject=client.tenants[name],
            done=f"tenant {name} made",
        )


@app.command("set")
def set_(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name or id.")],
    new_name: Annotated[str, typer.Option("--name", metavar="NEW", help="Its new name.")],
    dry_run: DryRunOption = False,
    output: OutputOption = None,
) -> None:
    """Rename a tenant. Refused if somebody else changed it meanwhile."""
    session = session_of(context)
    form = session.form(output, None, False)
    checks.reference("tenant", name)
    body: JsonObject = {"name": checks.name("tenant", new_name)}
    with session.client() as client:
        thing = client.tenants[name]
        answer = thing.set(body, thing.read().tag, dry_run=dry_run)
    show_object(answer.body, COLUMNS, form)
    say("dry run: nothing was changed" if dry_run else f"tenant {name} is {new_name} now")


add_delete(app, KIND, "Delete a tenant that has nothing left. Its keys are destroyed, its audit log stays.")
