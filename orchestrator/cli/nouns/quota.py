"""`bulkhead quota ...`: what a tenant may use, and what of it is used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from orchestrator.cli import checks
from orchestrator.cli.columns import Column
from orchestrator.cli.messages import say
from orchestrator.cli.options import (
    ColumnsOption,
    DryRunOption,
    NoHeadersOption,
    OutputOption,
    TenantOption,
)
from orchestrator.cli.output import Form, Output, show_object, show_rows
from orchestrator.cli.session import session_of
from orchestrator.model.errors import InvalidInputError
from orchestrator.model.quota import DIMENSIONS

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

COLUMNS = (
    Column("what", "name"),
    Column("used", "used", number=True),
    Column("limit", "limit", number=True),
    Column("free", "free", number=True),
)

#: The API's bound of any amount.
_MOST = 10**9


def limits_of(words: Sequence[str]) -> dict[str, int]:
    """Return the limits that `WHAT=N` words say.

    Raises:
        InvalidInputError: `quota.limit`.
    """
    found: dict[str, int] = {}
    for word in words:
        name, _, count = word.partition("=")
        name = name.strip().replace("-", "_")
        if name not in DIMENSIONS or name in found:
            raise InvalidInputError(
                "quota.limit",
                "each limit is WHAT=N, and none comes twice",
                field="--limit",
                hint=f"there are {', '.join(DIMENSIONS)}",
            )
        if not (count.isascii() and count.isdigit()) or len(count) > 16 or int(count) > _MOST:
            raise InvalidInputError("quota.limit", f"{name} takes a whole number, 0 or more", field="--limit")
        found[name] = int(count)
    return found


def rows_of(quota: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a quota as a row per dimension, in reading order."""
    limits, used = quota.get("limits") or {}, quota.get("used") or {}
    return [
        {
            "name": name,
            "used": used.get(name, 0),
            "limit": limits[name],
            "free": limits[name] - used.get(name, 0),
        }
        for name in DIMENSIONS
        if isinstance(limits.get(name), int)
    ]


def _show(quota: Mapping[str, Any], form: Form) -> None:
    if form.output in (Output.JSON, Output.YAML):
        show_object(quota, COLUMNS, form)
    else:
        show_rows(rows_of(quota), COLUMNS, form)


@app.command()
def show(
    context: typer.Context,
    tenant: TenantOption = None,
    output: OutputOption = None,
    columns: ColumnsOption = None,
    no_headers: NoHeadersOption = False,
) -> None:
    """Show a tenant's limits and what of them is used."""
    session = session_of(context)
    form = session.form(output, columns, no_headers, COLUMNS)
    with session.tenant(tenant) as (_, scope):
        _show(scope.quota.get(), form)


@app.command("set")
def set_(
    context: typer.Context,
    limits: Annotated[
        list[str], typer.Option("--limit", metavar="WHAT=N", help="A new limit; repeat it for more.")
    ],
    tenant: TenantOption = None,
    dry_run: DryRunOption = False,
    output: OutputOption = None,
) -> None:
    """Set some limits; the others stay. Refused if somebody else changed them meanwhile.

    \b
    bulkhead quota set --tenant acme --limit gpus=16 --limit instances=16
    """
    session = session_of(context)
    form = session.form(output, None, False)
    wanted = limits_of(limits)
    name = checks.reference("tenant", session.tenant_name(tenant))
    with session.tenant(tenant) as (_, scope):
        before = scope.quota.read()
        answer = scope.quota.set({"limits": wanted}, before.tag, dry_run=dry_run)
    if answer.body is not None:
        _show(answer.body, form)
    say("dry run: nothing was changed" if dry_run else f"quota of {name} set")
