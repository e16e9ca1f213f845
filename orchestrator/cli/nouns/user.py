"""`bulkhead user ...`: a tenant's people and service accounts."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.access.roles import TENANT_ROLES
from orchestrator.cli import checks
from orchestrator.cli.columns import Column, time
from orchestrator.cli.messages import say
from orchestrator.cli.options import DEFAULT_TIMEOUT, DryRunOption, OutputOption, TenantOption
from orchestrator.cli.output import show_object
from orchestrator.cli.running import finish, split_list, waiting
from orchestrator.cli.session import session_of
from orchestrator.cli.verbs import Kind, add_delete, add_list, add_show
from orchestrator.client import JsonObject

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

COLUMNS = (
    Column("name", "name", flexible=True),
    Column("kind", "kind"),
    Column("roles", "roles", flexible=True),
    Column("id", "id"),
    Column("issuer", "issuer", wide=True),
    Column("subject", "subject", wide=True),
    Column("created", time("created_at"), wide=True),
)
KIND = Kind("user", COLUMNS, of_tenant=lambda tenant: tenant.users)

RolesOption = Annotated[
    str, typer.Option("--roles", metavar="A,B", help=f"Roles: {', '.join(sorted(TENANT_ROLES))}.")
]

add_list(app, KIND, "List users and service accounts.")
add_show(app, KIND, "Show one user.")


@app.command()
def create(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its name, unique in the tenant.")],
    roles: RolesOption,
    service: Annotated[bool, typer.Option("--service", help="A program, not a person.")] = False,
    issuer: Annotated[str, typer.Option("--issuer", metavar="URL", help="Who signs its OIDC tokens.")] = "",
    subject: Annotated[
        str, typer.Option("--subject", metavar="SUB", help="Its subject in them; goes with --issuer.")
    ] = "",
    tenant: TenantOption = None,
    dry_run: DryRunOption = False,
    output: OutputOption = None,
) -> None:
    """Let somebody in.

    \b
    bulkhead user create alice --roles member
    """
    session = session_of(context)
    form = session.form(output, None, False)
    body = checks.person("user", name, split_list(roles), TENANT_ROLES, service, issuer, subject)
    with session.tenant(tenant) as (client, scope):
        finish(
            client,
            scope.users.create(body, dry_run=dry_run),
            waiting(False, DEFAULT_TIMEOUT, dry_run),
            operations=scope.operations,
            columns=COLUMNS,
            form=form,
            subject=scope.users[name],
            done=f"user {name} let in; next: bulkhead token create --user {name}",
        )


@app.command("set")
def set_(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name or id.")],
    roles: RolesOption,
    tenant: TenantOption = None,
    dry_run: DryRunOption = False,
    output: OutputOption = None,
) -> None:
    """Give somebody exactly these roles. Refused if somebody else changed them meanwhile."""
    session = session_of(context)
    form = session.form(output, None, False)
    checks.reference("user", name)
    wanted = checks.subset(split_list(roles), TENANT_ROLES, "user.roles", "--roles")
    body: JsonObject = {"roles": wanted}
    with session.tenant(tenant) as (_, scope):
        user = scope.users[name]
        answer = user.part("roles").set(body, user.read().tag, dry_run=dry_run)
    show_object(answer.body, COLUMNS, form)
    say("dry run: nothing was changed" if dry_run else f"user {name} has these roles now")


add_delete(app, KIND, "Shut somebody out at once, tokens and all.")
