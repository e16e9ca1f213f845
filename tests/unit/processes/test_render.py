"""What people see: tables that fit, every failure with what to do next, no markup from a name."""

from __future__ import annotations

import io

import pytest

from orchestrator.model.errors import DeviceError, InvalidInputError
from orchestrator.model.evidence import Status, Verdict
from orchestrator.model.parsing import AssignmentRefused
from orchestrator.model.report import AbsentReport, HostReport, InstanceReport, Phase, Stray
from orchestrator.processes.render import StepLines, print_problem, print_report

COLUMNS = 100


@pytest.fixture(autouse=True)
def _terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(COLUMNS))
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.setenv("NO_COLOR", "1")


def report(*, long: bool = False) -> HostReport:
    """One VM that runs, one that failed, one removal, one stray."""
    tail = "x" * 36 if long else "one"
    verdicts = (
        Verdict("cpu.pinned", f"vm_{tail}", Status.PASS, "0:1 1:2", "0:1 1:2"),
        Verdict("gpu.holder", f"vm_{tail}", Status.FAIL, "pid 7 " * (20 if long else 1), "pid 8"),
    )
    bad = DeviceError("device.unresponsive", "0000:21:00.0 does not answer", hint="power-cycle the host")
    return HostReport(
        deployment="dep_lab",
        host="hst_lab1",
        epoch=3,
        revision=14,
        instances=(
            InstanceReport(
                f"vm_{tail}",
                f"ten_{tail}",
                "one",
                1,
                Phase.RUNNING,
                pid=4194304,
                uid=2100000,
                verdicts=verdicts,
            ),
            InstanceReport("vm_two", "ten_b", "two", 1, Phase.ERROR, error=bad.as_dict()),
        ),
        absent=(AbsentReport("volume", "vol_old", Phase.ABSENT),),
        strays=(Stray("instance", "vm_stray", 1),),
        flows_digest="sha256:0",
        changed=True,
    )


@pytest.mark.parametrize("long", [False, True])
@pytest.mark.parametrize("wide", [False, True])
def test_tables_fit_a_hundred_columns(capsys: pytest.CaptureFixture[str], long: bool, wide: bool) -> None:
    print_report(report(long=long), wide=wide)

    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= COLUMNS
    assert len(lines) > 8


def test_report_says_all_that_matters(capsys: pytest.CaptureFixture[str]) -> None:
    print_report(report(), wide=False)

    out = capsys.readouterr().out
    for words in (
        "hst_lab1  epoch 3 revision 14",
        "vm_one",
        "ten_one",
        "4194304",
        "1/2",
        "vm_two: device.unresponsive: 0000:21:00.0 does not answer",
        "next: power-cycle the host",
        "vol_old",
        "stray instance vm_stray",
    ):
        assert words in out
    assert "gpu.holder" not in out


def test_wide_shows_every_check(capsys: pytest.CaptureFixture[str]) -> None:
    print_report(report(), wide=True)

    out = capsys.readouterr().out
    assert "cpu.pinned" in out
    assert "gpu.holder" in out
    assert "pid 8" in out


def test_brackets_are_text_and_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    print_problem(
        InvalidInputError("assignment.bad_value", "not [red]this[/red]", field='instances[0]["[b]"]')
    )

    assert capsys.readouterr().err == 'assignment.bad_value at instances[0]["[b]"]: not [red]this[/red]\n'


def test_problem_goes_to_stderr_with_what_to_do_next_on_unbroken_lines(
    capsys: pytest.CaptureFixture[str],
) -> None:
    one = InvalidInputError(
        "cpu.host_share", "CPU 0 stays with the host " * 10, field="a.b", hint="choose another"
    )
    print_problem(AssignmentRefused([one, one]))

    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert lines[0] == "assignment.refused: the assignment has 2 problems; nothing was changed"
    assert lines[2] == "  next: choose another"
    assert len(lines) == 5


def test_steps_are_a_line_each_with_what_came_of_them() -> None:
    stream = io.StringIO()
    steps = StepLines(stream)

    steps.started("vm_one", "start_domain")
    steps.finished("vm_one", "start_domain", 1.25, None)
    steps.finished("vm_one", "bind_device", 30.0, DeviceError("device.bind_timeout", "hangs"))

    first, second = stream.getvalue().splitlines()
    assert first.split() == ["vm_one", "start", "domain", "1.25", "s", "ok"]
    assert second.endswith("device.bind_timeout")
