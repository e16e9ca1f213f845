"""`bulkhead login`: keep a server and a token in a profile, after they were tried."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli import checks, profiles
from orchestrator.cli.messages import say
from orchestrator.cli.profiles import Profile
from orchestrator.cli.running import has_terminal
from orchestrator.cli.session import Access, session_of
from orchestrator.client.http import check_url
from orchestrator.model.errors import InvalidInputError

app = typer.Typer(rich_markup_mode=None)


@app.command()
def login(
    context: typer.Context,
    url: Annotated[
        str | None, typer.Option("--url", metavar="URL", help="The server, https://HOST:PORT.")
    ] = None,
    ca: Annotated[
        Path | None, typer.Option("--ca", metavar="FILE", help="Authority of its certificate (PEM).")
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option("--token-file", metavar="FILE", help="File with the token, - for stdin.")
    ] = None,
    tenant: Annotated[
        str | None,
        typer.Option("--tenant", "-t", metavar="TENANT", help="Its usual tenant; the token's own."),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", metavar="PROFILE", help="Profile to write; the one in use.")
    ] = None,
) -> None:
    """Try a token, and keep it in a profile that only you can read.

    Asks for the token without showing it. A token is never an argument: arguments are everybody's to read.

    \b
    bulkhead login --url https://bulkhead.example:8443
    """
    session = session_of(context)
    path = profiles.default_path()
    known = profiles.read_profiles(path)
    chosen = profiles.check_name(name or session.flags.profile or known.current)
    before = known.by_name.get(chosen, Profile())
    address = url or session.flags.url or before.url
    if not address:
        raise InvalidInputError("profile.no_url", "no server is set", hint="add --url https://HOST:PORT")
    address = check_url(address)
    trust = ca or session.flags.ca or (Path(before.ca) if before.ca else None)
    if tenant is not None:
        checks.reference("tenant", tenant)
    token = _token(token_file)
    with session.client(Access(address, token, trust)) as client:
        found = client.whoami()
    made = Profile(
        url=address,
        token=token,
        ca=str(trust.absolute()) if trust is not None else "",
        tenant=tenant or str(found.get("tenant_id") or before.tenant),
        output=before.output,
    )
    profiles.write_profiles(path, known.having(chosen, made))
    say(f"profile {chosen}: {found.get('name')} at {address}")


def _token(file: Path | None) -> str:
    if file is not None:
        token = checks.read_text(file, "--token-file").strip()
    elif has_terminal():
        token = typer.prompt("Token", hide_input=True, err=True).strip()
    else:
        raise InvalidInputError(
            "token.not_given",
            "there is nobody to ask for the token",
            hint="add --token-file FILE, or - for stdin",
        )
    if not token:
        raise InvalidInputError("token.not_given", "the token is empty", field="--token-file")
    return token
