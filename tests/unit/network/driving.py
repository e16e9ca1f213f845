"""What the driver's tests have in common: ports as libvirt plugs them, and where their packets go."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from orchestrator.agent.network import OvsSwitch
from orchestrator.isolation.flows import FlowPort, FlowProgram, compile_flows
from orchestrator.model.errors import BulkheadError
from orchestrator.model.observed import ObservedPort
from tests.unit.network.conftest import BRIDGE, DummyVswitch

A, B, C = (f"02:00:00:00:00:0{digit}" for digit in "123")
MACS = {"prt_a": A, "prt_b": B, "prt_c": C}
ADDRESSES = {"prt_a": "10.0.0.1", "prt_b": "10.0.0.2", "prt_c": "10.0.0.3"}
NOTHING = FlowProgram(())


def plugged(vswitch: DummyVswitch, *ports: str) -> None:
    for port in ports:
        vswitch.plug(BRIDGE, f"tap-{port}", f"if-{port}", mac=MACS[port])


def label(switch: OvsSwitch, port: str, *, instance: str = "vm_one", interface_id: str = "") -> None:
    switch.label_port(port, instance=instance, deployment="dep_1", interface_id=interface_id or f"if-{port}")


def running(vswitch: DummyVswitch, switch: OvsSwitch, *ports: str, vlan: int = 101) -> None:
    plugged(vswitch, *ports)
    for port in ports:
        label(switch, port)
        switch.open_port(port, vlan)


def seen(switch: OvsSwitch, port: str) -> ObservedPort:
    (found,) = [each for each in switch.observe().ports if each.port == port]
    return found


def program(switch: OvsSwitch, *ports: str, vlan: int = 101) -> FlowProgram:
    """What these ports may say, by the numbers that the switch gave them."""
    speaking = []
    for port in ports:
        ofport = seen(switch, port).ofport
        assert ofport is not None
        speaking.append(FlowPort(port, ofport, vlan, MACS[port], (ADDRESSES[port],)))
    return compile_flows(speaking, switch.observe().uplink_ofport)


def number_of(vswitch: DummyVswitch, interface: str) -> int:
    return int(vswitch.vsctl("get", "Interface", interface, "ofport"))


def reaches(vswitch: DummyVswitch, sender: str, target: str) -> str:
    """Where an honest packet from one port's tap to another's MAC goes, ports by name of the tap."""
    words = f"in_port={number_of(vswitch, f'tap-{sender}')},dl_src={MACS[sender]},dl_dst={MACS[target]}"
    words += f",dl_type=0x800,nw_src={ADDRESSES[sender]},nw_dst={ADDRESSES[target]},nw_proto=6,nw_ttl=64"
    actions = vswitch.trace(BRIDGE, words)
    if actions == "drop":
        return "drop"
    number = vswitch.datapath_ports()[int(actions)]
    (name,) = [f"tap-{each}" for each in MACS if _number_or_none(vswitch, f"tap-{each}") == number]
    return name


def _number_or_none(vswitch: DummyVswitch, interface: str) -> int | None:
    text = vswitch.vsctl("--if-exists", "get", "Interface", interface, "ofport")
    return int(text) if text else None


@contextmanager
def refused(kind: type[BulkheadError], code: str, *, hint: bool = False) -> Iterator[None]:
    with pytest.raises(kind) as caught:
        yield
    assert caught.value.code == code, caught.value
    assert caught.value.hint or not hint
