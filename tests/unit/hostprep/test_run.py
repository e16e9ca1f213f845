"""Preparing hosts: which hosts are meant, what events say, and what is left of a run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from hostprep.run import (
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
from hostprep.run.outcome import TELLS
from orchestrator.model.errors import BulkheadError, HostError, InvalidInputError

SECRET = "bhj-a-secret-that-nobody-may-see"


def event(kind: str, task: str, host: str = "gpu-01", **result: Any) -> dict[str, Any]:
    return {"event": kind, "event_data": {"host": host, "task": task, "role": "finish", "res": result}}


def told(**more: Any) -> dict[str, Any]:
    return event(
        "runner_on_ok", TELLS, msg={"init": True, "enrolled": False, "disk_free_gib": 70, "waits": [], **more}
    )


def test_names_and_addresses_become_an_inventory() -> None:
    found = from_names(["gpu-01", "gpu-02=192.0.2.1:2222", "gpu-03=[2001:db8::1]:22"])
    assert found.inventory == {
        "all": {
            "hosts": {
                "gpu-01": {"ansible_host": "gpu-01"},
                "gpu-02": {"ansible_host": "192.0.2.1", "ansible_port": 2222},
                "gpu-03": {"ansible_host": "2001:db8::1", "ansible_port": 22},
            }
        }
    }


@pytest.mark.parametrize(
    ("hosts", "code"),
    [
        ([], "prepare.host"),
        (["GPU"], "prepare.host"),
        (["-oProxyCommand=x"], "prepare.host"),
        (["a=-oProxyCommand"], "prepare.host"),
        (["a={{lookup('pipe','id')}}"], "prepare.host"),
        (["a=b:0"], "prepare.host"),
        (["a=b:65536"], "prepare.host"),
        (["a", "a=b"], "prepare.host_twice"),
    ],
)
def test_what_is_no_host_is_refused(hosts: list[str], code: str) -> None:
    with pytest.raises(InvalidInputError) as found:
        from_names(hosts)
    assert found.value.code == code


def test_an_inventory_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError) as found:
        from_inventory(tmp_path / "none.yml", [])
    assert found.value.code == "prepare.inventory"
    file = tmp_path / "hosts.yml"
    file.write_text("")
    with pytest.raises(InvalidInputError) as found:
        from_inventory(file, ["a,b"])
    assert found.value.code == "prepare.host"


def test_a_host_is_done_when_it_told_how_it_is() -> None:
    outcomes = Outcomes()
    outcomes.see(event("runner_item_on_ok", "Write", changed=True, item={"dest": "/etc/a"}))
    outcomes.see(event("runner_item_on_ok", "Write", changed=False, item={"dest": "/etc/b"}))
    outcomes.see(event("runner_on_ok", "Write", changed=True))
    outcomes.see(event("runner_on_ok", "Install", changed=True))
    outcomes.see(event("runner_on_skipped", "Restart"))
    outcomes.see(told(waits=["reboot: kernel argument iommu.strict=1"]))
    (host,) = outcomes.end()
    assert (host.state, host.error, host.tasks) == (State.DONE, None, 3)
    assert host.changed == ["finish: Write: /etc/a", "finish: Install"]
    assert host.waits == ["reboot: kernel argument iommu.strict=1"]
    assert (host.init, host.enrolled, host.disk_free_gib) == (True, False, 70)


def test_what_a_script_says_that_it_changed_is_told_line_by_line() -> None:
    outcomes = Outcomes()
    said = "changed: /etc/a\nnoise\nchanged: swap is off"
    outcomes.see(event("runner_on_ok", "Write", changed=True, stdout=said))
    outcomes.see(event("runner_on_ok", "Look", changed=False, stdout=said))
    outcomes.see(told())
    (host,) = outcomes.end()
    assert host.changed == ["finish: Write: /etc/a", "finish: Write: swap is off"]


def test_a_host_of_which_nothing_more_is_heard_has_failed() -> None:
    outcomes = Outcomes()
    outcomes.see(event("runner_on_start", "Install"))
    (host,) = outcomes.end()
    assert host.error is not None
    assert (host.state, host.error.code) == (State.FAILED, "prepare.ended")


def test_a_run_that_ended_halfway_is_told() -> None:
    outcomes = Outcomes()
    outcomes.see(event("runner_on_ok", "Take up an earlier run that ended halfway", changed=True))
    assert outcomes.hosts["gpu-01"].resumed


@pytest.mark.parametrize(
    ("kind", "task", "words", "code"),
    [
        (
            "runner_on_unreachable",
            "Look",
            "ssh: connect to host h port 22: Connection refused",
            "prepare.unreachable",
        ),
        ("runner_on_unreachable", "Look", "root@h: Permission denied (publickey).", "prepare.wrong_key"),
        ("runner_on_unreachable", "Look", "Host key verification failed.", "prepare.host_key_unknown"),
        (
            "runner_on_unreachable",
            "Look",
            "@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @ Host key verification failed.",
            "prepare.host_key_changed",
        ),
        (
            "runner_on_failed",
            "Refuse what cannot be prepared",
            "wrong_os: this is Fedora 40",
            "prepare.wrong_os",
        ),
        ("runner_on_failed", "Read", "sudo: a password is required", "prepare.no_root"),
        ("runner_on_failed", "Read", "/bin/sh: 1: python3: not found", "prepare.no_python"),
        (
            "runner_on_failed",
            "Refuse to restart under running VMs",
            "non-zero return code",
            "prepare.vms_running",
        ),
        ("runner_on_failed", "Tell what the agent said", "link.refused: no", "prepare.enrol"),
        ("runner_on_failed", "Install packages", "No package matching 'x'", "prepare.failed"),
    ],
)
def test_failures_are_told_in_one_line(kind: str, task: str, words: str, code: str) -> None:
    outcomes = Outcomes()
    outcomes.see(event(kind, task, msg=words))
    (host,) = outcomes.end()
    assert host.error is not None
    assert (host.state, host.error.code) == (State.FAILED, code)
    assert "\n" not in host.error.message
    assert "gpu-01" in host.error.message
    assert len(host.error.message) < 600


@pytest.mark.parametrize(
    "noise", [{}, {"event": 1}, {"event": "x", "event_data": []}, {"event": "runner_on_ok", "event_data": {}}]
)
def test_events_that_say_nothing_are_passed_over(noise: Mapping[str, Any]) -> None:
    outcomes = Outcomes()
    assert outcomes.see(noise) is None
    assert outcomes.end() == []


def test_the_wheel_is_built_from_the_checkout(tmp_path: Path) -> None:
    wheel = build_wheel(checkout(), tmp_path)
    assert wheel.suffix == ".whl"
    assert wheel.stat().st_size > 100_000


LOCAL = Targets(
    {
        "all": {
            "hosts": {"here": {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}}
        }
    }
)
PLAY = """
- hosts: all
  gather_facts: false
  tasks:
    - name: Take the secret
      ansible.builtin.command: {argv: [cat], stdin: "{{ secret }}"}
      no_log: true
    - name: Tell how the host is
      ansible.builtin.debug: {msg: {init: false, waits: [], folder: "{{ playbook_dir }}"}}
