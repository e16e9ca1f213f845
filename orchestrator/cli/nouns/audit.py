"""`bulkhead audit ...`: exports of the audit log, and their verification without any server."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.audit.export import Verification, verify_lines
from orchestrator.cli import checks
from orchestrator.cli.messages import say
from orchestrator.cli.options import OutputOption, PlatformOption, TenantOption
from orchestrator.cli.output import Output
from orchestrator.cli.session import session_of
from orchestrator.model.errors import ConflictError, InvalidInputError

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,6})?Z")
_ID = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")
_OUTCOMES = ("ok", "failed", "denied")


@app.command()
def export(
    context: typer.Context,
    tenant: TenantOption = None,
    platform: PlatformOption = False,
    since: Annotated[
        str | None, typer.Option("--from", metavar="TIME", help="From then on, 2026-01-31T00:00:00Z.")
    ] = None,
    until: Annotated[str | None, typer.Option("--until", metavar="TIME", help="Before then.")] = None,
    kind: Annotated[
        str | None, typer.Option("--kind", metavar="KIND", help="instance.create, or a noun for all of it.")
    ] = None,
    actor: Annotated[str | None, typer.Option("--actor", metavar="ID", help="By whom.")] = None,
    subject: Annotated[str | None, typer.Option("--subject", metavar="ID", help="About what.")] = None,
    outcome: Annotated[
        str | None, typer.Option("--outcome", metavar="WHAT", help="ok, failed or denied.")
    ] = None,
) -> None:
    """Write the audit log as JSON lines.

    They can be verified with no server at hand: bulkhead audit verify.
    Only an export without filters proves that no record is missing.

    \b
    bulkhead audit export --tenant acme > acme.jsonl
    """
    session = session_of(context)
    query = _query(since, until, kind, actor, subject, outcome)
    name = None if platform else session.tenant_name(tenant)
    lines = 0
    with session.client() as client:
        for line in client.audit(name, query):
            sys.stdout.write(line + "\n")
            lines += 1
    sys.stdout.flush()
    # The first line says what the export is.
    say(f"{max(lines - 1, 0)} records")


def _query(
    since: str | None,
    until: str | None,
    kind: str | None,
    actor: str | None,
    subject: str | None,
    outcome: str | None,
) -> dict[str, str]:
    for field, time in (("--from", since), ("--until", until)):
        if time is not None and not _TIME.fullmatch(time):
            raise InvalidInputError("audit.time", "a time is 2026-01-31T00:00:00Z", field=field)
    if kind is not None:
        checks.kind(kind)
    if outcome is not None and outcome not in _OUTCOMES:
        raise InvalidInputError("audit.outcome", "ok, failed or denied", field="--outcome")
    given = {
        "from": since,
        "until": until,
        "kind": kind,
        "actor": actor,
        "subject": subject,
        "outcome": outcome,
    }
    for field in ("actor", "subject"):
        if given[field] is not None and not _ID.fullmatch(str(given[field])):
            raise InvalidInputError("audit.id", "an id is meant", field=f"--{field}")
    return {name: value for name, value in given.items() if value is not None}


@app.command()
def verify(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An export, or - for standard input.")],
    output: OutputOption = None,
) -> None:
    """Check an export, asking no server.

    No byte of a record changed, none is out of order, and in a whole export none is missing. Exit status 5:
    something is wrong with it, and the lines say what.
    """
    form = session_of(context).form(output, None, False)
    found = verify_lines(_lines(file))
    if form.output is Output.JSON:
        sys.stdout.write(json.dumps(_as_json(found), indent=2) + "\n")
    else:
        whole = "none is missing" if found.complete else "it is filtered or cut: others may be missing"
        print(f"stream {found.stream or '?'}: {found.records} records, {whole}")
        for problem in found.problems:
            print(problem)
    if found.problems:
        raise ConflictError(
            "audit.not_verified",
            f"{len(found.problems)} problems",
            hint="export it again, and keep both files",
        )


def _as_json(found: Verification) -> dict[str, object]:
    return {
        "stream": found.stream,
        "records": found.records,
        "complete": found.complete,
        "problems": [
            {"line": each.line, "stream": each.stream, "seq": each.seq, "what": each.what}
            for each in found.problems
        ],
    }


def _lines(file: Path) -> Iterator[str]:
    try:
        if str(file) == "-":
            yield from sys.stdin
            return
        # What is no UTF-8 becomes lone surrogates, which no record holds: it is told as a changed line.
        with file.open(encoding="utf-8", errors="surrogateescape", newline="\n") as opened:
            yield from opened
    except OSError as exc:
        raise InvalidInputError("file.unreadable", f"{file}: {exc.strerror}", field="FILE") from exc
