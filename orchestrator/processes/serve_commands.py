"""`bulkhead serve`: a controller and an agent on this machine, kept running together."""

from __future__ import annotations

import re
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli import checks
from orchestrator.model.errors import BulkheadError
from orchestrator.processes import control_settings, settings
from orchestrator.processes.render import print_problem

app = typer.Typer(rich_markup_mode=None)


@app.command()
def serve(
    controller_settings: Annotated[
        Path, typer.Option("--controller-settings", help="The controller's settings file (TOML).")
    ] = control_settings.DEFAULT_FILE,
    agent_settings: Annotated[
        Path, typer.Option("--agent-settings", help="The agent's settings file (TOML).")
    ] = settings.DEFAULT_FILE,
    host_name: Annotated[
        str | None, typer.Option("--host-name", metavar="NAME", help="This machine's name as a host.")
    ] = None,
    disk_gib: Annotated[
        int | None,
        typer.Option("--disk-gib", min=0, max=10**6, help="What tenants' volumes may take; else most of it."),
    ] = None,
    controller_user: Annotated[
        str | None,
        typer.Option("--controller-user", metavar="USER", help="Run the controller as this user."),
    ] = None,
    simulated: Annotated[
        bool, typer.Option("--simulated", help="A host that is in memory only: no root, no libvirt.")
    ] = False,
) -> None:
    """Run a controller and an agent on this machine until told to end (SIGTERM or Ctrl-C); VMs run on.

    The first time, this machine becomes a host of its own controller. Each of the two is started again when
    it ends. The agent needs root, the controller does not: see --controller-user.
    """
    from orchestrator.processes.machine import Machine
    from orchestrator.processes.machine import serve as run

    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    try:
        machine = Machine(
            controller=control_settings.read_control_settings(
                controller_settings, option="--controller-settings"
            ),
            agent=settings.read_settings(agent_settings, option="--agent-settings"),
            controller_words=_words(controller_settings, control_settings.DEFAULT_FILE),
            agent_words=_words(agent_settings, settings.DEFAULT_FILE),
            host_name=checks.name("host", host_name or _own_name()),
            disk_gib=disk_gib,
            controller_user=controller_user,
            simulated=simulated,
        )
        run(machine, ended, _say)
    except BulkheadError as exc:
        print_problem(exc)
        raise typer.Exit(exc.exit_code) from exc


def _words(file: Path, default: Path) -> tuple[str, ...]:
    return () if file == default else ("--settings", str(file.resolve()))


def _own_name() -> str:
    """This machine's name as far as it can be a host's."""
    plain = re.sub(r"[^a-z0-9]+", "-", socket.gethostname().split(".")[0].lower()).strip("-")
    return plain if plain[:1].isalpha() else f"host-{plain}".rstrip("-")


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
