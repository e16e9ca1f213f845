"""`bulkhead operator ...`: the platform's own people and their tokens."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.access.roles import PLATFORM_ROLES, SCOPES
from orchestrator.cli import checks
from orchestrator.cli.columns import Column
from orchestrator.cli.nouns.token import COLUMNS as TOKEN_COLUMNS
from orchestrator.cli.nouns.token import DaysOption, ScopesOption
from orchestrator.cli.nouns.user import COLUMNS
from orchestrator.cli.options import (
    DEFAULT_TIMEOUT,
    ColumnsOption,
    DryRunOption,
    LimitOption,
    NewestOption,
    NoHeadersOption,
    OutputOption,
    YesOption,
)
from orchestrator.cli.running import confirm, finish, list_all, show_token, split_list, waiting
from orchestrator.cli.session import session_of
from orchestrator.cli.verbs import Kind, add_delete, add_list
from orchestrator.client import JsonObject

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
tokens = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Their tokens.")

KIND = Kind("operator", COLUMNS, of_platform=lambda client: client.operators)
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Name or id of the operator.")]
_TOKEN_COLUMNS: tuple[Column, ...] = TOKEN_COLUMNS

add_list(app, KIND, "List the platform's people.")


@app.command()
def create(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its name.")],
    roles: Annotated[
        str, typer.Option("--roles", metavar="A,B", help=f"Roles: {', '.join(sorted(PLATFORM_ROLES))}.")
    ],
    service: Annotated[bool, typer.Option("--service", help="A program, not a person.")] = False,
    issuer: Annotated[str, typer.Option("--issuer", metavar="URL", help="Who signs its OIDC tokens.")] = "",
    subject: Annotated[
        str, typer.Option("--subject", metavar="SUB", help="Its subject in them; goes with --issuer.")
    ] = "",
    dry_run: DryRunOption = False,
    output: OutputOption = None,
) -> None:
    """Let somebody in who runs or audits the platform.

    \b
    bulkhead operator create carol --roles auditor
    """
    session = session_of(context)
    form = session.form(output, None, False)
    body = checks.person("operator", name, split_list(roles), PLATFORM_ROLES, service, issuer, subject)
    with session.client() as client:
        finish(
            client,
            client.operators.create(body, dry_run=dry_run),
            waiting(False, DEFAULT_TIMEOUT, dry_run),
            operations=client.operations,
            columns=COLUMNS,
            form=form,
            subject=client.operators[name],
            done=f"operator {name} let in; next: bulkhead operator token create {name}",
        )


add_delete(app, KIND, "Shut somebody out at once, tokens and all.")
app.add_typer(tokens, name="token")


@tokens.command("list")
def list_tokens(
    context: typer.Context,
    name: NameArgument,
    newest: NewestOption = False,
    limit: LimitOption = None,
    output: OutputOption = None,
    columns: ColumnsOption = None,
    no_headers: NoHeadersOption = False,
) -> None:
    """List somebody's tokens, never their secrets."""
    session = session_of(context)
    form = session.form(output, columns, no_headers, _TOKEN_COLUMNS)
    checks.reference("operator", name)
    with session.client() as client:
        query = {"order": "newest"} if newest else None
        list_all(client.operators[name].collection("tokens"), _TOKEN_COLUMNS, form, limit, query)


@tokens.command("create")
def create_token(
    context: typer.Context,
    name: NameArgument,
    token: Annotated[str, typer.Argument(metavar="TOKEN", help="What the token is for.")],
    scopes: ScopesOption,
    days: DaysOption = 90,
    dry_run: DryRunOption = False,
    output: OutputOption = None,
) -> None:
    """Make a token. Its text goes to stdout, this once and never again."""
    session = session_of(context)
    form = session.form(output, None, False)
    checks.reference("operator", name)
    body: JsonObject = {
        "name": checks.name("token", token),
        "scopes": checks.subset(split_list(scopes), SCOPES, "token.scopes", "--scopes"),
        "days": days,
    }
    with session.client() as client:
        answer = client.operators[name].collection("tokens").create(body, dry_run=dry_run)
    show_token(answer, form, dry_run)


@tokens.command("delete")
def delete_token(
    context: typer.Context,
    name: NameArgument,
    key_id: Annotated[str, typer.Argument(metavar="KEY_ID", help="Key id of the token, tok_...")],
    yes: YesOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Stop a token at once."""
    session = session_of(context)
    form = session.form(None, None, False)
    checks.reference("operator", name)
    checks.reference("token", key_id)
    confirm("token", key_id, yes or dry_run)
    with session.client() as client:
        finish(
            client,
            client.operators[name].collection("tokens")[key_id].delete(dry_run=dry_run),
            waiting(False, DEFAULT_TIMEOUT, dry_run),
            operations=client.operations,
            columns=_TOKEN_COLUMNS,
            form=form,
            subject=None,
            done=f"token {key_id} stopped",
        )
