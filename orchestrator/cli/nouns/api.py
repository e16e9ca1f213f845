"""`bulkhead api`: any call to the API, as it is."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli import checks
from orchestrator.cli.options import OutputOption
from orchestrator.cli.output import Output, write_value
from orchestrator.cli.session import session_of
from orchestrator.client.http import Call, new_key
from orchestrator.model.errors import InvalidInputError

app = typer.Typer(rich_markup_mode=None)

_METHODS = ("GET", "POST", "PUT", "DELETE")
#: No host, no fragment and no way up: what is typed here goes to the profile's server and nowhere else.
_PATH = re.compile(r"/[A-Za-z0-9._~%/@:+-]*(?:\?[A-Za-z0-9._~%/@:+=&-]*)?")


@app.command()
def api(
    context: typer.Context,
    method: Annotated[str, typer.Argument(metavar="METHOD", help="GET, POST, PUT or DELETE.")],
    path: Annotated[str, typer.Argument(metavar="PATH", help="From /v1/ on, with its query.")],
    data: Annotated[
        Path | None, typer.Option("--data", metavar="FILE", help="JSON to send, - for stdin.")
    ] = None,
    if_match: Annotated[
        str | None, typer.Option("--if-match", metavar="TAG", help="Change it only if it is still this.")
    ] = None,
    key: Annotated[
        str | None, typer.Option("--idempotency-key", metavar="KEY", help="Of a POST; drawn without.")
    ] = None,
    output: OutputOption = None,
) -> None:
    """Call the API and print what it answers.

    \b
    bulkhead api GET /v1/tenants/acme/instances?page_size=10
    bulkhead api POST /v1/tenants/acme/volumes --data volume.json
    """
    session = session_of(context)
    form = session.form(output, None, False)
    verb = method.upper()
    if verb not in _METHODS:
        raise InvalidInputError("api.method", ", ".join(_METHODS), field="METHOD")
    if not _PATH.fullmatch(path) or path.startswith("//") or ".." in path.split("?")[0].split("/"):
        raise InvalidInputError("api.path", "a path such as /v1/tenants", field="PATH")
    if data is not None and verb in ("GET", "DELETE"):
        raise InvalidInputError("api.data", f"{verb} sends nothing", field="--data")
    headers = {}
    for name, value in (("If-Match", if_match), ("Idempotency-Key", key)):
        if value is not None:
            if not (value.isascii() and value.isprintable()):
                raise InvalidInputError("api.header", f"{name} is printable ASCII")
            headers[name] = value
    if verb == "POST":
        headers.setdefault("Idempotency-Key", new_key())
    body = None if data is None else checks.read_json(data, "--data")
    with session.client() as client:
        answer = client.http.call(Call(verb, path, {}, body, headers, repeatable=verb == "GET"))
    if answer.body is not None:
        write_value(answer.body, Output.YAML if form.output is Output.YAML else Output.JSON)
    sys.stdout.flush()
