"""A lab host's life with a small process in QEMU's place: its end, its one restart, its death."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from images.labhost import commands, lab, watch
from tests.unit.labhost.fakehost import FakeHost

PANIC = "[   40.1] Kernel panic - not syncing: Fatal exception in interrupt\n"
STALL = "[  300.0] rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:\n"


@pytest.fixture
def host(tmp_path: Path) -> Iterator[FakeHost]:
    made = FakeHost(tmp_path / "lab")
    yield made
    record = made.folder / "running.json"
    if record.exists():
        running = lab.Running(**json.loads(record.read_text()))
        if watch.is_running(running.pid, running.started):
            os.kill(running.pid, signal.SIGKILL)


def kill(host: FakeHost) -> None:
    running = host.running()
    assert running is not None
    os.kill(running.pid, signal.SIGKILL)
    assert lab._wait_for(lambda: host.running() is None, 60)


def silent(command: str) -> lab.Result:
    raise subprocess.TimeoutExpired("ssh", 1)


def unreachable(command: str) -> lab.Result:
    return lab.Result(lab.CONNECT_FAILED, "", "connection refused")


def sockets(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if stat.S_ISSOCK(path.lstat().st_mode)]


# -- starting and ending


def test_a_started_host_runs_in_a_session_of_its_own(host: FakeHost) -> None:
    running = host.boot()
    assert os.getsid(running.pid) == running.pid
    assert host.alive()
    assert host.qmp("query-status") == {"status": "running"}


@pytest.mark.parametrize("options", [(), ("--stubborn",)])
def test_down_leaves_no_process_and_no_socket(
    host: FakeHost, options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BULKHEAD_LAB_DIR", str(host.lab))
    monkeypatch.setattr(lab, "STOP_LIMIT_S", 60 if not options else 0.3)
    running = host.boot(*options)
    for name in ("overlay.qcow2", "nvme.img", "qemu.log"):
        (host.folder / name).write_text("x")
    for name in ("id_ed25519", "id_ed25519.pub", "wire.json", "report.json"):
        (host.lab / name).write_text("{}")
    assert sockets(host.lab)
    said: list[str] = []
    commands.down(said.append)
    assert lab._wait_for(lambda: not watch.is_running(running.pid, running.started), 60)
    assert not sockets(host.lab)
    left = {str(path.relative_to(host.lab)) for path in host.lab.rglob("*") if path.is_file()}
    assert left == {"host1/console.log", "host1/qemu.log", "lock", "report.json"}
    assert said == ["lab host 1: gone"]
    assert commands.status() == "no lab host runs"


def test_down_without_a_lab_makes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BULKHEAD_LAB_DIR", str(tmp_path / "lab"))
    commands.down(lambda text: None)
    assert not list(tmp_path.iterdir())


def test_down_leaves_a_process_alone_that_got_the_pid_later(host: FakeHost) -> None:
    running = host.boot()
    record = host.folder / "running.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "started": "1"}))
    host.stop()
    assert watch.is_running(running.pid, running.started)
    os.kill(running.pid, signal.SIGKILL)


def test_a_refused_qmp_command_is_an_error(host: FakeHost) -> None:
    host.boot("--stubborn")
    with pytest.raises(lab.LabError, match="refused quit"):
        host.qmp("quit")
    kill(host)
    with pytest.raises(lab.LabError, match="did not answer"):
        host.qmp("quit")


# -- dying


def test_restart_happens_once_and_is_recorded(host: FakeHost) -> None:
    first = host.boot()
    (host.folder / "overlay.qcow2").write_text("what was written")
    kill(host)
    (host.folder / "qemu.log").write_text("qemu: Assertion `bql_locked()' failed.\n")
    host.restart_once()
    second = host.running()
    assert second is not None
    assert second.pid != first.pid
    assert (host.folder / "overlay.qcow2").read_text() == "what was written"
    (death,) = host.report()["deaths"]
    assert death["host"] == 1
    assert "bql_locked" in death["reason"]
    kill(host)
    with pytest.raises(lab.LabDiedError, match="second time"):
        host.restart_once()
    assert host.running() is None
    assert len(host.report()["deaths"]) == 1


def test_each_purpose_has_a_restart_of_its_own(host: FakeHost) -> None:
    host.boot()
    for purpose in ("test_1.py", "test_2.py"):
        kill(host)
        host.restart_once(purpose)
    kill(host)
    with pytest.raises(lab.LabDiedError, match="second time"):
        host.restart_once("test_2.py")
    assert [death["purpose"] for death in host.report()["deaths"]] == ["test_1.py", "test_2.py"]


def test_restart_ends_a_host_that_hangs(host: FakeHost) -> None:
    first = host.boot()
    host.console(PANIC)
    host.restart_once()
    assert not watch.is_running(first.pid, first.started)
    assert host.alive()
    assert "Kernel panic" in host.report()["deaths"][0]["reason"]


def test_one_hosts_death_does_not_use_up_the_others_restart(host: FakeHost) -> None:
    host.lab.mkdir(parents=True)
    (host.lab / "report.json").write_text(json.dumps({"deaths": [{"host": 2, "at": 1, "reason": "x"}]}))
    host.boot()
    kill(host)
    host.restart_once()
    assert [death["host"] for death in host.report()["deaths"]] == [2, 1]


def test_waiting_for_a_boot_ends_at_once_when_qemu_is_gone(host: FakeHost) -> None:
    host.boot()
    kill(host)
    (host.folder / "qemu.log").write_text("could not set up host forwarding rule\n")
    with pytest.raises(lab.LabDiedError, match="host forwarding"):
        host.wait_booted()


def test_a_host_that_dies_while_booting_is_started_again_once(host: FakeHost) -> None:
    said: list[str] = []
    first = host.boot()
    host.console(PANIC)

    commands.wait_booted(host, said.append)

    second = host.running()
    assert second is not None
    assert second.pid != first.pid
    assert "died while booting" in said[0]
    assert "Kernel panic" in host.report()["deaths"][0]["reason"]
    host.console(PANIC)
    with pytest.raises(lab.LabDiedError, match="second time"):
        commands.wait_booted(host, said.append)


def test_waiting_for_a_boot_ends_at_a_panic_and_at_the_limit(host: FakeHost) -> None:
    host.boot()
    host.answer = unreachable
    with pytest.raises(lab.LabDiedError, match="did not answer within 0 s"):
        host.wait_booted(0.1)
    host.console(PANIC)
    with pytest.raises(lab.LabDiedError, match="Kernel panic"):
        host.wait_booted()


def test_a_boot_that_stalls_is_given_up_before_the_limit(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lab, "STALL_LIMIT_S", 0)
    host.boot()
    host.answer = unreachable
    host.console(STALL)
    with pytest.raises(lab.LabDiedError, match="hangs"):
        host.wait_booted()


def test_a_stall_that_a_boot_gets_over_is_no_death(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab, "STALL_LIMIT_S", 0)
    host.boot()
    host.console(STALL)
    assert host.wait_booted() < lab.BOOT_LIMIT_S


# -- a command that fails, and a host that does


def test_a_failed_command_is_no_death(host: FakeHost) -> None:
    host.boot()
    host.answer = lambda command: lab.Result(3, "", "no such thing")
    with pytest.raises(lab.CommandError, match=r"ended with 3 .*\n.*no such thing"):
        host.ssh("false")
    assert host.ssh("false", check=False).rc == 3


@pytest.mark.parametrize("console", ["", STALL])
def test_a_slow_command_on_a_host_that_answers_is_no_death(host: FakeHost, console: str) -> None:
    host.boot()
    host.console(console)
    host.answer = lambda command: lab.Result(0, "", "") if command == "true" else silent(command)
    with pytest.raises(lab.CommandError, match="took longer than 5 s"):
        host.ssh("sleep 1000", 5)


@pytest.mark.parametrize("ssh", [silent, unreachable])
@pytest.mark.parametrize(
    ("console", "words"), [(PANIC, "Kernel panic"), (STALL, "hangs"), ("", "does not answer ssh")]
)
def test_a_command_that_does_not_come_back_from_a_dead_host_is_a_death(
    host: FakeHost, ssh: object, console: str, words: str
) -> None:
    host.boot()
    host.console(console)
    host.answer = ssh
    with pytest.raises(lab.LabDiedError, match=words):
        host.ssh("anything", 5)


def test_a_panic_before_the_last_boot_is_history(host: FakeHost) -> None:
    host.boot()
    host.console(PANIC + "[    0.0] Linux version 6.12\n")
    assert host.alive()
    host.console(PANIC)
    assert not host.alive()


def test_a_reboot_waits_for_another_boot_id(host: FakeHost) -> None:
    host.boot()
    ids = iter(["one", "one", "two"])
    host.answer = lambda command: lab.Result(0, next(ids) if "boot_id" in command else "", "")
    assert host.reboot() >= 0
    assert next(ids, None) is None


# -- what runs already


def test_up_refuses_a_running_host_of_another_kind(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BULKHEAD_LAB_DIR", str(host.lab))
    running = host.boot(shape="smt")
    with pytest.raises(lab.LabError, match="shape smt runs"):
        commands.up(lambda text: None, shape="everyday")
    with pytest.raises(lab.LabError, match="no wire"):
        commands.up(lambda text: None, shape="smt", numbers=(1, 2))
    assert watch.is_running(running.pid, running.started)


def test_the_wires_ports_stay_the_same_while_the_lab_lives(tmp_path: Path) -> None:
    wires = commands._wires(tmp_path)
    assert wires[1] == tuple(reversed(wires[2]))
    assert len(set(wires[1])) == 2
    assert commands._wires(tmp_path) == wires


def test_starting_a_host_anew_forgets_its_own_deaths_only(tmp_path: Path) -> None:
    deaths = [{"host": 1, "at": 1, "reason": "x"}, {"host": 2, "at": 2, "reason": "y"}]
    (tmp_path / "report.json").write_text(json.dumps({"deaths": deaths, "qemu": "7.2.0"}))
    commands._new_report(tmp_path, {2}, "7.2.22")
    assert json.loads((tmp_path / "report.json").read_text()) == {"deaths": deaths[:1], "qemu": "7.2.22"}


def test_the_lock_keeps_two_apart(tmp_path: Path) -> None:
    import fcntl

    with commands.locked(tmp_path), (tmp_path / "lock").open("w") as other:
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with (tmp_path / "lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
