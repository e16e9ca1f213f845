"""The agent's commands on a simulated host: what they print, and the exit status that scripts rely on."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from hostprep.probe.recording import Recorder
from images.labhost.tenants import assignment_of, everything_absent
from orchestrator.__main__ import app
from orchestrator.agent.lock import host_lock
from orchestrator.agent.sim import sim_host
from orchestrator.model.assignment import Assignment
from orchestrator.model.parsing import schema
from orchestrator.processes import agent_commands
from tests.fixtures.nvml.replay import Replay, load
from tests.unit.agent.fleet import Fleet
from tests.unit.hostprep.machines import Machine
from tests.unit.hostprep.shapes import consumer, one_socket


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fleet:
    made = Fleet(tmp_path)
    monkeypatch.setattr(agent_commands, "real_host", lambda _settings, _keys: sim_host(made.world))
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("NO_COLOR", "1")
    (tmp_path / "agent.toml").write_text(
        f'state_dir = "{made.settings.state_dir}"\nrun_dir = "{made.settings.run_dir}"\n'
    )
    return made


def place(fleet: Fleet) -> Path:
    return fleet.settings.state_dir.parent


def write(fleet: Fleet, assignment: Assignment) -> Path:
    file = place(fleet) / "assignment.json"
    file.write_text(assignment.model_dump_json())
    return file


def bulkhead(fleet: Fleet, *words: object, stdin: bytes | None = None) -> Result:
    """Run `bulkhead agent ...` with this host's settings where they are read."""
    settings = [] if words[0] in ("schema", "check") else ["--settings", place(fleet) / "agent.toml"]
    return CliRunner().invoke(app, ["agent", *map(str, [*words, *settings])], input=stdin)


def test_apply_brings_up_says_so_and_changes_nothing_twice(fleet: Fleet) -> None:
    file = write(fleet, fleet.two_tenants())

    first = bulkhead(fleet, "apply", file)
    changes = fleet.world.changes
    second = bulkhead(fleet, "apply", file)

    assert (first.exit_code, second.exit_code) == (0, 0)
    assert "vm_acme_train" in first.stdout
    assert "vm_globex_serve" in first.stdout
    assert "start domain" in first.stderr
    assert "start domain" not in second.stderr
    assert fleet.world.changes == changes


def test_apply_reads_standard_input(fleet: Fleet) -> None:
    result = bulkhead(fleet, "apply", "-", stdin=fleet.two_tenants().model_dump_json().encode())

    assert result.exit_code == 0
    assert len(fleet.world.domains) == 2


def test_json_output_is_the_report_and_nothing_else(fleet: Fleet) -> None:
    result = bulkhead(fleet, "apply", write(fleet, fleet.two_tenants()), "-o", "json")

    report = json.loads(result.stdout)
    assert report["ok"] is True
    assert [each["phase"] for each in report["instances"]] == ["running", "running"]


def test_wide_output_names_the_checks(fleet: Fleet) -> None:
    result = bulkhead(fleet, "apply", write(fleet, fleet.two_tenants()), "-o", "wide")

    assert "cpu.pinned" in result.stdout


def test_bad_input_is_2(fleet: Fleet) -> None:
    file = place(fleet) / "bad.json"
    file.write_text('{"version": 1}')

    result = bulkhead(fleet, "apply", file)

    assert (result.exit_code, result.stdout) == (2, "")
    assert "assignment.missing_field at deployment" in result.stderr


def test_file_that_is_not_there_is_2(fleet: Fleet) -> None:
    result = bulkhead(fleet, "apply", place(fleet) / "none.json")

    assert result.exit_code == 2
    assert "assignment.unreadable at FILE" in result.stderr


def test_bad_settings_are_2(fleet: Fleet) -> None:
    (place(fleet) / "agent.toml").write_text("nope = 1\n")

    result = bulkhead(fleet, "apply", write(fleet, fleet.two_tenants()))

    assert result.exit_code == 2
    assert "settings.invalid at nope" in result.stderr
    assert fleet.world.changes == 0


