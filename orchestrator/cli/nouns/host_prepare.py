"""`bulkhead host prepare`: from a bare Debian or Ubuntu server to a host of the controller.

Decides the order only: what can be refused is refused before a host is touched; then the playbook, then, for
hosts that are not yet a controller's, their join tokens and the enrolment. One of the commands of the noun
`host`; it stands apart because it alone loads `hostprep.run`.
"""

from __future__ import annotations

import ipaddress
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer

from hostprep.run import (
    HostOutcome,
    Login,
    Outcomes,
    PlaybookRun,
    State,
    Targets,
    build_wheel,
    checkout,
    from_inventory,
    from_names,
    run_playbook,
)
from orchestrator.cli import checks
from orchestrator.cli.columns import Column
from orchestrator.cli.messages import print_error, say
from orchestrator.cli.options import OutputOption
from orchestrator.cli.output import Output, show_rows, write_value
from orchestrator.cli.preparing import shown
from orchestrator.cli.session import Session, session_of
from orchestrator.client.http import check_url
from orchestrator.model.errors import BulkheadError, ConflictError, HostError, InvalidInputError
from orchestrator.model.states import HostState

#: Of the space that is free, so much is offered to tenants' volumes where nothing else is said.
_DISK_TENTHS = 9
#: A busy host's agent takes a while to look at it whole.
_HEARD_S = 180.0
_ENROLLED_TASK = "Tell what the agent said"

COLUMNS = (
    Column("host", "host"),
    Column("state", "state"),
    Column("tasks", "tasks", number=True),
    Column("changed", lambda item: len(item["changed"]), number=True),
    Column("enrolled", "enrolled"),
    Column(
        "waits",
        lambda item: f"{len(item['waits'])}: {item['waits'][0]}" if item["waits"] else "",
        flexible=True,
    ),
)


@dataclass
class _Plan:
    """What was asked for, once it is known to be right."""

    targets: Targets
    login: Login
    check: bool
    reboot: bool
    disk_gib: int | None
    #: Leaves the agent's code on the hosts as it is.
    keep_agent: bool
    #: Where hosts find the controller; None enrols nothing.
    controller: str | None
    variables: dict[str, Any] = field(default_factory=dict)


