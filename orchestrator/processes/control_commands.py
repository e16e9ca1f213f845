"""`bulkhead controller ...`: what runs the controller and makes its first operator. Data on stdout."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli import checks
from orchestrator.model.errors import BulkheadError
from orchestrator.processes import lifeline
from orchestrator.processes.control_settings import DEFAULT_FILE, read_control_settings
from orchestrator.processes.render import print_problem

app = typer.Typer(
    help="Runs the controller: public API, agents' API, scheduler.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

SettingsOption = Annotated[Path, typer.Option("--settings", help="Settings file (TOML).")]


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except BulkheadError as exc:
        print_problem(exc)
        raise typer.Exit(exc.exit_code) from exc


@app.command()
def serve(
    settings_file: SettingsOption = DEFAULT_FILE,
    ready_fd: Annotated[
        int | None,
        typer.Option(
            "--ready-fd", min=3, help="Descriptor that is told the addresses, as JSON, once it listens."
        ),
    ] = None,
    lifeline_fd: Annotated[int | None, typer.Option(lifeline.OPTION, min=3, hidden=True)] = None,
) -> None:
    """Listen and work until told to end (SIGTERM or Ctrl-C)."""
    from orchestrator.processes import heap, logs
    from orchestrator.processes.control import Running, open_parts

    heap.keep_small()
    logs.configure()
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    with _told():
        if lifeline_fd is not None:
            lifeline.hold_to(lifeline_fd)
        parts = open_parts(read_control_settings(settings_file))
        with Running(parts) as running:
            sys.stderr.write(f"public API  {running.public_url}\nagents' API {running.agents_url}\n")
            if ready_fd is not None:
                with os.fdopen(ready_fd, "w") as told:
                    json.dump({"public_url": running.public_url, "agents_url": running.agents_url}, told)
            given_back = time.monotonic()
            while running.alive() and not ended.wait(1.0):
                if time.monotonic() - given_back >= heap.GIVE_BACK_S:
                    heap.give_back()
                    given_back = time.monotonic()
            if not ended.is_set():
                raise typer.Exit(1)


@app.command("operator-token")
def operator_token_(
    name: Annotated[str, typer.Argument(help="The operator's name; made if it is not there.")],
    days: Annotated[int, typer.Option(min=1, max=366, help="How long the token lives.")] = 30,
    settings_file: SettingsOption = DEFAULT_FILE,
) -> None:
    """Print a new token of an operator; whoever may read the controller's state may do this anyway."""
    from orchestrator.processes.control import open_parts, operator_token

    with _told():
        token = operator_token(open_parts(read_control_settings(settings_file)), name, days)
    sys.stdout.write(token + "\n")


@app.command("host-token")
def host_token_(
    name: Annotated[str, typer.Argument(help="The host's name; made if it is not there.")],
    disk_gib: Annotated[
        int, typer.Option("--disk-gib", min=0, max=10**6, help="What tenants' volumes may take of a new one.")
    ],
    settings_file: SettingsOption = DEFAULT_FILE,
) -> None:
    """Print a join token for a host; earlier ones of it stop working. It works once, and for a day."""
    from orchestrator.processes.control import host_token, open_parts

    with _told():
        name = checks.name("host", name)
        token = host_token(open_parts(read_control_settings(settings_file)), name, disk_gib)
    sys.stdout.write(token + "\n")


@app.command()
def restored(
    reason: Annotated[str, typer.Option("--reason", help="Why, for the audit log.")],
    settings_file: SettingsOption = DEFAULT_FILE,
) -> None:
    """Say that the database was brought back from a backup, before a controller is started on it.

    From then on it only observes: hosts report what they have, nothing is placed and nothing is removed. Look
    at bulkhead deployment show and bulkhead host list, then: bulkhead deployment resume.
    """
    from orchestrator.controller import deployment
    from orchestrator.model.actor import CONTROLLER
    from orchestrator.store.engine import Database
    from orchestrator.store.store import Store

    with _told():
        words = checks.reason(reason)
        store = Store(Database(read_control_settings(settings_file).database_url))
        store.prepare()
        with store.unit_of_work(CONTROLLER) as tx:
            now = deployment.restored(tx, words)
    sys.stdout.write(f"{now.id} observes in epoch {now.epoch}\n")


@app.command()
def migrate(settings_file: SettingsOption = DEFAULT_FILE) -> None:
    """Bring the database's schema up to this version; safe to repeat."""
    from orchestrator.store.engine import Database
    from orchestrator.store.store import Store

    with _told():
        deployment = Store(Database(read_control_settings(settings_file).database_url)).prepare()
    sys.stdout.write(f"{deployment} is up to date\n")
