"""The `bulkhead` command: every noun's commands in one program, each loaded when it is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.flags import Flags
from orchestrator.cli.root import Noun, Root

_HELP = "Isolated GPU virtual machines for many tenants, with evidence."


class Program(Root):
    """The command line, and what runs as a process."""

    more = (
        Noun(
            "serve",
            "Runs a controller and an agent on this machine.",
            "orchestrator.processes.serve_commands",
        ),
        Noun(
            "agent",
            "Runs on a GPU host: make it equal to its assignment.",
            "orchestrator.processes.agent_commands",
        ),
        Noun(
            "controller",
            "Runs the controller: public API, agents' API, scheduler.",
            "orchestrator.processes.control_commands",
        ),
    )


app = typer.Typer(
    name="bulkhead",
    cls=Program,
    help=_HELP,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)


@app.callback()
def _root(
    context: typer.Context,
    profile: Annotated[
        str | None,
        typer.Option("--profile", metavar="NAME", envvar="BULKHEAD_PROFILE", help="Profile to use."),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option("--url", metavar="URL", envvar="BULKHEAD_URL", help="The server, https://HOST:PORT."),
    ] = None,
    ca: Annotated[
        Path | None,
        typer.Option(
            "--ca", metavar="FILE", envvar="BULKHEAD_CA", help="Authority of its certificate (PEM)."
        ),
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Tell each call to the API on stderr.")] = False,
) -> None:
    """Isolated GPU virtual machines for many tenants, with evidence.

    A token comes from BULKHEAD_TOKEN or the profile, never from an option. Exit status: 0 done, 1 unexpected,
    2 usage, 3 not found, 4 not allowed, 5 conflict, 6 quota or capacity, 7 wait timed out, 8 operation
    failed, 130 interrupted.
    """
    context.obj = Flags(profile, url, ca, debug)


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
