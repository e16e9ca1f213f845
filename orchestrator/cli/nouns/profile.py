"""`bulkhead profile ...`: the servers and tokens that this command line knows. Shows no token, ever."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from orchestrator.cli import checks, profiles
from orchestrator.cli.columns import Column
from orchestrator.cli.messages import say
from orchestrator.cli.options import ColumnsOption, NoHeadersOption, OutputOption, YesOption
from orchestrator.cli.output import parse_output, show_list, show_object
from orchestrator.cli.profiles import Profile, Profiles
from orchestrator.cli.running import confirm
from orchestrator.cli.session import session_of
from orchestrator.client.http import check_url

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

COLUMNS = (
    Column("name", "name", flexible=True),
    Column("used", "current"),
    Column("url", "url", flexible=True),
    Column("tenant", "tenant", flexible=True),
    Column("token", "token_set"),
    Column("output", "output", wide=True),
    Column("ca", "ca", wide=True),
)
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Name of the profile.")]


def _shown(found: Profiles, name: str, profile: Profile) -> Mapping[str, Any]:
    return {
        "name": name,
        "current": name == found.current,
        "url": profile.url,
        "tenant": profile.tenant,
        "token_set": bool(profile.token),
        "output": profile.output,
        "ca": profile.ca,
    }


@app.command("list")
def list_(
    context: typer.Context,
    output: OutputOption = None,
    columns: ColumnsOption = None,
    no_headers: NoHeadersOption = False,
) -> None:
    """List profiles."""
    form = session_of(context).form(output, columns, no_headers, COLUMNS)
    found = profiles.read_profiles(profiles.default_path())
    items = [_shown(found, name, each) for name, each in found.by_name.items()]
    show_list({"items": items, "next_page_token": None}, COLUMNS, form)


@app.command()
def show(
    context: typer.Context,
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Name of the profile; the one in use.")
    ] = None,
    output: OutputOption = None,
) -> None:
    """Show a profile, but not its token."""
    session = session_of(context)
    form = session.form(output, None, False)
    found = profiles.read_profiles(profiles.default_path())
    chosen = name or session.flags.profile or found.current
    show_object(_shown(found, chosen, found.get(chosen)), COLUMNS, form)


@app.command("set")
def set_(
    context: typer.Context,
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Name of the profile; the one in use.")
    ] = None,
    url: Annotated[
        str | None, typer.Option("--url", metavar="URL", help="The server; another one forgets the token.")
    ] = None,
    ca: Annotated[
        Path | None, typer.Option("--ca", metavar="FILE", help="Authority of its certificate (PEM).")
    ] = None,
    tenant: Annotated[str | None, typer.Option("--tenant", "-t", help="Its usual tenant.")] = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="FORM", help="Its usual output form.")
    ] = None,
) -> None:
    """Make or change a profile. Tokens come by `bulkhead login`."""
    path = profiles.default_path()
    found = profiles.read_profiles(path)
    chosen = profiles.check_name(name or session_of(context).flags.profile or found.current)
    made = found.by_name.get(chosen, Profile())
    if url is not None and check_url(url) != made.url:
        # A token is for one server; it must not follow the profile to another.
        made = replace(made, url=check_url(url), token="")
    if ca is not None:
        checks.read_text(ca, "--ca")
        made = replace(made, ca=str(ca.absolute()))
    if tenant is not None:
        made = replace(made, tenant=checks.reference("tenant", tenant))
    if output is not None:
        made = replace(made, output=parse_output(output, "--output").value)
    profiles.write_profiles(path, found.having(chosen, made))
    say(f"profile {chosen} set")


@app.command()
def use(name: NameArgument) -> None:
    """Use a profile from now on."""
    path = profiles.default_path()
    found = profiles.read_profiles(path)
    found.get(name)
    profiles.write_profiles(path, replace(found, current=name))
    say(f"profile {name} is in use")


@app.command()
def delete(name: NameArgument, yes: YesOption = False) -> None:
    """Delete a profile with its token. The token itself works on: bulkhead token delete stops it."""
    path = profiles.default_path()
    found = profiles.read_profiles(path)
    less = found.without(name)
    confirm("profile", name, yes)
    profiles.write_profiles(path, less)
    say(f"profile {name} deleted")
