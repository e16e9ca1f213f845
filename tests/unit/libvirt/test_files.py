"""Files around a domain: QEMU's pid as libvirt wrote it, and what goes when a domain is forgotten."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys

import pytest

from orchestrator.agent.libvirt.pidfile import read_pid
from orchestrator.agent.libvirt.xml.domain import domain_uuid
from orchestrator.model.errors import HostError
from tests.unit.libvirt.specs import launch

PROGRAM = "import sys; print('up', flush=True); sys.stdin.read()"
UUID = domain_uuid("dep_a", "vm_a")


@pytest.fixture
def qemu():
    """A process that was started as libvirt starts QEMU, as far as its arguments tell."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "-name", "guest=vm_a", "-uuid", UUID, "-display", "none"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    # Its arguments can be read only once it runs.
    assert process.stdout.readline() == b"up\n"
    yield process
    process.communicate()


def test_pid_of_the_running_domain(machine, qemu):
    machine.hypervisor.define(launch())
    (machine.tmp / "pid/vm_a.pid").write_text(f"{qemu.pid}\n")
    assert machine.hypervisor.domains()[0].pid is None, "it is off"
    machine.hypervisor.start("vm_a")
    assert machine.hypervisor.domains()[0].pid == qemu.pid
    machine.domain().suspend()
    assert machine.hypervisor.domains()[0].pid == qemu.pid, "a paused QEMU holds its devices too"


def test_pid_of_another_process_is_not_believed(tmp_path, qemu):
    (tmp_path / "vm_a.pid").write_text(str(qemu.pid))
    assert read_pid("vm_a", UUID, pid_dir=tmp_path) == qemu.pid
    assert read_pid("vm_a", domain_uuid("dep_b", "vm_a"), pid_dir=tmp_path) is None
    (tmp_path / "vm_a.pid").write_text(str(os.getpid()))
    assert read_pid("vm_a", UUID, pid_dir=tmp_path) is None


@pytest.mark.parametrize("text", [None, "", "x", "99999999", "-1"])
def test_no_pid(tmp_path, text):
    if text is not None:
        (tmp_path / "vm_a.pid").write_text(text)
    assert read_pid("vm_a", UUID, pid_dir=tmp_path) is None


def with_files(machine):
    """A domain whose console, socket and logs lie below the test's directory."""
    run = machine.tmp / "run"
    run.mkdir()
    machine.hypervisor.define(launch(console_path=str(run / "vm_a.log"), guest_socket=str(run / "vm_a.sock")))
    bound = socket.socket(socket.AF_UNIX)
    here = os.open(run, os.O_PATH)
    # By descriptor: a socket's path holds 107 bytes, which the test's own directory can exceed.
    bound.bind(f"/proc/self/fd/{here}/vm_a.sock")
    os.close(here)
    bound.close()
    for name in ("vm_a.log", "vm_a.log.0", "vm_a.log.12"):
        (run / name).write_text("login:")
    log = machine.tmp / "log"
    for name in ("vm_a.log", "vm_a.log.0", "vm_aa.log", "vm_a.log.txt"):
        (log / name).write_text("char device redirected")
    return run, log


def test_undefining_takes_console_socket_and_logs_and_nothing_else(machine):
    run, log = with_files(machine)
    (run / "vm_b.log").write_text("another's")
    machine.hypervisor.undefine("vm_a")
    assert sorted(os.listdir(run)) == ["vm_b.log"]
    assert sorted(os.listdir(log)) == ["vm_a.log.txt", "vm_aa.log"]


def test_refused_undefine_takes_nothing(machine):
    run, log = with_files(machine)
    machine.hypervisor.start("vm_a")
    with pytest.raises(Exception, match=re.escape("[domain.running]")):
        machine.hypervisor.undefine("vm_a")
    assert len(os.listdir(run)) == 4
    assert len(os.listdir(log)) == 4


def test_file_that_stays_keeps_the_definition_so_that_it_is_tried_again(machine):
    run, _ = with_files(machine)
    (run / "vm_a.log").unlink()
    (run / "vm_a.log").mkdir()
    with pytest.raises(HostError, match=re.escape("[domain.leftover]")) as caught:
        machine.hypervisor.undefine("vm_a")
    assert "vm_a.log of vm_a stays" in caught.value.message
    assert "vm_a" in machine.names()
    (run / "vm_a.log").rmdir()
    machine.fresh().undefine("vm_a")
    assert (os.listdir(run), machine.names()) == ([], {"test"})
