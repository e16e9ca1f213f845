"""`bulkhead event ...`: what happens, as it happens, from where one left off."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator
from itertools import islice
from typing import Annotated, Any

import typer

from orchestrator.cli import checks
from orchestrator.cli.columns import text_of
from orchestrator.cli.messages import say
from orchestrator.cli.options import OutputOption, PlatformOption, TenantOption
from orchestrator.cli.output import Output
from orchestrator.cli.session import session_of
from orchestrator.client import Event
from orchestrator.client.events import check_position
from orchestrator.model.errors import InvalidInputError

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def _noun() -> None:
    """What happens, as it happens."""


@app.command()
def watch(
    context: typer.Context,
    tenant: TenantOption = None,
    platform: PlatformOption = False,
    after: Annotated[
        str | None, typer.Option("--after", metavar="POSITION", help="Go on after this one: STREAM:NUMBER.")
    ] = None,
    from_start: Annotated[
        bool, typer.Option("--from-start", help="Begin with the first event there ever was.")
    ] = False,
    kind: Annotated[
        str | None, typer.Option("--kind", metavar="KIND", help="instance.create, or a noun for all of it.")
    ] = None,
    count: Annotated[int | None, typer.Option("--count", min=1, help="End after so many.")] = None,
    output: OutputOption = None,
) -> None:
    """Print each event on a line, until interrupted.

    Dials again by itself and misses nothing. The first word of a line is its position; -o json gives an
    object a line.
    """
    session = session_of(context)
    form = session.form(output, None, False)
    if form.output not in (Output.TABLE, Output.WIDE, Output.JSON):
        raise InvalidInputError("output.unknown", "events are written as table or json", field="--output")
    if after is not None:
        check_position(after)
    if kind is not None:
        checks.kind(kind)
    name = None if platform else session.tenant_name(tenant)
    last = after
    with session.client() as client:
        try:
            for event in islice(client.events(name, after=after, from_start=from_start, kind=kind), count):
                last = event.id or last
                print(_line(event, form.output), flush=True)
        except KeyboardInterrupt:
            if last is not None:
                say(f"go on with: bulkhead event watch --after {last}")
            raise


def _line(event: Event, output: Output) -> str:
    if output is Output.JSON:
        return json.dumps({"id": event.id, "kind": event.kind, "data": event.data})
    return "  ".join(_words(event))


def _words(event: Event) -> Iterator[str]:
    data = event.data
    yield text_of(event.id)
    yield _time(data)
    yield text_of(data.get("kind") or event.kind)
    yield text_of(data.get("outcome"))
    subject = data.get("subject")
    yield text_of(subject.get("id") if isinstance(subject, dict) else None)


def _time(data: dict[str, Any]) -> str:
    at_ms = data.get("at_ms")
    if isinstance(at_ms, int) and 0 <= at_ms < 2**46:
        return f"{dt.datetime.fromtimestamp(at_ms // 1000, dt.UTC):%Y-%m-%d %H:%M:%SZ}"
    return text_of(data.get("at"))
