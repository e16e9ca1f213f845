"""`bulkhead token ...`: API tokens of a tenant's people. A token's text is shown once, when it is made."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.access.roles import SCOPES
from orchestrator.cli import checks
from orchestrator.cli.columns import Column, time
from orchestrator.cli.options import DryRunOption, OutputOption, TenantOption
from orchestrator.cli.running import show_token, split_list
from orchestrator.cli.session import session_of
from orchestrator.cli.verbs import Kind, add_delete, add_list
from orchestrator.client import JsonObject

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

COLUMNS = (
    Column("key_id", "key_id"),
    Column("name", "name", flexible=True),
    Column("scopes", "scopes", flexible=True),
    Column("expires", time("expires_at")),
    Column("user", "user_id", wide=True),
    Column("created", time("created_at"), wide=True),
    Column("revoked", time("revoked_at"), wide=True),
)
KIND = Kind("token", COLUMNS, of_tenant=lambda tenant: tenant.tokens)

ScopesOption = Annotated[
    str, typer.Option("--scopes", metavar="A,B", help=f"What it may: {', '.join(sorted(SCOPES))}.")
]
DaysOption = Annotated[int, typer.Option("--days", min=1, max=366, help="How long it works.")]

add_list(app, KIND, "List tokens, never their secrets.")


@app.command()
def create(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="What it is for.")],
    scopes: ScopesOption,
    user: Annotated[
        str | None, typer.Option("--user", metavar="NAME", help="Whose it is; your own without.")
    ] = None,
    days: DaysOption = 90,
    tenant: TenantOption = None,
    dry_run: DryRunOption = False,
    output: OutputOption = None,
) -> None:
    """Make a token. Its text goes to stdout, this once and never again.

    \b
    bulkhead token create ci --user builder --scopes read,write > ci.token
    """
    session = session_of(context)
    form = session.form(output, None, False)
    body: JsonObject = {
        "name": checks.name("token", name),
        "scopes": checks.subset(split_list(scopes), SCOPES, "token.scopes", "--scopes"),
        "days": days,
    }
    if user is not None:
        body["user"] = checks.reference("user", user)
    with session.tenant(tenant) as (_, scope):
        answer = scope.tokens.create(body, dry_run=dry_run)
    show_token(answer, form, dry_run)


add_delete(app, KIND, "Stop a token at once. NAME is its key id, tok_...")
