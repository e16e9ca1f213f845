"""`bulkhead agent ...`: what runs on a host. Data on stdout, progress on stderr."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from orchestrator.agent.host import AgentSettings
from orchestrator.agent.journal import Journal
from orchestrator.agent.link.keys import DescriptorKeys, NoKeys
from orchestrator.agent.lock import host_lock
from orchestrator.agent.reconcile import Agent
from orchestrator.model.assignment import Assignment
from orchestrator.model.errors import BulkheadError, HostError, InvalidInputError
from orchestrator.model.parsing import parse_assignment, schema
from orchestrator.model.report import HostReport
from orchestrator.processes import lifeline
from orchestrator.processes.agent import real_host, simulated_host
from orchestrator.processes.render import StepLines, print_problem, print_report
from orchestrator.processes.settings import DEFAULT_FILE, read_settings

app = typer.Typer(
    help="Runs on a GPU host: make it equal to its assignment.", no_args_is_help=True, rich_markup_mode=None
)

EXIT_FAILED = 8


class Output(StrEnum):
    """How data is written."""

    TABLE = "table"
    WIDE = "wide"
    JSON = "json"


AssignmentFile = Annotated[Path, typer.Argument(help="The assignment (JSON), or - for standard input.")]
OutputOption = Annotated[Output, typer.Option("--output", "-o", help="table, wide (every check), json")]
KeysOption = Annotated[
    int | None,
    typer.Option("--keys-fd", help="Descriptor to read volume keys from (JSON, volume id to base64)."),
]
SaveOption = Annotated[
    Path | None, typer.Option("--save", help="New file for a recording of what was read; no secrets.")
]
FromOption = Annotated[
    Path | None, typer.Option("--from", help="Read a recording instead of this machine; needs no root.")
]
SettingsOption = Annotated[Path, typer.Option("--settings", help="Settings file (TOML).")]


@contextmanager
def _told() -> Iterator[None]:
    """Turn our errors into one message and an exit code."""
    try:
        yield
    except BulkheadError as exc:
        print_problem(exc)
        raise typer.Exit(exc.exit_code) from exc


def _read(file: Path) -> Assignment:
    try:
        raw = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    except OSError as exc:
        raise InvalidInputError("assignment.unreadable", f"{file}: {exc.strerror}", field="FILE") from exc
    return parse_assignment(raw)


def _agent(settings: AgentSettings, keys_fd: int | None) -> Agent:
    keys = NoKeys() if keys_fd is None else DescriptorKeys(keys_fd)
    return Agent(
        real_host(settings, keys), Journal(settings.journal_path), settings, progress=StepLines(sys.stderr)
    )


def _show(report: HostReport, output: Output) -> None:
    if output is Output.JSON:
        sys.stdout.write(json.dumps(report.as_dict(), sort_keys=True, indent=1) + "\n")
    else:
        print_report(report, wide=output is Output.WIDE)


@app.command("apply")
def apply_(
    file: AssignmentFile,
    output: OutputOption = Output.TABLE,
    keys_fd: KeysOption = None,
    settings_file: SettingsOption = DEFAULT_FILE,
) -> None:
    """Make this host equal to an assignment, once.

    Exit status 0: everything is as ordered. 2: the assignment is wrong, nothing was changed. 5: it is older
    than what this host follows, or foreign; nothing was changed. 8: some of it failed, the report says
    what.
    """
    with _told():
        assignment = _read(file)
        settings = read_settings(settings_file)
        with host_lock(settings.lock_path):
            report = _agent(settings, keys_fd).apply(assignment)
    _show(report, output)
    if not report.ok:
        raise typer.Exit(EXIT_FAILED)


@app.command()
def verify(
    file: AssignmentFile, output: OutputOption = Output.TABLE, settings_file: SettingsOption = DEFAULT_FILE
) -> None:
    """Hold this host against an assignment, with fresh evidence from its kernel; changes nothing.

    Exit status 0: all runs as ordered and every check passed. 8: it does not, the report says what.
    """
    with _told():
        assignment = _read(file)
        report = _agent(read_settings(settings_file), None).look(assignment)
    _show(report, output)
    if not report.ok:
        raise typer.Exit(EXIT_FAILED)


@app.command()
def run(
    file: AssignmentFile,
    interval_s: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks at the host.")] = 10.0,
    keys_fd: KeysOption = None,
    settings_file: SettingsOption = DEFAULT_FILE,
) -> None:
    """Keep this host equal to the assignment in FILE, whatever happens to it; prints one line per change."""
    with _told():
        settings = read_settings(settings_file)
        with host_lock(settings.lock_path):
            _keep(_agent(settings, keys_fd), file, interval_s, time.sleep)


def _keep(agent: Agent, file: Path, interval_s: float, sleep: Callable[[float], None]) -> None:
    """Apply for ever; a failure is said once and tried again at the next look."""
    said = ""
    while True:
        try:
            report = agent.apply(_read(file))
            words = _summary(report)
            if report.changed:
                said = ""
        except BulkheadError as exc:
            words = exc.explain()
        if words != said:
            sys.stdout.write(words + "\n")
            sys.stdout.flush()
            said = words
        sleep(interval_s)


def _summary(report: HostReport) -> str:
    parts = [f"{each.instance} {each.phase.value}" for each in report.instances]
    parts += [f"{each.kind} {each.id} {each.phase.value}" for each in report.absent]
    return f"epoch {report.epoch} revision {report.revision}: {', '.join(parts) or 'nothing ordered'}"


@app.command("schema")
def schema_() -> None:
    """Print the JSON Schema of the assignment."""
    sys.stdout.write(json.dumps(schema(), sort_keys=True, indent=1) + "\n")


@app.command()
def check(file: AssignmentFile) -> None:
    """Read an assignment and say what is wrong with it in itself; looks at no host and changes nothing."""
    from orchestrator.isolation.admission import problems
    from orchestrator.model.parsing import AssignmentRefused

    with _told():
        assignment = _read(file)
        found = problems(assignment, None)
        if found:
            raise AssignmentRefused(found)
    sys.stdout.write(f"fine: {len(assignment.instances)} instances, {len(assignment.absent)} absent\n")


@app.command()
def probe(
    save: SaveOption = None,
    recorded: FromOption = None,
    redact: Annotated[
        bool, typer.Option("--redact", help="With --save: serial numbers and the boot id are left out.")
    ] = False,
    settings_file: SettingsOption = DEFAULT_FILE,
) -> None:
    """Print what this host is made of, as JSON; --save keeps what it and the doctor read.

    What NVML says of GPUs on the nvidia driver is printed too, and stands in no recording. Exit status 8:
    NVML failed, for instance at a lost GPU; all else is printed.

    \b
    bulkhead agent probe --save gpu-07.json --redact
    bulkhead agent probe --from gpu-07.json
    """
    from hostprep.doctor import examine, run_program
    from hostprep.probe import read_host
    from hostprep.probe.nvml import NvmlInventory, drives, read_gpus
    from hostprep.probe.recording import Recorder, load
    from hostprep.probe.recording import save as save_recording
    from orchestrator.model.gpus import ignored

    failed: HostError | None = None
    with _told():
        settings = read_settings(settings_file)
        share = settings.host_cpus or None
        if recorded is not None:
            facts = read_host(load(recorded).root, share, settings.gpu_models)
            nvml = NvmlInventory((), "a recording holds nothing of NVML")
        else:
            recorder = Recorder(run=run_program)
            facts = read_host(recorder.root, share, settings.gpu_models)
            if save is not None:
                # For its reading alone: what it finds can be asked of the recording.
                examine(facts, settings.bridge, recorder.root, recorder.run)
                save_recording(recorder.recording, save, redact=redact)
            nvml = NvmlInventory((), "the nvidia driver holds no function")
            try:
                nvml = read_gpus() if drives(facts.functions) else nvml
            except HostError as exc:
                # A lost GPU is when the rest of the host is wanted most.
                nvml, failed = NvmlInventory((), str(exc)), exc
    said = dataclasses.asdict(facts) | {"ignored": ignored(facts), "nvml": dataclasses.asdict(nvml)}
    sys.stdout.write(json.dumps(said, default=_plain, sort_keys=True, indent=1) + "\n")
    with _told():
        if failed is not None:
            raise failed


@app.command()
def doctor(
    recorded: FromOption = None,
    output: OutputOption = Output.TABLE,
    settings_file: SettingsOption = DEFAULT_FILE,
) -> None:
    """Say what is wrong with this host, and the command that mends it; changes nothing.

    Exit status 0: no must check failed. 8: one did; the host should take no tenant.
    """
    from hostprep.doctor import examine, run_program
    from hostprep.probe import read_host
    from hostprep.probe.recording import load
    from orchestrator.model.doctor import accepting, blocking
    from orchestrator.processes.render import print_findings

    with _told():
        settings = read_settings(settings_file)
        share = settings.host_cpus or None
        if recorded is not None:
            recording = load(recorded)
            facts = read_host(recording.root, share, settings.gpu_models)
            asked = examine(facts, settings.bridge, recording.root, recording.run)
        else:
            asked = examine(
                read_host(Path("/"), share, settings.gpu_models), settings.bridge, run=run_program
            )
    findings = accepting(asked, frozenset(settings.doctor_accepted))
    if output is Output.JSON:
        rows = [dataclasses.asdict(each) for each in findings]
        sys.stdout.write(json.dumps(rows, sort_keys=True, indent=1) + "\n")
    else:
        print_findings(findings, wide=output is Output.WIDE, accepted=settings.doctor_accepted)
    if blocking(findings):
        raise typer.Exit(EXIT_FAILED)


def _plain(value: Any) -> Any:
    if isinstance(value, frozenset):
        return sorted(value)
    raise TypeError(type(value).__name__)


@app.command()
def ask(
    instance: Annotated[str, typer.Argument(help="Instance id.")],
    request: Annotated[str, typer.Argument(help='JSON request, for instance {"op": "report"}.')],
    timeout_s: Annotated[float, typer.Option(min=0.1, help="How long to wait for the guest.")] = 120.0,
    settings_file: SettingsOption = DEFAULT_FILE,
) -> None:
    """Ask what runs inside an instance; an unprivileged worker parses the answer."""
    from orchestrator.agent.guest import GuestChannel

    with _told():
        settings = read_settings(settings_file)
        try:
            body = json.loads(request)
        except ValueError as exc:
            raise InvalidInputError("guest.bad_request", f"not JSON: {exc}", field="REQUEST") from exc
        answer = GuestChannel().ask(settings.guest_socket(instance), body, timeout_s)
    sys.stdout.write(json.dumps(answer, sort_keys=True) + "\n")


@app.command()
def enrol(
    controller: Annotated[str, typer.Option(help="The controller's public address, https://HOST:PORT.")],
    token_file: Annotated[Path, typer.Option(help="File with the join token, or - for standard input.")],
    again: Annotated[
        bool, typer.Option("--again", help="It is that host already; its certificate ended or was revoked.")
    ] = False,
    settings_file: SettingsOption = DEFAULT_FILE,
) -> None:
    """Make this machine a host of a controller, once; prints the host's id.

    The join token names the controller's authority: a controller that cannot prove it is not spoken to.
    Exit status 5: it is a host already. 8: the controller cannot be reached, is another, or refuses.
    """
    from orchestrator.processes.agent_link import enrol_host, read_token

    with _told():
        identity = enrol_host(read_settings(settings_file), controller, read_token(token_file), again=again)
    sys.stdout.write(f"{identity.host}\n")


@app.command("leave")
def leave_(settings_file: SettingsOption = DEFAULT_FILE) -> None:
    """Forget the deployment this host belongs to, once nothing of a tenant is left on it.

    Devices go back to the drivers they came with. Exit status 5: instances or volumes are here, or the agent
    runs; nothing was changed.
    """
    from orchestrator.agent.leave import leave
    from orchestrator.processes.agent_link import certificates_of

    with _told():
        settings = read_settings(settings_file)
        with host_lock(settings.lock_path):
            left = leave(
                real_host(settings, NoKeys()),
                Journal(settings.journal_path),
                certificates_of(settings),
                settings,
                progress=StepLines(sys.stderr),
            )
    sys.stdout.write(f"left {left}\n" if left else "this host belonged to no deployment\n")


@app.command()
def serve(
    settings_file: SettingsOption = DEFAULT_FILE,
    simulated: Annotated[
        bool, typer.Option("--simulated", help="A host that is in memory only, to try things: no root.")
    ] = False,
    lifeline_fd: Annotated[int | None, typer.Option(lifeline.OPTION, min=3, hidden=True)] = None,
) -> None:
    """Keep this host equal to what its controller assigns, until told to end; VMs run on without it.

    It dials the controller and listens for nothing. Lines on stderr say what is done and what fails.
    """
    import asyncio

    from orchestrator.processes import agent_link, logs

    def say(line: str) -> None:
        sys.stderr.write(line + "\n")
        sys.stderr.flush()

    logs.configure()
    with _told():
        if lifeline_fd is not None:
            lifeline.hold_to(lifeline_fd)
        settings = read_settings(settings_file)
        with host_lock(settings.lock_path):
            make, consoles, examine = simulated_host() if simulated else (real_host, None, None)
            steps = StepLines(sys.stderr)
            asyncio.run(
                agent_link.serve(settings, make, progress=steps, say=say, consoles=consoles, examine=examine)
            )
