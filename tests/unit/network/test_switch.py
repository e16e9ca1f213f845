"""The driver's ports and flows against a real database and switch, and what it says when one is gone."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.agent.effects import Effects, Silent
from orchestrator.agent.flowsync import FlowSync
from orchestrator.agent.journal import Journal, PortRecord
from orchestrator.agent.network import OvsSwitch, openflow
from orchestrator.agent.network.openflow import FlowTable
from orchestrator.agent.network.ovsdb import Database
from orchestrator.isolation.flows import FlowProgram
from orchestrator.model.errors import ConflictError, HostError, NotFoundError
from orchestrator.model.naming import tap_name
from orchestrator.model.observed import ObservedPort
from tests.unit.network.conftest import BRIDGE, DummyVswitch
from tests.unit.network.driving import (
    ADDRESSES,
    MACS,
    NOTHING,
    A,
    B,
    label,
    number_of,
    plugged,
    program,
    reaches,
    refused,
    running,
    seen,
)


@contextlib.contextmanager
def hanging_up(path: Path, times: int) -> Iterator[list[int]]:
    """Stand before a switch's socket, hang up on so many that ask, and let the others through.

    Who only knocks is not counted: nothing is read of it.
    """
    real, hung_up = path.with_name("real.mgmt"), []
    path.rename(real)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        while True:
            try:
                asker, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=one, args=(asker,), daemon=True).start()

    def one(asker: socket.socket) -> None:
        with asker, contextlib.suppress(OSError):
            said = asker.recv(65536)
            if said and len(hung_up) < times:
                hung_up.append(len(said))
            elif said:
                with socket.socket(socket.AF_UNIX) as switch:
                    switch.connect(str(real))
                    switch.sendall(said)
                    back = threading.Thread(target=carry, args=(switch, asker), daemon=True)
                    back.start()
                    carry(asker, switch)

    def carry(source: socket.socket, to: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while said := source.recv(65536):
                to.sendall(said)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield hung_up
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        path.unlink()
        real.rename(path)


class TestPort:
    def test_plugged_port_is_closed_and_carries_nothing(self, clean: DummyVswitch, switch: OvsSwitch) -> None:
        running(clean, switch, "prt_a", "prt_b")
        plugged(clean, "prt_c")
        switch.replace_flows(program(switch, "prt_a", "prt_b"))
        assert reaches(clean, "prt_a", "prt_b") == "tap-prt_b"
        assert clean.vsctl("get", "Port", "tap-prt_c", "trunks") == "[4095]"
        for other in ("prt_a", "prt_b"):
            assert reaches(clean, "prt_c", other) == "drop"
            assert reaches(clean, other, "prt_c") == "drop"
        # Not even as somebody else, and not in the one VLAN that it has: what counts is the port's number.
        liar = f"in_port={number_of(clean, 'tap-prt_c')},dl_src={A},dl_dst={B},{{}}dl_type=0x800"
        liar += ",nw_src=10.0.0.1,nw_dst=10.0.0.2,nw_proto=6,nw_ttl=64"
        assert clean.trace(BRIDGE, liar.format("")) == "drop"
        assert clean.trace(BRIDGE, liar.format("vlan_tci=0x1fff,")) == "drop"

    def test_unlabelled_port_is_foreign(self, clean: DummyVswitch, switch: OvsSwitch) -> None:
        plugged(clean, "prt_a")
        assert switch.observe().ports == ()
        assert switch.observe().foreign == ("tap-prt_a",)

    def test_label_marks_closes_and_keeps_the_number(self, clean: DummyVswitch, switch: OvsSwitch) -> None:
        plugged(clean, "prt_a")
        # As if libvirt's definition had lost its VLAN, and somebody had set our mark.
        clean.vsctl("set", "Port", "tap-prt_a", "vlan_mode=access", "tag=102", "trunks=[]")
        clean.vsctl("set", "Interface", "tap-prt_a", "external_ids:bulkhead-open=true")
        label(switch, "prt_a")
        number = number_of(clean, "tap-prt_a")
        assert switch.observe().ports == (
            ObservedPort("prt_a", "vm_one", "dep_1", "tap-prt_a", number, "trunk", None, (4095,), open=False),
        )
        assert switch.observe().foreign == ()
        assert clean.vsctl("get", "Interface", "tap-prt_a", "ofport_request") == str(number)
        assert clean.vsctl("get", "Interface", "tap-prt_a", "external_ids:attached-mac") == f'"{A}"'

    def test_label_twice_is_the_same(self, clean: DummyVswitch, switch: OvsSwitch) -> None:
        plugged(clean, "prt_a")
        label(switch, "prt_a")
        before = switch.observe()
        label(switch, "prt_a")
        assert switch.observe() == before

    @pytest.mark.parametrize("other", [{"instance": "vm_two"}, {"port": "prt_b"}])
    def test_label_refuses_a_port_with_other_marks(
        self, clean: DummyVswitch, switch: OvsSwitch, other: dict[str, str]
    ) -> None:
        plugged(clean, "prt_a")
        label(switch, "prt_a")
        before = switch.observe()
        wanted = {"port": "prt_a", "instance": "vm_one", **other}
        with refused(ConflictError, "network.port_taken"):
            switch.label_port(
                wanted["port"],
                instance=wanted["instance"],
                deployment="dep_1",
                interface_id="if-prt_a",
            )
        assert switch.observe() == before

    def test_label_refuses_another_deployments_port(self, clean: DummyVswitch, switch: OvsSwitch) -> None:
        plugged(clean, "prt_a")
        label(switch, "prt_a")
        with refused(ConflictError, "network.port_taken"):
            switch.label_port("prt_a", instance="vm_one", deployment="dep_2", interface_id="if-prt_a")

    def test_label_refuses_two_with_one_id(self, clean: DummyVswitch, switch: OvsSwitch) -> None:
        clean.plug(BRIDGE, "tap-prt_a", "if-prt_a")
        clean.plug(BRIDGE, "tap-prt_b", "if-prt_a")
        with refused(ConflictError, "network.port_taken"):
            label(switch, "prt_a")
        assert switch.observe().ports == ()

    def test_label_looks_at_our_bridge_only(self, clean: DummyVswitch, switch: OvsSwitch) -> None:
        clean.add_bridge("br-other", [])
        clean.plug("br-other", "tap-prt_a", "if-prt_a")
        with refused(NotFoundError, "network.port_not_found"):
            label(switch, "prt_a")

    @pytest.mark.parametrize(
        "act",
        [lambda s: s.open_port("prt_x", 101), lambda s: s.close_port("prt_x"), lambda s: label(s, "prt_x")],
    )
    def test_unknown_port_is_not_found(self, switch: OvsSwitch, act: Callable[[OvsSwitch], None]) -> None:
        with refused(NotFoundError, "network.port_not_found"):
            act(switch)

    def test_open_and_close(self, clean: DummyVswitch, switch: OvsSwitch) -> None:
        plugged(clean, "prt_a")
        label(switch, "prt_a")
        closed = seen(switch, "prt_a")
        for _ in range(2):
            switch.open_port("prt_a", 101)
            opened = dataclasses.replace(closed, vlan_mode="access", vlan=101, trunks=(), open=True)
            assert seen(switch, "prt_a") == opened
        for _ in range(2):
            switch.close_port("prt_a")
            assert seen(switch, "prt_a") == closed

    def test_remove(self, clean: DummyVswitch, switch: OvsSwitch) -> None:
        clean.plug(BRIDGE, tap_name("prt_a"), "if-prt_a")
        plugged(clean, "prt_b")
        label(switch, "prt_a")
        label(switch, "prt_b")
        for _ in range(2):
            switch.remove_port("prt_a")
            assert [port.port for port in switch.observe().ports] == ["prt_b"]
        assert clean.vsctl("list-ports", BRIDGE) == "tap-prt_b"

    def test_number_survives_a_neighbours_end_and_a_restart(self, vswitch: DummyVswitch) -> None:
        switch = vswitch.switch()
        switch.ensure_bridge()
        running(vswitch, switch, "prt_a", "prt_b", "prt_c")
        switch.remove_port("prt_a")
        before = switch.observe()
        vswitch.kill_switch()
        vswitch.start_switch()
        assert switch.observe() == before


class TestFlows:
    def test_open_before_flows_carries_nothing_and_is_seen(
        self, clean: DummyVswitch, switch: OvsSwitch
    ) -> None:
        running(clean, switch, "prt_a", "prt_b")
        assert reaches(clean, "prt_a", "prt_b") == "drop"
        wanted = program(switch, "prt_a", "prt_b")
        missing = switch.drift(wanted)
        assert len(missing) == len(wanted.flows)
        assert all(line.startswith("+") for line in missing)
        switch.replace_flows(wanted)
        assert switch.drift(wanted) == ()
        assert reaches(clean, "prt_a", "prt_b") == "tap-prt_b"

    def test_drift_names_what_differs(self, clean: DummyVswitch, switch: OvsSwitch) -> None:
        running(clean, switch, "prt_a", "prt_b")
        wanted = program(switch, "prt_a", "prt_b")
        switch.replace_flows(wanted)
        target = f"unix:{clean.home}/{BRIDGE}.mgmt"
        clean.run("ovs-ofctl", "-O", "OpenFlow14", "add-flow", target, "table=30,priority=77 actions=FLOOD")
        clean.run("ovs-ofctl", "-O", "OpenFlow14", "del-flows", target, "table=0,in_port=1")
        extra, gone = sorted(switch.drift(wanted), reverse=True)
        assert extra.startswith("-table=30 priority=77")
        assert "FLOOD" in extra
        assert gone.startswith("+")
        assert "in_port" in gone
        switch.replace_flows(wanted)
        assert switch.drift(wanted) == ()

    @pytest.mark.parametrize(
        "bad", ["table=0,priority=9 actions=group:77", "table=0,priority=9,dl_sorc=1 actions=drop"]
    )
    def test_refused_bundle_changes_nothing(self, clean: DummyVswitch, switch: OvsSwitch, bad: str) -> None:
        running(clean, switch, "prt_a", "prt_b")
        wanted = program(switch, "prt_a", "prt_b")
        switch.replace_flows(wanted)
        fewer = program(switch, "prt_a").flows
        with refused(HostError, "network.flows_refused"):
            switch.replace_flows(FlowProgram((*fewer, bad)))
        assert switch.drift(wanted) == ()
        switch.replace_flows(FlowProgram(fewer))
        assert reaches(clean, "prt_a", "prt_b") == "drop"

    def test_wrong_tag_closes_the_port(self, clean: DummyVswitch, switch: OvsSwitch, tmp_path: Path) -> None:
        """What may speak rests on tag, mark and record together: one that strays takes the flows away."""
        running(clean, switch, "prt_a", "prt_b")
        journal = Journal(tmp_path / "journal.json")
        records = {
            port: PortRecord("vm_one", 101, MACS[port], (ADDRESSES[port],)) for port in ("prt_a", "prt_b")
        }
        journal.update(lambda state: dataclasses.replace(state, ports=records))
        sync = FlowSync(switch, journal, Effects(Silent()))
        assert switch.drift(sync.sync("hst_1")) == ()
        assert reaches(clean, "prt_a", "prt_b") == "tap-prt_b"
        for stray in ("tag=102", "trunks=101,102", "vlan_mode=trunk"):
            clean.vsctl("set", "Port", "tap-prt_b", stray)
            assert switch.drift(sync.program(switch.observe()))
            sync.sync("hst_1")
            assert reaches(clean, "prt_a", "prt_b") == "drop"
            assert reaches(clean, "prt_b", "prt_a") == "drop"
            switch.open_port("prt_b", 101)
            sync.sync("hst_1")
            assert reaches(clean, "prt_a", "prt_b") == "tap-prt_b"


class TestOutages:
    def test_killed_switch_is_told_and_its_return_is_closed(self, vswitch: DummyVswitch) -> None:
        switch = vswitch.switch()
        switch.ensure_bridge()
        running(vswitch, switch, "prt_a", "prt_b")
        wanted = program(switch, "prt_a", "prt_b")
        switch.replace_flows(wanted)
        vswitch.kill_switch()
        for act in (lambda: switch.replace_flows(wanted), lambda: switch.drift(wanted)):
            with refused(HostError, "network.switch_down", hint=True):
                act()
        (vswitch.home / f"{BRIDGE}.mgmt").unlink()
        with refused(HostError, "network.switch_down", hint=True):
            switch.drift(wanted)
        assert [port.port for port in switch.observe().ports] == ["prt_a", "prt_b"]

        vswitch.start_switch()
        assert reaches(vswitch, "prt_a", "prt_b") == "drop"
        assert len(switch.drift(wanted)) == len(wanted.flows)
        switch.replace_flows(wanted)
        assert reaches(vswitch, "prt_a", "prt_b") == "tap-prt_b"

    def test_change_that_no_switch_applies_is_told(self, vswitch: DummyVswitch) -> None:
        vswitch.switch().ensure_bridge()
        vswitch.kill_switch()
        impatient = OvsSwitch(
            BRIDGE, database=vswitch.socket, rundir=str(vswitch.home), datapath_type="netdev", timeout_s=0.5
        )
        with refused(HostError, "network.switch_down", hint=True):
            impatient.ensure_bridge()

    def test_hung_switch_is_told(self, vswitch: DummyVswitch) -> None:
        switch = vswitch.switch()
        switch.ensure_bridge()
        vswitch.signal_switch(signal.SIGSTOP)
        try:
            with refused(HostError, "network.switch_down", hint=True):
                FlowTable(BRIDGE, str(vswitch.home), timeout_s=0.5).difference(NOTHING)
        finally:
            vswitch.signal_switch(signal.SIGCONT)
        assert switch.drift(NOTHING) == ()

    @pytest.mark.parametrize(("times", "answered"), [(2, True), (9, False)])
    def test_switch_that_hangs_up_is_asked_again_and_not_for_ever(
        self, vswitch: DummyVswitch, monkeypatch: pytest.MonkeyPatch, times: int, answered: bool
    ) -> None:
        """A busy switch closes what it had no time to read."""
        monkeypatch.setattr(openflow, "_PAUSE_S", 0.0)
        switch = vswitch.switch()
        switch.ensure_bridge()
        with hanging_up(vswitch.home / f"{BRIDGE}.mgmt", times) as hung_up:
            if answered:
                assert switch.drift(NOTHING) == ()
            else:
                with refused(HostError, "network.flows_unread"):
                    switch.drift(NOTHING)
        assert len(hung_up) == min(times, 5)

    def test_killed_database_is_told_and_its_return_used(self, vswitch: DummyVswitch) -> None:
        switch = vswitch.switch()
        switch.ensure_bridge()
        running(vswitch, switch, "prt_a")
        before = switch.observe()
        vswitch.kill_database()
        for act in (switch.ensure_bridge, switch.observe, lambda: switch.close_port("prt_a")):
            with refused(HostError, "network.database_down", hint=True):
                act()
        vswitch.start_database()
        assert switch.observe() == before

    def test_calls_that_share_a_connection_read_what_is_there_now(
        self, clean: DummyVswitch, switch: OvsSwitch
    ) -> None:
        running(clean, switch, "prt_a")
        somebody_else = OvsSwitch(database=clean.socket, rundir=str(clean.home), datapath_type="dummy")
        with switch.kept():
            for _ in range(5):
                somebody_else.close_port("prt_a")
                assert [port.open for port in switch.observe().ports] == [False]
                somebody_else.open_port("prt_a", 9)
                assert [port.open for port in switch.observe().ports] == [True]

    def test_shared_connection_lives_as_long_as_the_block_and_a_restart_of_the_server_ends_it(
        self, clean: DummyVswitch, switch: OvsSwitch
    ) -> None:
        running(clean, switch, "prt_a")
        database = switch._database
        with switch.kept():
            before = switch.observe()
            first = database._kept.idl
            with switch.kept():
                assert switch.observe() == before
            assert database._kept.idl is first
            clean.kill_database()
            with refused(HostError, "network.database_down", hint=True):
                switch.observe()
            clean.start_database()
            assert switch.observe() == before
            assert database._kept.idl is not first
        assert database._kept.idl is None

    def test_change_that_loses_a_race_is_worked_out_again(
        self, clean: DummyVswitch, switch: OvsSwitch
    ) -> None:
        running(clean, switch, "prt_a")
        tries = []

        def close(tables: object, _: object) -> None:
            (row,) = [row for row in tables["Interface"].rows.values() if row.name == "tap-prt_a"]  # type: ignore[index]
            row.verify("external_ids")
            tries.append(row.external_ids.get("other"))
            row.setkey("external_ids", "ours", "yes")
            if len(tries) == 1:
                clean.vsctl("set", "Interface", "tap-prt_a", "external_ids:other=theirs")

        Database(clean.socket).change(close)
        assert tries == [None, "theirs"]
        marks = clean.vsctl("get", "Interface", "tap-prt_a", "external_ids")
        assert "other=theirs" in marks
        assert 'ours="yes"' in marks or "ours=yes" in marks
