"""`bulkhead whoami`: whose token this is."""

from __future__ import annotations

import typer

from orchestrator.cli.columns import Column
from orchestrator.cli.options import ColumnsOption, NoHeadersOption, OutputOption
from orchestrator.cli.output import show_object
from orchestrator.cli.session import session_of

app = typer.Typer(rich_markup_mode=None)

COLUMNS = (
    Column("name", "name"),
    Column("kind", "kind"),
    Column("tenant", "tenant_id"),
    Column("roles", "roles"),
    Column("scopes", "scopes"),
    Column("key_id", "key_id"),
    Column("id", "id", wide=True),
)


@app.command()
def whoami(
    context: typer.Context,
    output: OutputOption = None,
    columns: ColumnsOption = None,
    no_headers: NoHeadersOption = False,
) -> None:
    """Show whose token this is and what it may do."""
    session = session_of(context)
    form = session.form(output, columns, no_headers, COLUMNS)
    with session.client() as client:
        show_object(client.whoami(), COLUMNS, form)
