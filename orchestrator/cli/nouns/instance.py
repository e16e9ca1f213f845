"""`bulkhead instance ...`: a tenant's virtual machines."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli import checks
from orchestrator.cli import evidence as evidence_table
from orchestrator.cli.columns import Column, clean, time
from orchestrator.cli.completion import names_of
from orchestrator.cli.filters import by_name_prefix, by_reference, by_state
from orchestrator.cli.messages import say
from orchestrator.cli.options import (
    DEFAULT_TIMEOUT,
    ColumnsOption,
    DryRunOption,
    NoHeadersOption,
    NoWaitOption,
    OutputOption,
    TenantOption,
    TimeoutOption,
)
from orchestrator.cli.output import show_object
from orchestrator.cli.running import finish, seconds_of, waiting
from orchestrator.cli.session import session_of
from orchestrator.cli.verbs import Kind, add_delete, add_list, add_show
from orchestrator.client import JsonObject, Thing, clock
from orchestrator.client.errors import OperationFailedError, WaitTimeoutError
from orchestrator.model.errors import InvalidInputError
from orchestrator.model.states import InstanceState

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

COLUMNS = (
    Column("name", "name", flexible=True),
    Column("state", "state"),
    Column("type", "type_name", flexible=True),
    Column("gpus", "gpus", number=True),
    Column("address", lambda item: [port.get("address") for port in item.get("ports") or []], flexible=True),
    Column("error", "error.code", flexible=True),
    Column("volumes", lambda item: [each.get("name") for each in item.get("volumes") or []], wide=True),
    Column("id", "id", wide=True),
    Column("desired", "desired", wide=True),
    Column("vcpus", "vcpus", wide=True, number=True),
    Column("memory_mib", "memory_mib", wide=True, number=True),
    Column("disk_gib", "disk_gib", wide=True, number=True),
    Column("isolation", "isolation", wide=True),
    Column("image", "image_id", wide=True),
    Column("created", time("created_at"), wide=True),
    # Told to the platform's people alone.
    Column("host", "host_id", wide=True),
)
KIND = Kind("instance", COLUMNS, of_tenant=lambda tenant: tenant.instances)
#: What it never becomes by itself again; whoever waits for something else waits for nothing.
_DEAD_ENDS = frozenset({InstanceState.ERROR.value, InstanceState.NEEDS_ATTENTION.value})
_LOOK_S = 1.0

NameArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="Name or id.", autocompletion=names_of(KIND.open))
]

add_list(
    app,
    KIND,
    "List instances.",
    (
        by_state(InstanceState),
        by_reference("type", "type", "Only of this instance type.", "instance type"),
        by_reference("host", "host", "Only those on this host; for the platform's people."),
        by_name_prefix(),
    ),
)
add_show(app, KIND, "Show one instance.")


@app.command()
def create(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its name, unique in the tenant.")],
    type_: Annotated[str, typer.Option("--type", metavar="TYPE", help="Instance type: bulkhead type list.")],
    image: Annotated[str, typer.Option("--image", metavar="IMAGE", help="Image: bulkhead image list.")],
    networks: Annotated[
        list[str] | None,
        typer.Option("--network", metavar="NETWORK", help="A network to be on; repeat it for more."),
    ] = None,
    volumes: Annotated[
        list[str] | None,
        typer.Option("--volume", metavar="VOLUME", help="A volume to have; repeat it for more."),
    ] = None,
    user_data: Annotated[
        Path | None,
        typer.Option("--user-data", metavar="FILE", help="cloud-config for the first boot, - for stdin."),
    ] = None,
    on_no_capacity: Annotated[
        str, typer.Option("--on-no-capacity", metavar="WHAT", help="wait for a place, or fail at once.")
    ] = "wait",
    on_drain: Annotated[
        str,
        typer.Option(
            "--on-drain",
            metavar="WHAT",
            help="When its host is drained: stop, move (built anew) or refuse.",
        ),
    ] = "stop",
    drain_deadline: Annotated[
        str | None,
        typer.Option(
            "--drain-deadline",
            metavar="TIME",
            help="It runs on so long in a drain: 30m, 12h; then even one that refuses is stopped.",
        ),
    ] = None,
    tenant: TenantOption = None,
    dry_run: DryRunOption = False,
    no_wait: NoWaitOption = False,
    timeout: TimeoutOption = DEFAULT_TIMEOUT,
    output: OutputOption = None,
) -> None:
    """Make an instance and wait until it runs.

    \b
    bulkhead instance create train --type gpu-1 --image debian-13 \\
      --network back --user-data cloud-config.yaml
    """
    session = session_of(context)
    form = session.form(output, None, False)
    how = waiting(no_wait, timeout, dry_run)
    if on_no_capacity not in ("wait", "fail"):
        raise InvalidInputError("instance.on_no_capacity", "it is wait or fail", field="--on-no-capacity")
    if on_drain not in ("stop", "move", "refuse"):
        raise InvalidInputError("instance.on_drain", "it is stop, move or refuse", field="--on-drain")
    body: JsonObject = {
        "name": checks.name("instance", name),
        "type": checks.reference("instance type", type_),
        "image": checks.reference("image", image),
        "networks": [checks.reference("network", each) for each in networks or []],
        "volumes": [checks.reference("volume", each) for each in volumes or []],
        "on_no_capacity": on_no_capacity,
        "on_drain": on_drain,
    }
    if drain_deadline is not None:
        body["drain_deadline_s"] = int(seconds_of(drain_deadline, "--drain-deadline"))
    if user_data is not None:
        body["user_data"] = checks.read_text(user_data, "--user-data")
    with session.tenant(tenant) as (client, scope):
        finish(
            client,
            scope.instances.create(body, dry_run=dry_run),
            how,
            operations=scope.operations,
            columns=COLUMNS,
            form=form,
            subject=scope.instances[name],
            done=f"instance {name} runs",
        )


def _act(
    context: typer.Context,
    verb: str,
    done: str,
    name: str,
    tenant: str | None,
    dry_run: bool,
    no_wait: bool,
    timeout: str,
    output: str | None,
) -> None:
    session = session_of(context)
    form = session.form(output, None, False)
    how = waiting(no_wait, timeout, dry_run)
    checks.reference("instance", name)
    with session.tenant(tenant) as (client, scope):
        finish(
            client,
            scope.instances[name].act(verb, dry_run=dry_run),
            how,
            operations=scope.operations,
            columns=COLUMNS,
            form=form,
            subject=scope.instances[name],
            done=f"instance {name} {done}",
        )


@app.command()
def start(
    context: typer.Context,
    name: NameArgument,
    tenant: TenantOption = None,
    dry_run: DryRunOption = False,
    no_wait: NoWaitOption = False,
    timeout: TimeoutOption = DEFAULT_TIMEOUT,
    output: OutputOption = None,
) -> None:
    """Start a stopped instance and wait until it runs."""
    _act(context, "start", "runs", name, tenant, dry_run, no_wait, timeout, output)


@app.command()
def stop(
    context: typer.Context,
    name: NameArgument,
    tenant: TenantOption = None,
    dry_run: DryRunOption = False,
    no_wait: NoWaitOption = False,
    timeout: TimeoutOption = DEFAULT_TIMEOUT,
    output: OutputOption = None,
) -> None:
    """Stop an instance. It keeps its place, its GPUs and its quota."""
    _act(context, "stop", "stopped", name, tenant, dry_run, no_wait, timeout, output)


@app.command()
def restart(
    context: typer.Context,
    name: NameArgument,
    tenant: TenantOption = None,
    dry_run: DryRunOption = False,
    no_wait: NoWaitOption = False,
    timeout: TimeoutOption = DEFAULT_TIMEOUT,
    output: OutputOption = None,
) -> None:
    """Stop an instance and start it again where it is."""
    _act(context, "restart", "runs again", name, tenant, dry_run, no_wait, timeout, output)


add_delete(app, KIND, "Delete an instance. Its boot volume goes with it, others stay, its GPUs are reset.")


@app.command()
def wait(
    context: typer.Context,
    name: NameArgument,
    state: Annotated[
        str, typer.Option("--for", metavar="STATE", help="The state to wait for, such as running or stopped.")
    ],
    tenant: TenantOption = None,
    timeout: TimeoutOption = DEFAULT_TIMEOUT,
    output: OutputOption = None,
) -> None:
    """Wait until an instance is in a state.

    Exit status 7: it is not yet. 8: it ended in error instead.
    """
    session = session_of(context)
    form = session.form(output, None, False)
    checks.reference("instance", name)
    if state not in list(InstanceState):
        raise InvalidInputError(
            "instance.state",
            "there is no such state",
            field="--for",
            hint=f"there are {', '.join(InstanceState)}",
        )
    with session.tenant(tenant) as (_, scope):
        found = _wait_for(scope.instances[name], name, state, seconds_of(timeout))
    show_object(found, COLUMNS, form)
    say(f"instance {name} is {state}")


def _wait_for(instance: Thing, name: str, state: str, timeout_s: float) -> JsonObject:
    """Look once a second; states pass too quickly for fewer looks to be sure to see them."""
    end = clock.now() + timeout_s
    while True:
        found = instance.get()
        now = str(found.get("state"))
        if now == state:
            return found
        if now in _DEAD_ENDS:
            error = found.get("error") or {}
            raise OperationFailedError(
                str(error.get("code", "instance.error")),
                f"instance {name} is {now}: {error.get('message', 'it does not say why')}",
                hint=error.get("hint") or f"bulkhead instance show {name}",
            )
        if clock.now() >= end:
            raise WaitTimeoutError(
                "instance.still_waiting", f"instance {name} is {now} after {timeout_s:g} s, not {state}"
            )
        clock.sleep(min(_LOOK_S, max(0.0, end - clock.now())))


@app.command()
def console(context: typer.Context, name: NameArgument, tenant: TenantOption = None) -> None:
    """Join this terminal to an instance's serial console.

    Every key goes to the instance, Ctrl-C too; Ctrl-] leaves. One console of an instance can be open at a
    time.
    """
    # Only here: no other command wants a terminal's modes.
    from orchestrator.cli import terminal
    from orchestrator.client.console import check_end

    session = session_of(context)
    checks.reference("instance", name)
    terminal.check_terminal()
    with session.tenant(tenant) as (client, _):
        ended = terminal.join(client.console(session.tenant_name(tenant), name), name)
    if ended is not None:
        check_end(ended)
        say("the console has ended")


@app.command()
def log(
    context: typer.Context,
    name: NameArgument,
    tail: Annotated[
        int | None, typer.Option("--tail", min=1, metavar="N", help="Only the last N lines.")
    ] = None,
    tenant: TenantOption = None,
) -> None:
    """Print what an instance's console said, as its host kept it.

    On a terminal, what could steer it is shown as its escape; a file or a pipe gets the bytes as they are.
    """
    session = session_of(context)
    checks.reference("instance", name)
    with session.tenant(tenant) as (client, _):
        kept = b"".join(client.console_log(session.tenant_name(tenant), name))
    lines = kept.splitlines(keepends=True)
    shown = b"".join(lines if tail is None else lines[-tail:])
    if _to_terminal():
        text = shown.decode("utf-8", "replace").replace("\r\n", "\n")
        sys.stdout.write(clean(text, keep="\n\t"))
    else:
        sys.stdout.buffer.write(shown)
    sys.stdout.flush()


def _to_terminal() -> bool:
    return sys.stdout.isatty()


@app.command()
def evidence(
    context: typer.Context,
    name: NameArgument,
    tenant: TenantOption = None,
    output: OutputOption = None,
    columns: ColumnsOption = None,
    no_headers: NoHeadersOption = False,
) -> None:
    """Show what its host read and checked of an instance's isolation last."""
    session = session_of(context)
    form = session.form(output, columns, no_headers, evidence_table.COLUMNS)
    checks.reference("instance", name)
    with session.tenant(tenant) as (_, scope):
        found = scope.instances[name].part("evidence").get()
    evidence_table.show(found, form, f"instance {name} has not run yet")
