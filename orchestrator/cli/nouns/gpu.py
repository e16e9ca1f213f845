"""`bulkhead gpu ...`: the GPUs of the pool, and their way between tenants."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.cli import checks
from orchestrator.cli.columns import Column, time
from orchestrator.cli.completion import names_of
from orchestrator.cli.filters import by_gpu_model, by_reference, by_state
from orchestrator.cli.messages import say
from orchestrator.cli.options import DryRunOption, OutputOption, ReasonOption
from orchestrator.cli.output import show_object
from orchestrator.cli.session import session_of
from orchestrator.cli.verbs import Kind, add_list, add_show
from orchestrator.client import JsonObject
from orchestrator.model.states import GpuState

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

COLUMNS = (
    Column("id", "id"),
    Column("state", "state"),
    Column("host", "host_id"),
    Column("address", "address"),
    Column("model", lambda item: f"{item.get('vendor')}:{item.get('device')}", wide=True),
    Column("node", "node", wide=True, number=True),
    Column("serial", "serial", wide=True),
    Column("tenancy", "tenancy", wide=True, number=True),
    Column("tenant", "tenant_id", wide=True),
    Column("instance", "instance_id", wide=True),
    Column("reason", "reason", wide=True),
    Column("created", time("created_at"), wide=True),
)
KIND = Kind("gpu", COLUMNS, of_platform=lambda client: client.gpus)

IdArgument = Annotated[
    str, typer.Argument(metavar="ID", help="Id of the GPU, gpu_...", autocompletion=names_of(KIND.open))
]

add_list(
    app,
    KIND,
    "List GPUs.",
    (by_state(GpuState), by_reference("host", "host", "Only those of this host."), by_gpu_model()),
)
add_show(app, KIND, "Show one GPU with the evidence of its last cleaning.")


def _act(
    context: typer.Context,
    verb: str,
    identity: str,
    reason: str,
    dry_run: bool,
    output: str | None,
    done: str,
) -> None:
    session = session_of(context)
    form = session.form(output, None, False)
    checks.reference("gpu", identity)
    body: JsonObject = {"reason": checks.reason(reason)}
    with session.client() as client:
        answer = client.gpus[identity].act(verb, body, dry_run=dry_run)
    show_object(answer.body, COLUMNS, form)
    say("dry run: nothing was changed" if dry_run else f"{identity} {done}")


@app.command()
def quarantine(
    context: typer.Context,
    identity: IdArgument,
    reason: ReasonOption,
    dry_run: DryRunOption = False,
    output: OutputOption = None,
) -> None:
    """Take a GPU out of the pool until it is released. Who has it keeps it."""
    _act(context, "quarantine", identity, reason, dry_run, output, "is out of the pool")


@app.command()
def release(
    context: typer.Context,
    identity: IdArgument,
    reason: ReasonOption,
    dry_run: DryRunOption = False,
    output: OutputOption = None,
) -> None:
    """Let a quarantined GPU come back into the pool."""
    _act(context, "release", identity, reason, dry_run, output, "may come back")