def test_older_assignment_is_5_and_changes_nothing(fleet: Fleet) -> None:
    bulkhead(fleet, "apply", write(fleet, fleet.two_tenants(revision=3)))
    changes = fleet.world.changes
    gone = everything_absent(fleet.two_tenants().instances)

    result = bulkhead(fleet, "apply", write(fleet, assignment_of([], revision=2, absent=gone)))

    assert result.exit_code == 5
    assert "assignment.stale at revision" in result.stderr
    assert "next: send a revision above 3" in result.stderr
    assert fleet.world.changes == changes


def test_second_agent_is_5(fleet: Fleet) -> None:
    with host_lock(fleet.settings.lock_path):
        result = bulkhead(fleet, "apply", write(fleet, fleet.two_tenants()))

    assert result.exit_code == 5
    assert "agent.already_running" in result.stderr
    assert fleet.world.changes == 0


def test_partial_failure_is_8_and_the_report_says_what(fleet: Fleet) -> None:
    fleet.world.images.clear()

    result = bulkhead(fleet, "apply", write(fleet, fleet.two_tenants()))

    assert result.exit_code == 8
    assert "vm_acme_train: image.not_found" in result.stdout


def test_verify_is_0_on_a_host_as_ordered_and_8_otherwise_and_touches_nothing(fleet: Fleet) -> None:
    file = write(fleet, fleet.two_tenants())
    assert bulkhead(fleet, "verify", file).exit_code == 8
    assert fleet.world.changes == 0
    bulkhead(fleet, "apply", file)
    changes = fleet.world.changes

    assert bulkhead(fleet, "verify", file).exit_code == 0
    fleet.world.misread["process.uid"] = True
    assert bulkhead(fleet, "verify", file).exit_code == 8
    assert fleet.world.changes == changes


def test_schema_is_printed_as_json(fleet: Fleet) -> None:
    result = bulkhead(fleet, "schema")

    assert result.exit_code == 0
    assert json.loads(result.stdout) == schema()


def test_check_needs_no_host_and_finds_contradictions(fleet: Fleet) -> None:
    twice = fleet.two_tenants()
    twice = twice.model_copy(update={"instances": (twice.instances[0], twice.instances[0])})
    old = everything_absent(fleet.two_tenants().instances)
    fine = bulkhead(fleet, "check", write(fleet, assignment_of([], revision=1, absent=old)))
    bad = bulkhead(fleet, "check", write(fleet, twice))

    assert (fine.exit_code, fine.stdout) == (0, "fine: 0 instances, 6 absent\n")
    assert bad.exit_code == 2
    assert "instance.named_twice at instances[1].id" in bad.stderr
    assert fleet.world.changes == 0


def test_ask_refuses_what_is_no_json(fleet: Fleet) -> None:
    result = bulkhead(fleet, "ask", "vm_acme_train", "{")

    assert result.exit_code == 2
    assert "guest.bad_request at REQUEST" in result.stderr


class Enough(BaseException):
    """Ends the endless loop."""


def looks(*between: Callable[[], object]) -> Callable[[float], None]:
    """Sleep that does one thing after each look, and ends the loop after the last."""
    todo = list(between)

    def sleep(seconds: float) -> None:
        assert seconds == 0.5
        if not todo:
            raise Enough
        todo.pop(0)()

    return sleep


def nothing() -> None:
    """A quiet moment."""


def test_run_says_each_change_once(fleet: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(fleet, fleet.two_tenants(revision=3))
    whole = file.read_text()
    stopped = fleet.world.domains

    def power_off() -> None:
        stopped["vm_acme_train"].pid = None
        fleet.world.ports = [port for port in fleet.world.ports if port.instance != "vm_acme_train"]

    sleep = looks(
        nothing,
        nothing,
        power_off,
        nothing,
        lambda: file.write_text("{"),
        nothing,
        lambda: file.write_text(whole),
        nothing,
    )

    with pytest.raises(Enough):
        agent_commands._keep(fleet.agent(), file, 0.5, sleep)

    good = "epoch 1 revision 3: vm_acme_train running, vm_globex_serve running"
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if not line.startswith("assignment.")] == [good, good, good]
    assert sum(line.startswith("assignment.refused") for line in lines) == 1
    assert stopped["vm_acme_train"].started == 2