def prepare(
    context: typer.Context,
    hosts: Annotated[
        list[str] | None,
        typer.Argument(metavar="HOST...", help="NAME, or NAME=ADDRESS[:PORT]; with --inventory names of it."),
    ] = None,
    inventory: Annotated[
        Path | None, typer.Option("--inventory", "-i", help="An inventory file of Ansible's, for many hosts.")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Only tell what would change.")] = False,
    reboot: Annotated[
        bool, typer.Option("--reboot", help="Restart hosts that need it and run no VM.")
    ] = False,
    user: Annotated[str | None, typer.Option("--user", help="Who ssh logs in as.")] = None,
    key: Annotated[Path | None, typer.Option("--key", help="The private key that ssh uses.")] = None,
    accept_new_key: Annotated[
        bool, typer.Option("--accept-new-key", help="Believe the host key of a host never spoken to.")
    ] = False,
    ask_become_pass: Annotated[
        bool, typer.Option("--ask-become-pass", help="Ask for sudo's password on the hosts.")
    ] = False,
    keep_agent: Annotated[
        bool, typer.Option("--keep-agent", help="Leave the agent's code on the hosts as it is.")
    ] = False,
    no_enrol: Annotated[
        bool, typer.Option("--no-enrol", help="Prepare only; no controller is asked.")
    ] = False,
    controller: Annotated[
        str | None, typer.Option("--controller", metavar="URL", help="Where hosts find the controller.")
    ] = None,
    disk_gib: Annotated[
        int | None,
        typer.Option(
            "--disk-gib", min=0, max=10**6, help="What volumes may take; else 9/10 of what is free."
        ),
    ] = None,
    output: OutputOption = None,
) -> None:
    """Prepare Debian and Ubuntu servers as GPU hosts over ssh, and let them in.

    Run again, it changes only what strays. docs/hosts.md lists all that it sets.

    \b
    bulkhead host prepare gpu-07 --check
    bulkhead host prepare gpu-07=192.0.2.17 --user operator --reboot
    bulkhead host prepare --inventory hosts.yml
    """
    session = session_of(context)
    form = session.form(output, None, False)
    root = checkout()
    plan = _Plan(
        targets=from_inventory(inventory, hosts or []) if inventory else from_names(hosts or []),
        login=Login(user, _readable(key), accept_new_key),
        check=check,
        reboot=reboot,
        disk_gib=disk_gib,
        keep_agent=keep_agent,
        controller=None if no_enrol or check else _controller(session, controller),
    )
    if ask_become_pass:
        password = typer.prompt("sudo password", hide_input=True, err=True)
        plan.login = Login(user, plan.login.key, accept_new_key, password)
    found = _prepare(root, plan)
    if plan.controller is not None:
        _enrol(session, root, plan, found)
    rows = [_row(each) for each in found]
    if form.output in (Output.JSON, Output.YAML):
        write_value({"items": rows}, form.output)
    else:
        show_rows(rows, COLUMNS, form)
    _conclude(found, plan)


def _readable(key: Path | None) -> Path | None:
    if key is not None and not key.is_file():
        raise InvalidInputError("prepare.key", f"there is no file {key}", field="--key")
    return key


def _controller(session: Session, given: str | None) -> str:
    """Return the controller's address as hosts use it; a profile that opens nothing is told now."""
    access = session.access()
    if given is not None:
        return check_url(given)
    name = urlsplit(access.url).hostname or ""
    try:
        local = ipaddress.ip_address(name).is_loopback
    except ValueError:
        local = name == "localhost"
    if local:
        raise InvalidInputError(
            "prepare.controller",
            f"hosts cannot reach the controller at {access.url}",
            field="--controller",
            hint="give the address that hosts see: --controller https://HOST:PORT; or --no-enrol",
        )
    return access.url


def _prepare(root: Path, plan: _Plan) -> list[HostOutcome]:
    outcomes = Outcomes()
    with tempfile.TemporaryDirectory(prefix="bulkhead-wheel-") as folder:
        variables = {
            **plan.variables,
            "bulkhead_wheel": "" if plan.keep_agent else str(build_wheel(root, Path(folder))),
            "reboot": "yes" if plan.reboot else "no",
        }
        run = PlaybookRun(root / "playbooks", "site.yml", plan.targets, plan.login, variables, plan.check)
        with shown(outcomes) as see:
            run_playbook(run, see)
    found = outcomes.end()
    for host in found:
        if host.resumed:
            say(f"{host.host}: an earlier run had ended halfway; all of it was done again")
    return found


def _enrol(session: Session, root: Path, plan: _Plan, found: Sequence[HostOutcome]) -> None:
    """Let in who is prepared and belongs to nobody yet; what fails stands in each host's outcome."""
    fresh = {each.host: each for each in found if each.state is State.DONE and not each.enrolled}
    tokens: dict[str, str] = {}
    with session.client() as client:
        for host in fresh.values():
            try:
                tokens[host.host] = _join_token(client, host, plan.disk_gib)
            except BulkheadError as exc:
                host.state, host.error = State.FAILED, exc
    if not tokens:
        return
    targets = Targets(plan.targets.inventory, tuple(sorted(tokens)))
    variables = {"controller_url": plan.controller, "join_tokens": tokens}
    outcomes = Outcomes(last_task=_ENROLLED_TASK)
    with shown(outcomes) as see:
        run_playbook(PlaybookRun(root / "playbooks", "enrol.yml", targets, plan.login, variables), see)
    for ended in outcomes.end():
        host = fresh[ended.host]
        host.tasks += ended.tasks
        host.changed += ended.changed
        host.enrolled = ended.enrolled
        host.state, host.error = ended.state, ended.error
    _heard(session, [fresh[name] for name in tokens if fresh[name].state is State.DONE])


def _heard(session: Session, hosts: Sequence[HostOutcome]) -> None:
    """Wait until the controller has heard each of them: an agent that does not stay up is no success."""
    end = time.monotonic() + _HEARD_S
    silent = {each.host: each for each in hosts}
    with session.client() as client:
        while silent and time.monotonic() < end:
            for name in list(silent):
                if client.hosts[name].get()["state"] != HostState.ENROLLING:
                    del silent[name]
            if silent:
                time.sleep(1)
    for name, host in silent.items():
        host.state = State.FAILED
        host.error = HostError(
            "prepare.silent",
            f"{name}: its agent enrolled and has said nothing for {_HEARD_S:.0f} s",
            hint="on that host: systemctl status bulkhead-agent; journalctl -u bulkhead-agent",
        )


def _join_token(client: Any, host: HostOutcome, disk_gib: int | None) -> str:
    offered = host.disk_free_gib * _DISK_TENTHS // 10 if disk_gib is None else disk_gib
    body = {"name": checks.name("host", host.host), "disk_gib": offered}
    try:
        made = client.hosts.create(body).body or {}
    except ConflictError as exc:
        raise ConflictError(
            exc.code,
            f"{host.host}: the controller has a host of this name, and this machine is not it",
            hint=f"if it never came in: bulkhead host remove {host.host} --reason WHY, then the same again",
        ) from exc
    token = made.get("join_token")
    if not isinstance(token, str):
        raise HostError("prepare.enrol", f"{host.host}: the controller gave no join token")
    return token


def _row(host: HostOutcome) -> dict[str, Any]:
    return {
        "host": host.host,
        "name": host.host,
        "state": "prepared" if host.state is State.DONE else str(host.state),
        "tasks": host.tasks,
        "changed": host.changed,
        "enrolled": host.enrolled,
        "waits": host.waits,
        "error": host.error.as_dict() if host.error else None,
    }


def _conclude(found: Sequence[HostOutcome], plan: _Plan) -> None:
    """Tell what is left to do; end with the status of the first failure."""
    if plan.check:
        for host in found:
            for each in host.changed:
                say(f"{host.host} would change {each}")
    for host in found:
        if any(each.startswith("reboot:") for each in host.waits):
            say(f"{host.host} waits for a restart: bulkhead host prepare {host.host} --reboot")
    failed = [each.error for each in found if each.error is not None]
    for error in failed:
        print_error(error)
    if failed:
        raise typer.Exit(failed[0].exit_code)
