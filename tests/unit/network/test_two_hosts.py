"""Two hosts, each a switch of its own, joined by their uplinks: real frames over a real (if short) wire.

What must not arrive is sent first, an honest frame behind it: when that one is there, the others are lost.
"""

from __future__ import annotations

import ipaddress
import shutil
import struct
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from orchestrator.agent.network import OvsSwitch
from orchestrator.isolation.flows import FlowPort, compile_flows
from orchestrator.isolation.reachability import BROADCAST
from tests.unit.network import wire
from tests.unit.network.conftest import DummyVswitch
from tests.unit.network.wire import TPID_CUSTOMER, captured, ethernet

BRIDGE = "br-bulkhead"
#: Tenants 101 and 102 with the same addresses and MACs on both hosts: .1 lives on the left, .2 on the right.
LEFT, RIGHT = "02:00:00:00:00:01", "02:00:00:00:00:02"
SIDES = {"left": (LEFT, "10.0.0.1"), "right": (RIGHT, "10.0.0.2")}
TENANTS = {"a": 101, "b": 102}
KNOCK = b"knock"


class Host:
    """One side: its switch, a port of either tenant, and what each wire carried."""

    def __init__(self, vswitch: DummyVswitch, side: str) -> None:
        self.vswitch = vswitch
        self.mac, self.address = SIDES[side]
        self.switch: OvsSwitch = vswitch.switch(uplink="up0")
        self.switch.ensure_bridge()
        for tenant, vlan in TENANTS.items():
            port, tap = f"prt_{tenant}", f"tap-{tenant}"
            vswitch.plug(BRIDGE, tap, f"if-{tenant}", mac=self.mac)
            self.switch.label_port(port, instance="vm_1", deployment="dep_1", interface_id=f"if-{tenant}")
            self.switch.open_port(port, vlan)
        for interface in ("tap-a", "tap-b", "up0"):
            self.tell(interface, f"tx_pcap={vswitch.home / interface}.pcap")
        self.load("prt_a", "prt_b")

    def load(self, *ports: str) -> None:
        """The flows of these ports, each in the network that the database says."""
        seen = self.switch.observe()
        assert seen.uplink_ofport is not None
        speaking = [
            FlowPort(port.port, port.ofport or 0, port.vlan or 0, self.mac, (self.address,))
            for port in seen.ports
            if port.port in ports
        ]
        self.switch.replace_flows(compile_flows(speaking, seen.uplink_ofport))

    def tell(self, interface: str, option: str) -> None:
        self.vswitch.vsctl("set", "Interface", interface, f"options:{option}")

    def send(self, interface: str, *frames: bytes) -> None:
        for frame in frames:
            self.vswitch.control("netdev-dummy/receive", interface, frame.hex())

    def carried(self, interface: str) -> list[bytes]:
        """What left by this interface."""
        frames = captured(self.vswitch.home / f"{interface}.pcap")
        return [frame for frame in frames if not frame.endswith(KNOCK)]

    def awaits(self, interface: str, last: bytes) -> list[bytes]:
        """What left by this interface, once `last` did."""
        deadline = time.monotonic() + 20
        while last not in (frames := self.carried(interface)):
            assert time.monotonic() < deadline, f"{interface} carried only {frames}"
            time.sleep(0.005)
        return frames


@contextmanager
def started() -> Iterator[DummyVswitch]:
    vswitch = DummyVswitch(Path(tempfile.mkdtemp(prefix="ovs-")))
    try:
        vswitch.start()
        yield vswitch
    finally:
        vswitch.stop()
        shutil.rmtree(vswitch.home, ignore_errors=True)


@pytest.fixture
def left_right() -> Iterator[tuple[Host, Host]]:
    with started() as one, started() as two:
        left, right = Host(one, "left"), Host(two, "right")
        left.tell("up0", f'pstream="punix:{one.home}/wire"')
        right.tell("up0", f'stream="unix:{one.home}/wire"')
        _join(left, right)
        yield left, right