def test_run_with_a_bad_file_goes_on_and_touches_nothing(
    fleet: Fleet, capsys: pytest.CaptureFixture[str]
) -> None:
    file = place(fleet) / "none.json"

    with pytest.raises(Enough):
        agent_commands._keep(fleet.agent(), file, 0.5, looks(nothing, nothing))

    assert capsys.readouterr().out.count("assignment.unreadable") == 1
    assert fleet.world.changes == 0


def test_a_recording_is_saved_and_asked_elsewhere(tmp_path: Path) -> None:
    file = tmp_path / "host.json"
    saved = CliRunner().invoke(app, ["agent", "probe", "--save", str(file), "--redact"])
    assert saved.exit_code == 0
    asked = CliRunner().invoke(app, ["agent", "probe", "--from", str(file)])
    assert asked.exit_code == 0
    before, after = json.loads(saved.stdout), json.loads(asked.stdout)
    assert after["cpus"] == before["cpus"]
    assert after["boot_id"] != before["boot_id"]
    again = CliRunner().invoke(app, ["agent", "probe", "--save", str(file)])
    assert again.exit_code == 5
    assert "recording.exists" in again.stderr


@pytest.fixture
def h100_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Replay:
    """This machine, as far as the probe sees it, is one with an H100 on the nvidia driver."""
    made = one_socket()
    made.function("0000:00:06.0", "10de:2330", "030200", driver="nvidia")
    recording = made.recording()
    nvml = Replay(load("h100-80gb-hbm3"))
    monkeypatch.setattr(
        "hostprep.probe.recording.Recorder", lambda run: Recorder(recording.root, recording.run)
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    return nvml


def test_probe_tells_what_nvml_says(h100_host: Replay) -> None:
    asked = CliRunner().invoke(app, ["agent", "probe"])
    assert asked.exit_code == 0
    said = json.loads(asked.stdout)["nvml"]
    assert (said["reason"], said["driver"], said["confidential"]) == ("", "580.159.04", "off")
    [gpu] = said["gpus"]
    assert gpu["address"] == "0000:00:06.0"
    assert gpu["ecc"] == {"current": True, "pending": True}
    assert gpu["recovery"] == "none"
    assert [each["id"] for each in gpu["mig_profiles"]] == [0, 5, 9, 14, 15, 19, 20]
    assert gpu["mig_profiles"][2]["placements"] == [[0, 4], [4, 4]]


def test_probe_prints_the_rest_of_a_host_with_a_lost_gpu(h100_host: Replay, tmp_path: Path) -> None:
    h100_host.capture["gpus"][0]["get"]["nvmlDeviceGetName"] = {"error": 15}
    file = tmp_path / "host.json"
    asked = CliRunner().invoke(app, ["agent", "probe", "--save", str(file)])
    assert asked.exit_code == 8
    assert "nvml.failed" in asked.stderr
    said = json.loads(asked.stdout)
    assert "GPU is lost" in said["nvml"]["reason"]
    assert said["nvml"]["gpus"] == []
    assert any(each["address"] == "0000:00:06.0" for each in said["functions"])
    assert CliRunner().invoke(app, ["agent", "probe", "--from", str(file)]).exit_code == 0


def test_probe_leaves_nvml_alone_where_the_driver_holds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked() -> None:
        raise AssertionError("NVML was asked, which may load the driver")

    recording = one_socket().recording()
    monkeypatch.setattr(
        "hostprep.probe.recording.Recorder", lambda run: Recorder(recording.root, recording.run)
    )
    monkeypatch.setattr("hostprep.probe.nvml.read_gpus", asked)
    said = json.loads(CliRunner().invoke(app, ["agent", "probe"]).stdout)
    assert said["nvml"]["reason"] == "the nvidia driver holds no function"
    again = CliRunner().invoke(app, ["agent", "probe", "--from", recorded(tmp_path, one_socket())])
    assert json.loads(again.stdout)["nvml"]["reason"] == "a recording holds nothing of NVML"


def recorded(tmp_path: Path, made: Machine) -> str:
    file = tmp_path / "machine.json"
    file.write_bytes(made.recording().encode())
    return str(file)


def test_doctor_ends_with_8_when_a_must_check_fails(tmp_path: Path) -> None:
    made = one_socket()
    sound = CliRunner().invoke(app, ["agent", "doctor", "--from", recorded(tmp_path, made)])
    assert sound.exit_code == 0
    assert "0 fail (0 must), 0 unknown" in sound.stdout
    made.put("sys/kernel/mm/ksm/run", 1)
    sick = CliRunner().invoke(app, ["agent", "doctor", "--from", recorded(tmp_path, made)])
    assert sick.exit_code == 8
    assert "K7 ksm: expected no page is shared" in sick.stdout
    assert "next: echo 2 > /sys/kernel/mm/ksm/run" in sick.stdout


def test_doctor_as_json_and_with_a_check_accepted(tmp_path: Path) -> None:
    made = one_socket()
    made.put("sys/kernel/mm/ksm/run", 1)
    settings = tmp_path / "agent.toml"
    settings.write_text('doctor_accepted = ["K7"]\n')
    asked = CliRunner().invoke(
        app,
        ["agent", "doctor", "-o", "json", "--from", recorded(tmp_path, made), "--settings", str(settings)],
    )
    assert asked.exit_code == 0
    (ksm,) = [each for each in json.loads(asked.stdout) if each["subject"] == "ksm"]
    assert (ksm["id"], ksm["status"], ksm["severity"], ksm["read"]) == ("K7", "fail", "must", "1")
    assert ksm["accepted"] is True
    assert [each["accepted"] for each in json.loads(asked.stdout)].count(True) == 1


@pytest.mark.parametrize(("accepted", "warned"), [('["K7"]', False), ('["*"]', True)])
def test_what_is_accepted_reads_as_such_and_all_of_it_is_warned_of(
    tmp_path: Path, accepted: str, warned: bool
) -> None:
    made = one_socket()
    made.put("sys/kernel/mm/ksm/run", 1)
    settings = tmp_path / "agent.toml"
    settings.write_text(f"doctor_accepted = {accepted}\n")
    words = ["agent", "doctor", "--from", recorded(tmp_path, made), "--settings", str(settings)]
    asked = CliRunner().invoke(app, words)
    assert asked.exit_code == 0
    assert "fail, accepted" in asked.stdout
    assert "; 1 of them accepted" in asked.stdout
    assert ("WARNING" in asked.stdout) is warned


def test_doctors_table_fits_a_narrow_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    asked = CliRunner().invoke(
        app, ["agent", "doctor", "-o", "wide", "--from", recorded(tmp_path, consumer())]
    )
    lines = asked.stdout.splitlines()
    assert max(len(each) for each in lines if not each.startswith("  next: ")) <= 80


def test_doctors_table_keeps_names_and_commands_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    made = one_socket()
    wrong = (
        "net.ipv4.conf.all.accept_source_route",
        "kernel.unprivileged_bpf_disabled",
        "net.core.bpf_jit_harden",
    )
    for name in wrong:
        made.put(f"proc/sys/{name.replace('.', '/')}", 3)
    asked = CliRunner().invoke(app, ["agent", "doctor", "--from", recorded(tmp_path, made)])
    for name in wrong[1:]:
        assert f" {name}=3" in asked.stdout
    [command] = [each for each in asked.stdout.splitlines() if "sysctl -w" in each]
    assert all(f"{name}=" in command for name in wrong)


def test_a_recording_that_is_none_is_one_clear_error(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_text('{"bulkhead_recording": 1')
    for command in ("probe", "doctor"):
        ran = CliRunner().invoke(app, ["agent", command, "--from", str(file)])
        assert ran.exit_code == 2
        assert "recording.invalid" in ran.stderr
        assert ran.stdout == ""
