"""`bulkhead volume ...`: a tenant's encrypted volumes."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.cli import checks
from orchestrator.cli.columns import Column, time
from orchestrator.cli.completion import names_of
from orchestrator.cli.filters import by_reference, by_state
from orchestrator.cli.nouns import instance
from orchestrator.cli.options import DEFAULT_TIMEOUT, DryRunOption, OutputOption, TenantOption
from orchestrator.cli.running import finish, waiting
from orchestrator.cli.session import session_of
from orchestrator.cli.verbs import Kind, add_delete, add_list, add_show
from orchestrator.model.states import VolumeState

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

COLUMNS = (
    Column("name", "name", flexible=True),
    Column("state", "state"),
    Column("gib", "size_gib", number=True),
    Column("boot", "boot"),
    Column("instance", "instance_id"),
    Column("id", "id", wide=True),
    Column("image", "image_id", wide=True),
    Column("created", time("created_at"), wide=True),
    # Told to the platform's people alone.
    Column("host", "host_id", wide=True),
)
KIND = Kind("volume", COLUMNS, of_tenant=lambda tenant: tenant.volumes)

add_list(
    app,
    KIND,
    "List volumes, those that instances boot from too.",
    (by_state(VolumeState), by_reference("instance", "instance", "Only those that this instance has.")),
)
add_show(app, KIND, "Show one volume.")


@app.command()
def create(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its name, unique in the tenant.")],
    size_gib: Annotated[int, typer.Option("--size-gib", min=1, max=1_000_000, help="Its size in GiB.")],
    tenant: TenantOption = None,
    dry_run: DryRunOption = False,
    output: OutputOption = None,
) -> None:
    """Make an empty volume with a key of its own.

    \b
    bulkhead volume create data --size-gib 200
    """
    session = session_of(context)
    form = session.form(output, None, False)
    body = {"name": checks.name("volume", name), "size_gib": size_gib}
    with session.tenant(tenant) as (client, scope):
        finish(
            client,
            scope.volumes.create(body, dry_run=dry_run),
            waiting(False, DEFAULT_TIMEOUT, dry_run),
            operations=scope.operations,
            columns=COLUMNS,
            form=form,
            subject=scope.volumes[name],
            done=f"volume {name} made",
        )


VolumeArgument = Annotated[
    str, typer.Argument(metavar="VOLUME", help="Name or id.", autocompletion=names_of(KIND.open))
]
InstanceArgument = Annotated[
    str,
    typer.Argument(
        metavar="INSTANCE",
        help="One that is stopped.",
        autocompletion=names_of(instance.KIND.open),
    ),
]


def _wire(
    context: typer.Context,
    verb: str,
    done: str,
    name: str,
    holder: str,
    tenant: str | None,
    dry_run: bool,
    output: str | None,
) -> None:
    session = session_of(context)
    form = session.form(output, None, False)
    body = {"volume": checks.reference("volume", name)}
    checks.reference("instance", holder)
    with session.tenant(tenant) as (client, scope):
        finish(
            client,
            scope.instances[holder].act(verb, body, dry_run=dry_run),
            waiting(False, DEFAULT_TIMEOUT, dry_run),
            operations=scope.operations,
            columns=instance.COLUMNS,
            form=form,
            subject=scope.instances[holder],
            done=f"volume {name} {done} instance {holder}",
        )


@app.command()
def attach(
    context: typer.Context,
    name: VolumeArgument,
    holder: InstanceArgument,
    tenant: TenantOption = None,
    dry_run: DryRunOption = False,
    output: OutputOption = None,
) -> None:
    """Give a volume to a stopped instance; it is there from the next start.

    A volume lives on the host of the first instance that had it, and goes to
    instances of that host alone. What runs takes none: stop it first.

    \b
    bulkhead instance stop train
    bulkhead volume attach data train
    bulkhead instance start train
    """
    _wire(context, "attach-volume", "attached to", name, holder, tenant, dry_run, output)


@app.command()
def detach(
    context: typer.Context,
    name: VolumeArgument,
    holder: InstanceArgument,
    tenant: TenantOption = None,
    dry_run: DryRunOption = False,
    output: OutputOption = None,
) -> None:
    """Take a volume from a stopped instance. Its data stays, encrypted, on its host."""
    _wire(context, "detach-volume", "detached from", name, holder, tenant, dry_run, output)


add_delete(app, KIND, "Delete a volume. Its key is destroyed, so nobody reads it again.")
