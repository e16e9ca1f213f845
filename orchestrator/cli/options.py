"""The options and arguments that commands share, spelled once."""

from __future__ import annotations

from typing import Annotated

import typer

OutputOption = Annotated[
    str | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FORM",
        envvar="BULKHEAD_OUTPUT",
        help="table, wide, json, yaml, csv or name.",
    ),
]
ColumnsOption = Annotated[
    str | None, typer.Option("--columns", metavar="A,B", help="Only these columns, in this order.")
]
NoHeadersOption = Annotated[bool, typer.Option("--no-headers", help="No line of column names.")]
TenantOption = Annotated[
    str | None,
    typer.Option(
        "--tenant", "-t", metavar="TENANT", envvar="BULKHEAD_TENANT", help="Name or id of the tenant."
    ),
]
PlatformOption = Annotated[bool, typer.Option("--platform", help="The platform's own instead of a tenant's.")]
NewestOption = Annotated[bool, typer.Option("--newest", help="Begin with what was made last.")]
LimitOption = Annotated[
    int | None, typer.Option("--limit", min=1, max=1000, help="At most so many, the first ones.")
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Check everything and change nothing.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask; for scripts.")]
NoWaitOption = Annotated[bool, typer.Option("--no-wait", help="Print the operation and do not wait for it.")]
TimeoutOption = Annotated[
    str, typer.Option("--timeout", metavar="TIME", help="How long to wait at most: 30s, 10m, 1h.")
]
ReasonOption = Annotated[str, typer.Option("--reason", help="Why, for the audit log.")]
DEFAULT_TIMEOUT = "10m"