def _join(left: Host, right: Host) -> None:
    """Knock from either side until it arrives: the switches make the wire in their own time."""
    deadline = time.monotonic() + 20
    for sender, receiver in ((left, right), (right, left)):
        log = receiver.vswitch.home / "tap-a.pcap"
        while not captured(log):
            assert time.monotonic() < deadline, "the uplinks do not join"
            sender.send("tap-a", ethernet(receiver.mac, sender.mac, packet(sender, receiver) + KNOCK))
            time.sleep(0.02)


def packet(sender: Host, receiver: Host, payload: bytes = b"") -> bytes:
    return wire.ipv4(sender.address, receiver.address, wire.UDP, wire.udp(53, payload))


def arp(operation: int, sender: Host, receiver: Host, target_mac: str = "00:00:00:00:00:00") -> bytes:
    head = b"\x08\x06" + struct.pack(">HHBBH", 1, 0x800, 6, 4, operation)
    macs = [bytes.fromhex(mac.replace(":", "")) for mac in (sender.mac, target_mac)]
    addresses = [ipaddress.ip_address(host.address).packed for host in (sender, receiver)]
    return head + macs[0] + addresses[0] + macs[1] + addresses[1]


def tagged(frame: bytes, *vlans: int) -> bytes:
    return frame[:12] + b"".join(struct.pack(">HH", TPID_CUSTOMER, vlan) for vlan in vlans) + frame[12:]


@pytest.mark.parametrize("tenant", [*TENANTS])
def test_tenants_talk_across_in_both_directions(left_right: tuple[Host, Host], tenant: str) -> None:
    """Question, answer and packets arrive as sent, tagged on the wire, and at no other port."""
    tap, other = f"tap-{tenant}", "tap-a" if tenant == "b" else "tap-b"
    for sender, receiver in (left_right, left_right[::-1]):
        frames = [
            ethernet(BROADCAST, sender.mac, arp(1, sender, receiver)),
            ethernet(receiver.mac, sender.mac, arp(2, sender, receiver, receiver.mac)),
            ethernet(receiver.mac, sender.mac, packet(sender, receiver, tenant.encode())),
        ]
        sender.send(tap, *frames)
        assert receiver.awaits(tap, frames[-1]) == frames
        assert sender.carried("up0") == [tagged(frame, TENANTS[tenant]) for frame in frames]
        assert receiver.carried(other) == []
        assert sender.carried(other) == []


def test_nothing_crosses_between_tenants(left_right: tuple[Host, Host]) -> None:
    left, right = left_right
    plain = ethernet(right.mac, left.mac, packet(left, right, b"leak"))
    tries = [
        tagged(plain, 102),
        tagged(plain, 101, 102),
        tagged(plain, 0, 102),
        ethernet(right.mac, left.mac, b"\x88\xa8\x00\x66" + plain[12:]),
        ethernet(right.mac, right.mac, plain[12:]),
        ethernet(BROADCAST, left.mac, plain[12:]),
    ]
    honest = ethernet(right.mac, left.mac, packet(left, right, b"last"))
    left.send("tap-a", *tries, honest)
    assert right.awaits("tap-a", honest) == [honest]
    assert left.carried("up0") == [tagged(honest, 101)]
    assert right.carried("tap-b") == left.carried("tap-b") == []


def test_only_known_networks_come_in(left_right: tuple[Host, Host]) -> None:
    left, right = left_right
    plain = ethernet(right.mac, left.mac, packet(left, right, b"in"))
    stolen = ethernet(left.mac, right.mac, packet(right, left, b"mine"))
    bad = [plain, *(tagged(plain, *vlans) for vlans in ((0,), (103,), (4095,), (102, 101), (101, 102)))]
    right.send("up0", *bad, tagged(stolen, 102), tagged(plain, 102))
    assert right.awaits("tap-b", plain) == [plain]
    assert right.carried("tap-a") == []
    assert right.carried("up0") == []


def test_a_wrong_tag_at_the_other_end_is_noticed(left_right: tuple[Host, Host]) -> None:
    """The test above is not blind: put the other tenant's port into this network, and it hears."""
    left, right = left_right
    right.switch.open_port("prt_b", 101)
    right.load("prt_b")
    frame = ethernet(right.mac, left.mac, packet(left, right, b"overheard"))
    left.send("tap-a", frame)
    assert right.awaits("tap-b", frame) == [frame]
