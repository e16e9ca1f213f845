"""`bulkhead network ...`: a tenant's networks. Nothing reaches from one to another."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.cli import checks
from orchestrator.cli.columns import Column, time
from orchestrator.cli.options import DEFAULT_TIMEOUT, DryRunOption, OutputOption, TenantOption
from orchestrator.cli.running import finish, waiting
from orchestrator.cli.session import session_of
from orchestrator.cli.verbs import Kind, add_delete, add_list, add_show

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

COLUMNS = (
    Column("name", "name", flexible=True),
    Column("cidr", "cidr"),
    Column("id", "id"),
    Column("created", time("created_at"), wide=True),
    # Told to the platform's people alone.
    Column("vlan", "vlan", wide=True, number=True),
    Column("tenant", "tenant_id", wide=True),
)
KIND = Kind("network", COLUMNS, of_tenant=lambda tenant: tenant.networks)

add_list(app, KIND, "List networks.")
add_show(app, KIND, "Show one network.")


@app.command()
def create(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its name, unique in the tenant.")],
    cidr: Annotated[str, typer.Option("--cidr", metavar="PREFIX", help="Private IPv4 prefix, 10.0.0.0/24.")],
    tenant: TenantOption = None,
    dry_run: DryRunOption = False,
    output: OutputOption = None,
) -> None:
    """Make a network. Other tenants may use the same prefix.

    \b
    bulkhead network create back --cidr 10.0.0.0/24
    """
    session = session_of(context)
    form = session.form(output, None, False)
    body = {"name": checks.name("network", name), "cidr": checks.cidr(cidr)}
    with session.tenant(tenant) as (client, scope):
        finish(
            client,
            scope.networks.create(body, dry_run=dry_run),
            waiting(False, DEFAULT_TIMEOUT, dry_run),
            operations=scope.operations,
            columns=COLUMNS,
            form=form,
            subject=scope.networks[name],
            done=f"network {name} made",
        )


add_delete(app, KIND, "Delete a network that no instance is on.")