"""


@pytest.fixture
def playbooks(tmp_path: Path) -> Path:
    (tmp_path / "ansible.cfg").write_text((checkout() / "playbooks" / "ansible.cfg").read_text())
    (tmp_path / "play.yml").write_text(PLAY)
    return tmp_path


def left() -> set[str]:
    places = [Path(each) for each in (os.environ.get("XDG_RUNTIME_DIR"), "/dev/shm") if each]
    return {str(found) for place in places for found in place.glob("bulkhead-prepare-*")}


def test_a_run_tells_its_events_and_leaves_nothing(playbooks: Path) -> None:
    before, outcomes, seen = left(), Outcomes(), list[str]()

    def see(found: Mapping[str, Any]) -> None:
        seen.append(repr(found))
        outcomes.see(found)

    run_playbook(PlaybookRun(playbooks, "play.yml", LOCAL, Login(), {"secret": SECRET}), see)
    (host,) = outcomes.end()
    assert host.state is State.DONE
    assert host.tasks == 2
    assert SECRET not in "".join(seen)
    assert left() == before


def test_an_empty_inventory_is_told(playbooks: Path) -> None:
    with pytest.raises(BulkheadError) as found:
        run_playbook(
            PlaybookRun(playbooks, "play.yml", Targets(LOCAL.inventory, ("nobody",))), lambda _event: None
        )
    assert found.value.code == "prepare.runner"
    assert "nobody" in found.value.message


def test_without_memory_nothing_is_run(playbooks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hostprep.run.runner.filesystem_of", lambda _path: "ext4")
    with pytest.raises(HostError) as found:
        run_playbook(
            PlaybookRun(playbooks, "play.yml", LOCAL, Login(), {"secret": SECRET}), lambda _event: None
        )
    assert found.value.code == "prepare.no_tmpfs"


WAIT = """
- hosts: all
  gather_facts: false
  tasks:
    - name: Wait
      ansible.builtin.command: sleep 271
"""
WAITING = """
import signal, sys
from pathlib import Path
from hostprep.run import PlaybookRun, run_playbook
from tests.unit.hostprep.test_run import LOCAL
# A shell starts what it puts into the background with this signal ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
run_playbook(PlaybookRun(Path(sys.argv[1]), "play.yml", LOCAL), lambda each: print(each["event"], flush=True))
"""


def test_an_interrupted_run_ends_its_children_and_leaves_nothing(playbooks: Path) -> None:
    (playbooks / "play.yml").write_text(WAIT)
    before = left()
    child = subprocess.Popen(
        [sys.executable, "-c", WAITING, playbooks],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=checkout(),
    )
    assert child.stdout is not None
    for line in child.stdout:
        if line.strip() == b"runner_on_start":
            break
    deadline = time.monotonic() + 60
    while not sleepers() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert sleepers()
    assert left() != before
    child.send_signal(signal.SIGINT)
    child.wait(60)
    child.stdout.close()
    assert left() == before
    deadline = time.monotonic() + 30
    while sleepers() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not sleepers()


def sleepers() -> list[Path]:
    return [each for each in Path("/proc").glob("[0-9]*/cmdline") if _read(each) == b"sleep\x00271\x00"]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
