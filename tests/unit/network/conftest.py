"""A real ovsdb-server and ovs-vswitchd of our own on the dummy datapath: no kernel module, no root."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from ovs.unixctl.client import UnixctlClient

from orchestrator.agent.network.switch import OvsSwitch

BRIDGE = "br-bulkhead"
SCHEMA = "/usr/share/openvswitch/vswitch.ovsschema"


class DummyVswitch:
    """One Open vSwitch instance in a directory of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.socket = str(home / "db.sock")
        self._database: subprocess.Popen[bytes] | None = None
        self._switch: subprocess.Popen[bytes] | None = None
        self._control: UnixctlClient | None = None
        self._env = {
            **os.environ,
            **{f"OVS_{kind}DIR": str(home) for kind in ("RUN", "LOG", "DB", "SYSCONF")},
        }

    def start(self) -> None:
        self.run("ovsdb-tool", "create", str(self.home / "conf.db"), SCHEMA)
        self.start_database()
        self.vsctl("--no-wait", "init")
        self.start_switch()

    def start_database(self) -> None:
        command = [
            "ovsdb-server",
            "conf.db",
            f"--remote=punix:{self.socket}",
            "--unixctl",
            str(self.home / "db.ctl"),
        ]
        self._database = self._spawn(command, "db.log")
        self._wait_for(self.socket, "ovsdb-server")

    def start_switch(self) -> None:
        control = str(self.home / "vs.ctl")
        command = [
            "ovs-vswitchd",
            f"unix:{self.socket}",
            "--enable-dummy",
            "--disable-system",
            "--unixctl",
            control,
        ]
        self._switch = self._spawn(command, "vs.log")
        self._wait_for(control, "ovs-vswitchd")
        self._control = None
        # A change that it applies shows that it has read its bridges too.
        self.vsctl("set", "Open_vSwitch", ".", f"external_ids:started={time.monotonic_ns()}")

    def kill_switch(self) -> None:
        """As a crash does: the sockets stay."""
        assert self._switch is not None
        self._switch.send_signal(signal.SIGKILL)
        self._switch.wait()

    def signal_switch(self, number: signal.Signals) -> None:
        assert self._switch is not None
        self._switch.send_signal(number)

    def kill_database(self) -> None:
        assert self._database is not None
        self._database.send_signal(signal.SIGKILL)
        self._database.wait()

    def stop(self) -> None:
        for process in (self._switch, self._database):
            if process is not None and process.poll() is None:
                process.terminate()
                process.wait()

    def run(self, *command: str, stdin: str | None = None) -> str:
        done = subprocess.run(
            command, input=stdin, env=self._env, cwd=self.home, capture_output=True, text=True, timeout=20
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def vsctl(self, *arguments: str) -> str:
        return self.run("ovs-vsctl", f"--db=unix:{self.socket}", "--timeout=15", *arguments).strip()

    def plug(self, bridge: str, tap: str, interface_id: str, *, mac: str = "02:00:00:00:00:01") -> None:
        """What libvirt does when it starts a domain with a port of ours: closed from its first moment."""
        self.vsctl(
            *f"-- --if-exists del-port {tap} -- add-port {bridge} {tap} vlan_mode=trunk trunks=4095".split(),
            *f"-- set Interface {tap} type=dummy external_ids:iface-id={interface_id}".split(),
            "external_ids:iface-status=active",
            "external_ids:vm-id=one",
            f'external_ids:attached-mac="{mac}"',
        )

    def add_bridge(self, bridge: str, ofports: Iterable[int]) -> None:
        """A plain secure bridge for loading flows by hand: port `tN` has OpenFlow number N."""
        words = f"add-br {bridge} -- set Bridge {bridge} datapath_type=dummy fail_mode=secure".split()
        words += ["protocols=OpenFlow13,OpenFlow14", "other_config:disable-in-band=true"]
        for number in ofports:
            words += f"-- add-port {bridge} t{number}".split()
            words += f"-- set Interface t{number} type=dummy ofport_request={number}".split()
        self.vsctl(*words)

    def load(self, bridge: str, flows: str) -> None:
        target = f"unix:{self.home}/{bridge}.mgmt"
        self.run("ovs-ofctl", "-O", "OpenFlow14", "--bundle", "replace-flows", target, "-", stdin=flows)

    def control(self, command: str, *arguments: str) -> str:
        if self._control is None:
            error, self._control = UnixctlClient.create(str(self.home / "vs.ctl"))
            assert not error, os.strerror(error)
        error, failed, answer = self._control.transact(command, list(arguments))
        assert not error, os.strerror(error)
        assert not failed, failed
        return str(answer)

    def trace(self, bridge: str, flow: str, *packet: str) -> str:
        """The datapath actions that a frame meets, in the words of ofproto/trace; `packet` in hexadecimal."""
        answer = self.control("ofproto/trace", bridge, flow, *packet)
        found = re.search(r"^Datapath actions: (.*)$", answer, re.MULTILINE)
        assert found, answer
        return found.group(1)

    def datapath_ports(self) -> dict[int, int]:
        """Datapath port number -> OpenFlow port number."""
        return {int(dp): int(of) for of, dp in re.findall(r" (\d+)/(\d+): ", self.control("dpif/show"))}

    def switch(self, bridge: str = BRIDGE, uplink: str | None = None) -> OvsSwitch:
        return OvsSwitch(
            bridge,
            uplink,
            database=self.socket,
            rundir=str(self.home),
            datapath_type="dummy",
            uplink_type="dummy" if uplink else "",
        )

    def _spawn(self, command: list[str], log: str) -> subprocess.Popen[bytes]:
        with open(self.home / log, "ab") as sink:
            return subprocess.Popen(command, env=self._env, cwd=self.home, stdout=sink, stderr=sink)

    def _wait_for(self, path: str, name: str) -> None:
        """Until somebody listens: the file is there a moment earlier, or is a dead one's."""
        deadline = time.monotonic() + 20
        while True:
            with socket.socket(socket.AF_UNIX) as knock:
                if knock.connect_ex(path) == 0:
                    return
            assert time.monotonic() < deadline, f"{name} does not come up, see {self.home}"
            time.sleep(0.02)


def _running() -> Iterator[DummyVswitch]:
    # A socket's path holds 107 bytes, which pytest's own temporary directories can exceed.
    home = Path(tempfile.mkdtemp(prefix="ovs-"))
    instance = DummyVswitch(home)
    try:
        instance.start()
        yield instance
    finally:
        instance.stop()
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="session")
def shared_vswitch() -> Iterator[DummyVswitch]:
    """For tests that use bridges of their own and hurt nobody."""
    yield from _running()


@pytest.fixture
def vswitch() -> Iterator[DummyVswitch]:
    """For tests that crash it."""
    yield from _running()


@pytest.fixture
def clean(shared_vswitch: DummyVswitch) -> Iterator[DummyVswitch]:
    """Bridges that a test leaves are taken away, so that each finds none."""
    yield shared_vswitch
    shared_vswitch.vsctl("--if-exists", "del-br", BRIDGE, "--", "--if-exists", "del-br", "br-other")


@pytest.fixture
def switch(clean: DummyVswitch) -> OvsSwitch:
    made = clean.switch()
    made.ensure_bridge()
    return made
