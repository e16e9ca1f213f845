"""How commands look in a terminal: steps as they happen, tables that fit, errors with a next step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from orchestrator.model.doctor import ALL, Finding
from orchestrator.model.errors import BulkheadError
from orchestrator.model.evidence import Status
from orchestrator.model.report import AbsentReport, HostReport, InstanceReport, Phase

_COLOUR = {Phase.RUNNING: "green", Phase.STOPPED: "yellow", Phase.ABSENT: "dim", Phase.ERROR: "red"}


class StepLines:
    """Progress as one line per finished step."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def started(self, subject: str, step: str) -> None:
        """Nothing yet: short steps would only flicker."""

    def finished(self, subject: str, step: str, duration_s: float, error: BulkheadError | None) -> None:
        """Say what was done, how long it took, and whether it worked."""
        mark = "ok" if error is None else error.code
        self._stream.write(f"  {subject:<24} {step.replace('_', ' '):<18} {duration_s:7.2f} s  {mark}\n")
        self._stream.flush()


def print_problem(problem: BulkheadError) -> None:
    """Write one error to stderr."""
    Console(stderr=True).print(Text(problem.explain()), style="red", soft_wrap=True)


def print_report(report: HostReport, *, wide: bool) -> None:
    """Write a report to stdout: a line per instance, what failed, and with `wide` every check."""
    console = Console()
    table = Table(
        title=f"{report.host}  epoch {report.epoch} revision {report.revision}", title_justify="left"
    )
    for column in ("instance", "tenant", "phase", "pid", "uid", "checks"):
        table.add_column(column, no_wrap=True)
    for each in report.instances:
        passed = sum(1 for verdict in each.verdicts if verdict.status is Status.PASS)
        table.add_row(
            each.instance,
            each.tenant,
            Text(each.phase.value, style=_COLOUR.get(each.phase, "")),
            str(each.pid or "-"),
            str(each.uid or "-"),
            f"{passed}/{len(each.verdicts)}" if each.verdicts else "-",
        )
    for gone in report.absent:
        table.add_row(gone.id, "", Text(gone.phase.value, style=_COLOUR.get(gone.phase, "")), "", "", "")
    console.print(table)
    told: list[InstanceReport | AbsentReport] = [*report.instances, *report.absent]
    for failed in told:
        if failed.error:
            name = getattr(failed, "instance", None) or getattr(failed, "id", "")
            console.print(Text(f"{name}: {failed.error['code']}: {failed.error['message']}", style="red"))
            if "hint" in failed.error:
                console.print(Text(f"  next: {failed.error['hint']}"))
    for stray in report.strays:
        console.print(Text(f"stray {stray.kind} {stray.id}: nobody ordered it; order it absent to remove it"))
    if wide:
        _print_verdicts(console, report)


def print_findings(findings: Sequence[Finding], *, wide: bool, accepted: Sequence[str] = ()) -> None:
    """Write the doctor's findings to stdout: what failed and how it is mended; with `wide` every one.

    Args:
        accepted: ids of checks that the operator lives with; `*`, which is all of them, is warned of.
    """
    console = Console()
    # Without frames and with narrow subjects, names of 36 characters (sysctls) stay whole in 80 columns.
    table = Table(title="doctor", title_justify="left", box=None, padding=(0, 1, 0, 0))
    table.add_column("check", no_wrap=True)
    table.add_column("of", overflow="fold", max_width=12 if console.width < 100 else None)
    table.add_column("is", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    table.add_column("read", overflow="fold")
    shown = [each for each in findings if wide or each.status is not Status.PASS]
    for each in sorted(shown, key=lambda each: not each.blocks):
        style = {Status.PASS: "green", Status.FAIL: "red"}.get(each.status, "yellow")
        table.add_row(
            *map(Text, (each.id, each.subject, each.severity.value)),
            Text(each.status.value + (", accepted" if each.accepted else ""), style=style),
            Text(each.read),
        )
    if shown:
        console.print(table)
    for each in shown:
        if each.status is Status.FAIL:
            console.print(Text(f"{each.id} {each.subject}: expected {each.expected}"))
            # A command stays one line: whoever copies it must not get two.
            console.print(Text(f"  next: {each.mend}"), soft_wrap=True)
    counts = Counter(each.status for each in findings)
    failed = sum(each.blocks for each in findings)
    console.print(
        f"{len(findings)} checks: {counts[Status.PASS]} pass, {counts[Status.FAIL]} fail ({failed} must), "
        f"{counts[Status.UNKNOWN]} unknown"
        + (
            f"; {lived_with} of them accepted"
            if (lived_with := sum(each.accepted for each in findings))
            else ""
        )
    )
    if ALL in accepted:
        warning = f"WARNING: doctor_accepted has {ALL}: whatever fails here, tenants come to this host"
        console.print(Text(warning, style="bold yellow"))


def _print_verdicts(console: Console, report: HostReport) -> None:
    table = Table(title="evidence", title_justify="left")
    for column in ("check", "of", "verdict", "expected", "read"):
        table.add_column(column)
    for each in report.instances:
        for verdict in each.verdicts:
            style = "green" if verdict.status is Status.PASS else "red"
            table.add_row(
                verdict.id,
                verdict.subject,
                Text(verdict.status.value, style=style),
                verdict.expected,
                verdict.read,
            )
    console.print(table)
