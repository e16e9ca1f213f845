"""`bulkhead host ...`: the GPU hosts of the platform."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from orchestrator.cli import checks
from orchestrator.cli import doctor as doctor_table
from orchestrator.cli import evidence as evidence_table
from orchestrator.cli.columns import Column, time
from orchestrator.cli.completion import names_of
from orchestrator.cli.filters import by_name_prefix, by_state
from orchestrator.cli.host_summary import summary
from orchestrator.cli.messages import say
from orchestrator.cli.nouns.host_prepare import prepare
from orchestrator.cli.options import (
    ColumnsOption,
    DryRunOption,
    NoHeadersOption,
    NoWaitOption,
    OutputOption,
    ReasonOption,
    TimeoutOption,
    YesOption,
)
from orchestrator.cli.output import Output, show_object
from orchestrator.cli.running import confirm, finish, seconds_of, waiting
from orchestrator.cli.session import session_of
from orchestrator.cli.verbs import Kind, add_list, add_show
from orchestrator.client import JsonObject, Thing, clock
from orchestrator.client.errors import WaitTimeoutError
from orchestrator.model.errors import InvalidInputError
from orchestrator.model.states import HostState

#: An agent hears that it is asked with its next sign of life, ten seconds later at most.
_LOOK_AGAIN_S = 1.0

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

COLUMNS = (
    Column("name", "name", flexible=True),
    Column("state", "state"),
    Column("free_gib", lambda item: int(item["disk_gib"]) - int(item["used_disk_gib"]), number=True),
    Column("doctor", doctor_table.word),
    Column("reported", time("reported_at")),
    Column("error", "error.code", flexible=True),
    Column("reason", "reason", flexible=True),
    Column("id", "id", wide=True),
    Column("disk_gib", "disk_gib", wide=True, number=True),
    Column("agent", "agent_version", wide=True),
    Column("epoch", "applied_epoch", wide=True, number=True),
    Column("revision", "revision", wide=True, number=True),
    Column("applied", "applied_revision", wide=True, number=True),
    Column("failed_checks", "failed_checks", wide=True, number=True),
    Column("strays", lambda item: len(item.get("strays") or []), wide=True, number=True),
    Column("heard", time("heard_at"), wide=True),
    Column("created", time("created_at"), wide=True),
)
KIND = Kind("host", COLUMNS, of_platform=lambda client: client.hosts, summary=summary)

NameArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="Name or id.", autocompletion=names_of(KIND.open))
]

add_list(app, KIND, "List hosts.", (by_state(HostState), by_name_prefix()))
add_show(app, KIND, "Show one host, and in short what it is made of; -o json and -o yaml tell all.")


@app.command()
def create(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its name.")],
    disk_gib: Annotated[
        int, typer.Option("--disk-gib", min=0, max=10**6, help="What tenants' volumes may take of it.")
    ],
    dry_run: DryRunOption = False,
    output: OutputOption = None,
) -> None:
    """Let a host in. Its join token goes to stdout, this once; it works for a day.

    \b
    bulkhead host create gpu-07 --disk-gib 4000 > gpu-07.join
    """
    session = session_of(context)
    form = session.form(output, None, False)
    body: JsonObject = {"name": checks.name("host", name), "disk_gib": disk_gib}
    with session.client() as client:
        made = client.hosts.create(body, dry_run=dry_run).body or {}
    if form.output in (Output.JSON, Output.YAML):
        show_object(made, COLUMNS, form)
    elif made.get("join_token"):
        show_object(made["join_token"], COLUMNS, form)
    if dry_run:
        say("dry run: nothing was changed")
    else:
        say(f"host {name} may join; next, on it: bulkhead agent enrol --controller URL --token-file FILE")


def _act(
    context: typer.Context,
    verb: str,
    name: str,
    reason: str,
    dry_run: bool,
    output: str | None,
    done: str,
    **more: Any,
) -> None:
    session = session_of(context)
    form = session.form(output, None, False)
    checks.reference("host", name)
    body: JsonObject = {"reason": checks.reason(reason), **more}
    with session.client() as client:
        answer = client.hosts[name].act(verb, body, dry_run=dry_run)
    show_object(answer.body, COLUMNS, form)
    say("dry run: nothing was changed" if dry_run else f"host {name} {done}")


@app.command()
def cordon(
    context: typer.Context,
    name: NameArgument,
    reason: ReasonOption,
    dry_run: DryRunOption = False,
    output: OutputOption = None,
) -> None:
    """Place nothing new on a host; what runs there goes on."""
    _act(context, "cordon", name, reason, dry_run, output, "takes nothing new")


@app.command()
def drain(
    context: typer.Context,
    name: NameArgument,
    reason: ReasonOption,
    policy: Annotated[
        str,
        typer.Option("--policy", metavar="WHAT", help="each: as its tenant said; stop all; or wait for all."),
    ] = "each",
    deadline: Annotated[
        str, typer.Option("--deadline", metavar="TIME", help="Fail with what still runs then: 30m, 12h.")
    ] = "1h",
    yes: YesOption = False,
    dry_run: DryRunOption = False,
    no_wait: NoWaitOption = False,
    timeout: TimeoutOption = "2h",
    output: OutputOption = None,
) -> None:
    """Place nothing new on a host, and stop or move what runs on it, until nothing does.

    Each instance says what becomes of it (instance create --on-drain). Stopped ones keep their place there.
    One that refuses runs on: past the deadline the drain fails and names it. Uncordon or cordon ends a drain.
    """
    session = session_of(context)
    form = session.form(output, None, False)
    how = waiting(no_wait, timeout, dry_run)
    checks.reference("host", name)
    if policy not in ("each", "stop", "wait"):
        raise InvalidInputError("host.drain_policy", "it is each, stop or wait", field="--policy")
    deadline_s = int(seconds_of(deadline, "--deadline"))
    body: JsonObject = {"reason": checks.reason(reason), "policy": policy, "deadline_s": deadline_s}
    if policy != "wait":
        confirm("host", name, yes or dry_run, "drain")
    with session.client() as client:
        finish(
            client,
            client.hosts[name].act("drain", body, dry_run=dry_run),
            how,
            operations=client.operations,
            columns=COLUMNS,
            form=form,
            # For people, all that its probe read would hide the one line that counts.
            subject=client.hosts[name] if form.output in (Output.JSON, Output.YAML) else None,
            done=f"host {name} is drained",
        )


@app.command()
def uncordon(
    context: typer.Context,
    name: NameArgument,
    reason: ReasonOption,
    dry_run: DryRunOption = False,
    output: OutputOption = None,
) -> None:
    """Place new instances on a host again."""
    _act(context, "uncordon", name, reason, dry_run, output, "takes new instances")


@app.command()
def fence(
    context: typer.Context,
    name: NameArgument,
    reason: ReasonOption,
    powered_off: Annotated[
        bool, typer.Option("--powered-off", help="You saw to it that the machine is off.")
    ] = False,
    yes: YesOption = False,
    dry_run: DryRunOption = False,
    output: OutputOption = None,
) -> None:
    """Shut a host out that is switched off: its certificates open nothing any more.

    Switch the machine itself off first, at its management controller or its power strip: what still runs on
    it answers for its tenants' addresses. Then its instances can be rebuilt: bulkhead host evacuate.
    """
    # Before the question: nobody should type a name for what is refused anyway.
    checks.reference("host", name)
    checks.reason(reason)
    if not powered_off:
        raise InvalidInputError(
            "host.power_unsure",
            f"is {name} switched off? Only then may what ran on it run elsewhere",
            field="--powered-off",
            hint="switch it off at its management controller or power strip, then add --powered-off",
        )
    confirm("host", name, yes or dry_run, "fence")
    _act(context, "fence", name, reason, dry_run, output, "is shut out", powered_off=True)


@app.command()
def evacuate(
    context: typer.Context,
    name: NameArgument,
    reason: ReasonOption,
    yes: YesOption = False,
    dry_run: DryRunOption = False,
    no_wait: NoWaitOption = False,
    timeout: TimeoutOption = "2h",
    output: OutputOption = None,
) -> None:
    """Rebuild a fenced host's instances elsewhere from their images, and wait until they run.

    Every volume that lived on the host is lost: the operation names them. Tenants read the reason on their
    instances. The host's GPUs stay taken until it comes back and cleaned them, or is removed.
    """
    session = session_of(context)
    form = session.form(output, None, False)
    how = waiting(no_wait, timeout, dry_run)
    checks.reference("host", name)
    body: JsonObject = {"reason": checks.reason(reason)}
    confirm("host", name, yes or dry_run, "evacuate")
    with session.client() as client:
        answer = client.hosts[name].act("evacuate", body, dry_run=dry_run)
        result = (answer.body or {}).get("result") or {}
        for volume in result.get("lost_volumes", ()):
            kind = "its boot volume, made anew" if volume["boot"] else "a volume of its own"
            say(f"lost: {volume['id']} {volume['name']} ({kind})")
        finish(
            client,
            answer,
            how,
            operations=client.operations,
            columns=COLUMNS,
            form=form,
            subject=client.hosts[name] if form.output in (Output.JSON, Output.YAML) else None,
            done=f"host {name} is evacuated",
        )


@app.command()
def remove(
    context: typer.Context,
    name: NameArgument,
    reason: ReasonOption,
    lost: Annotated[
        bool, typer.Option("--lost", help="Give up the volumes on it, and what it may still run.")
    ] = False,
    yes: YesOption = False,
    dry_run: DryRunOption = False,
    output: OutputOption = None,
) -> None:
    """Take a host out for good that is drained or fenced and empty, or that never came in.

    Its certificates open nothing any more, its GPUs are gone. The name can be given to another host.
    """
    checks.reference("host", name)
    checks.reason(reason)
    confirm("host", name, yes or dry_run, "remove")
    _act(context, "remove", name, reason, dry_run, output, "is removed", lost=lost)


@app.command()
def revoke(
    context: typer.Context,
    name: NameArgument,
    reason: ReasonOption,
    yes: YesOption = False,
    dry_run: DryRunOption = False,
    output: OutputOption = None,
) -> None:
    """Take back a host's certificates: its agent is shut out at once, its instances run on.

    Let it in again with a new one: bulkhead host join-token.
    """
    checks.reference("host", name)
    checks.reason(reason)
    confirm("host", name, yes or dry_run, "revoke")
    _act(context, "revoke", name, reason, dry_run, output, "has no certificate any more")


@app.command("join-token")
def join_token(
    context: typer.Context, name: NameArgument, dry_run: DryRunOption = False, output: OutputOption = None
) -> None:
    """Print a new join token of a host, this once; it works for a day, and earlier ones stop working.

    \b
    bulkhead host join-token gpu-07 > gpu-07.join
    """
    session = session_of(context)
    form = session.form(output, None, False)
    checks.reference("host", name)
    with session.client() as client:
        made = client.hosts[name].act("join-token", dry_run=dry_run).body or {}
    if form.output in (Output.JSON, Output.YAML):
        show_object(made, COLUMNS, form)
    elif made.get("join_token"):
        show_object(made["join_token"], COLUMNS, form)
    if dry_run:
        say("dry run: nothing was changed")
    else:
        say(f"next, on {name}: bulkhead agent enrol --again --controller URL --token-file FILE")


@app.command("remove-stray")
def remove_stray(
    context: typer.Context,
    name: NameArgument,
    kind: Annotated[str, typer.Argument(metavar="KIND", help="instance or volume.")],
    identity: Annotated[str, typer.Argument(metavar="ID", help="Its id, as host show -o yaml lists it.")],
    reason: ReasonOption,
    yes: YesOption = False,
    dry_run: DryRunOption = False,
    output: OutputOption = None,
) -> None:
    """Take away, for good, something that a host has and the database does not know there.

    A volume's data are lost with it.
    """
    session = session_of(context)
    form = session.form(output, None, False)
    checks.reference("host", name)
    checks.reference("stray", identity)
    if kind not in ("instance", "volume"):
        raise InvalidInputError("stray.kind", "a stray to remove is an instance or a volume", field="KIND")
    body: JsonObject = {"kind": kind, "id": identity, "reason": checks.reason(reason)}
    confirm(kind, identity, yes or dry_run, "remove")
    with session.client() as client:
        answer = client.hosts[name].act("remove-stray", body, dry_run=dry_run)
    show_object(answer.body, COLUMNS, form)
    say("dry run: nothing was changed" if dry_run else f"host {name} is to take {identity} away")


@app.command()
def evidence(
    context: typer.Context,
    name: NameArgument,
    output: OutputOption = None,
    columns: ColumnsOption = None,
    no_headers: NoHeadersOption = False,
) -> None:
    """Show what a host checked of itself last.

    Such as whether its switch runs the compiled policy; each instance has evidence of its own.
    """
    session = session_of(context)
    form = session.form(output, columns, no_headers, evidence_table.COLUMNS)
    checks.reference("host", name)
    with session.client() as client:
        found = client.hosts[name].part("evidence").get()
    evidence_table.show(found, form, f"host {name} has not reported yet")


@app.command()
def doctor(
    context: typer.Context,
    name: NameArgument,
    everything: Annotated[bool, typer.Option("--all", help="Show what passed too.")] = False,
    now: Annotated[bool, typer.Option("--now", help="Have it look now, and wait until it has.")] = False,
    timeout: TimeoutOption = "2m",
    output: OutputOption = None,
    columns: ColumnsOption = None,
    no_headers: NoHeadersOption = False,
) -> None:
    """Show what a host's doctor found last, and the command that mends it.

    Exit status 8: a must check failed; the host takes nothing new until it passes or is accepted.
    """
    session = session_of(context)
    form = session.form(output, columns, no_headers, doctor_table.COLUMNS)
    timeout_s = seconds_of(timeout)
    checks.reference("host", name)
    with session.client() as client:
        thing = client.hosts[name]
        found = _examined(thing, timeout_s) if now else thing.part("doctor").get()
    if doctor_table.show(found, form, everything=everything):
        raise typer.Exit(doctor_table.EXIT_FAILED)


def _examined(host: Thing, timeout_s: float) -> JsonObject:
    """Have the doctor look, and return what it found.

    Raises:
        WaitTimeoutError: `doctor.not_heard`.
    """
    host.act("examine")
    end_s = clock.now() + timeout_s
    while (found := host.part("doctor").get())["asked_at"] is not None:
        if clock.now() >= end_s:
            raise WaitTimeoutError(
                "doctor.not_heard",
                f"the doctor has not spoken within {timeout_s:g} s",
                hint="without --now: what it said last; does its agent run, and is it of this version?",
            )
        clock.sleep(_LOOK_AGAIN_S)
    return found


app.command("prepare")(prepare)
