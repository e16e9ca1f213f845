"""What a tenant could try with odd frames, as bytes through the switch's own parser: does anything leak?

Attacks have honest twins that pass, so that a drop is the rules' work and not a broken frame.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

import pytest

from orchestrator.isolation.flows import compile_flows
from orchestrator.isolation.reachability import BROADCAST
from tests.unit.network import wire
from tests.unit.network.conftest import DummyVswitch
from tests.unit.network.frames import UPLINK
from tests.unit.network.test_pipeline import CLOSED, FAR, PORTS, A, B
from tests.unit.network.wire import TPID_CUSTOMER, TPID_SERVICE, ethernet

BRIDGE = "br-leak"
PRESENT = [1, 2, 3, 4, CLOSED, UPLINK]
HONEST4 = wire.ipv4("10.0.0.1", "10.0.0.2", wire.UDP, wire.udp(53))
FROM_OUTSIDE = wire.ipv4("10.0.0.7", "10.0.0.2", wire.UDP, wire.udp(53))
RA = wire.ROUTER_ADVERTISEMENT
LINK_LOCAL_A, LINK_LOCAL_B = "fe80::ff:fe00:1", "fe80::ff:fe00:2"


def v6(next_header: int, payload: bytes, source: str = "fd00::1", target: str = "fd00::2") -> bytes:
    return ethernet(B, A, wire.ipv6(source, target, next_header, payload))


def v4(protocol: int, payload: bytes, *, more: bool = False, offset: int = 0) -> bytes:
    return ethernet(B, A, wire.ipv4("10.0.0.1", "10.0.0.2", protocol, payload, more=more, offset=offset))


ECHO = bytes((128, 0, 0, 0, 0, 1, 0, 1))
PIECE = wire.fragment(wire.ICMPV6, more=True)
BROKEN_OFF = wire.options(wire.ICMPV6, claims_bytes=32)

#: From port 1, to port 2: these pass, each the honest twin of something below.
PASSES = {
    "UDP": ethernet(B, A, HONEST4),
    "UDP in pieces, first": v4(wire.UDP, wire.udp(53, bytes(8)), more=True),
    "UDP in pieces, later": v4(wire.UDP, bytes(8), offset=2),
    "ping": v4(wire.ICMP, bytes((8, 0, 0, 0, 0, 1, 0, 1))),
    "IPv6 ping": v6(wire.ICMPV6, ECHO),
    "IPv6 ping behind options": v6(wire.DESTINATION_OPTIONS, wire.options(wire.ICMPV6) + ECHO),
    "IPv6 ping, one whole piece": v6(wire.FRAGMENT, wire.fragment(wire.ICMPV6, more=False) + ECHO),
    "IPv6 UDP in pieces": v6(wire.FRAGMENT, wire.fragment(wire.UDP, more=True) + wire.udp(53, bytes(8))),
    "link-local ping": v6(wire.ICMPV6, ECHO, LINK_LOCAL_A, LINK_LOCAL_B),
    "neighbour answer": v6(wire.ICMPV6, wire.advertisement("fd00::1", A)),
}

#: From port 1: none may reach anybody.
DROPPED = {
    "own VLAN's tag": ethernet(B, A, HONEST4, (TPID_CUSTOMER, 101)),
    "other VLAN's tag": ethernet(B, A, HONEST4, (TPID_CUSTOMER, 102)),
    "priority tag": ethernet(B, A, HONEST4, (TPID_CUSTOMER, 0)),
    "priority tag, highest": ethernet(B, A, HONEST4, (TPID_CUSTOMER, 0xE000)),
    "priority tag with drop eligible": ethernet(B, A, HONEST4, (TPID_CUSTOMER, 0x1000)),
    "service tag": ethernet(B, A, HONEST4, (TPID_SERVICE, 101)),
    "service priority tag": ethernet(B, A, HONEST4, (TPID_SERVICE, 0)),
    "tag in a service tag": ethernet(B, A, HONEST4, (TPID_SERVICE, 101), (TPID_CUSTOMER, 102)),
    "tag in a tag": ethernet(B, A, HONEST4, (TPID_CUSTOMER, 101), (TPID_CUSTOMER, 102)),
    "tag in a priority tag": ethernet(B, A, HONEST4, (TPID_CUSTOMER, 0), (TPID_CUSTOMER, 102)),
    "QinQ of old": ethernet(B, A, b"\x91\x00\x00\x65" + HONEST4),
    "LLDP": ethernet("01:80:c2:00:00:0e", A, b"\x88\xcc" + bytes(46)),
    "LLDP by unicast": ethernet(B, A, b"\x88\xcc" + bytes(46)),
    "LACP": ethernet("01:80:c2:00:00:02", A, b"\x88\x09" + bytes(46)),
    "pause": ethernet("01:80:c2:00:00:01", A, b"\x88\x08\x00\x01" + bytes(44)),
    "spanning tree": ethernet("01:80:c2:00:00:00", A, b"\x00\x26\x42\x42\x03" + bytes(43)),
    "802.1X": ethernet("01:80:c2:00:00:03", A, b"\x88\x8e" + bytes(46)),
    "MPLS": ethernet(B, A, b"\x88\x47\x00\x01\x01\x40" + HONEST4[2:]),
    "PPPoE": ethernet(B, A, b"\x88\x64" + bytes(46)),
    "DHCP question": ethernet(
        BROADCAST, A, wire.ipv4("0.0.0.0", "255.255.255.255", wire.UDP, wire.udp(67, bytes(240)))
    ),
    "DHCP question with the own address": ethernet(
        BROADCAST, A, wire.ipv4("10.0.0.1", "255.255.255.255", wire.UDP, wire.udp(67, bytes(240)))
    ),
    "DHCP answer": v4(wire.UDP, wire.udp(68, bytes(240))),
    "DHCPv6 question": ethernet(
        "33:33:00:01:00:02", A, wire.ipv6(LINK_LOCAL_A, "ff02::1:2", wire.UDP, wire.udp(547))
    ),
    "DHCPv6 answer": v6(wire.UDP, wire.udp(546), LINK_LOCAL_A, LINK_LOCAL_B),
    "mDNS": ethernet("01:00:5e:00:00:fb", A, wire.ipv4("10.0.0.1", "224.0.0.251", wire.UDP, wire.udp(5353))),
    "mDNS by IPv6": ethernet(
        "33:33:00:00:00:fb", A, wire.ipv6(LINK_LOCAL_A, "ff02::fb", wire.UDP, wire.udp(5353))
    ),
    "IGMP": ethernet("01:00:5e:00:00:16", A, wire.ipv4("10.0.0.1", "224.0.0.22", 2, bytes(16))),
    "MLD": ethernet(
        "33:33:00:00:00:16",
        A,
        wire.ipv6(LINK_LOCAL_A, "ff02::16", 0, wire.options(wire.ICMPV6) + b"\x8f" + bytes(7)),
    ),
    "all nodes": ethernet("33:33:00:00:00:01", A, wire.ipv6(LINK_LOCAL_A, "ff02::1", wire.ICMPV6, ECHO)),
    "router question": ethernet(
        "33:33:00:00:00:02", A, wire.ipv6(LINK_LOCAL_A, "ff02::2", wire.ICMPV6, b"\x85" + bytes(7))
    ),
    "another's link-local address": v6(wire.ICMPV6, ECHO, LINK_LOCAL_B, LINK_LOCAL_B),
    "a link-local address of choice": v6(wire.ICMPV6, ECHO, "fe80::1", LINK_LOCAL_B),
    "router advertisement": v6(wire.ICMPV6, RA, LINK_LOCAL_A),
    "router advertisement behind options": v6(
        wire.DESTINATION_OPTIONS, wire.options(wire.ICMPV6) + RA, LINK_LOCAL_A
    ),
    "router advertisement behind routing": v6(
        wire.ROUTING, bytes((wire.ICMPV6, 0, 0, 0, 0, 0, 0, 0)) + RA, LINK_LOCAL_A
    ),
    "router advertisement, one whole piece": v6(
        wire.FRAGMENT, wire.fragment(wire.ICMPV6, more=False) + RA, LINK_LOCAL_A
    ),
    "router advertisement in pieces": v6(wire.FRAGMENT, PIECE + RA, LINK_LOCAL_A),
    "router advertisement in the second piece": v6(
        wire.FRAGMENT, wire.fragment(wire.DESTINATION_OPTIONS, more=True) + BROKEN_OFF, LINK_LOCAL_A
    ),
    "headers that break off": v6(wire.DESTINATION_OPTIONS, BROKEN_OFF, LINK_LOCAL_A),
    "headers that lead nowhere": v6(wire.NO_NEXT_HEADER, RA, LINK_LOCAL_A),
    "neighbour answer for another": v6(wire.ICMPV6, wire.advertisement("fd00::9", A)),
    "neighbour answer for another in pieces": v6(
        wire.FRAGMENT, PIECE + wire.advertisement("fd00::9", A) + bytes(8)
    ),
    "redirect": v4(wire.ICMP, bytes((5, 1, 0, 0, 10, 0, 0, 9)) + bytes(28)),
    "redirect in pieces, first": v4(wire.ICMP, bytes((5, 1, 0, 0, 10, 0, 0, 9)) + bytes(8), more=True),
    "redirect in pieces, later": v4(wire.ICMP, bytes(20), offset=2),
    "spoofed source in pieces": ethernet(
        B, A, wire.ipv4("10.0.0.9", "10.0.0.2", wire.UDP, wire.udp(53, bytes(8)), more=True)
    ),
    "spoofed source, later piece": ethernet(
        B, A, wire.ipv4("10.0.0.9", "10.0.0.2", wire.UDP, bytes(8), offset=2)
    ),
    "ARP over something else": ethernet(
        B, A, b"\x08\x06" + struct.pack(">HHBBH", 6, 0x800, 6, 4, 1) + bytes(20)
    ),
    "ARP cut short": ethernet(B, A, b"\x08\x06" + struct.pack(">HHBBH", 1, 0x800, 6, 4, 1)),
    "IPv4 cut short": ethernet(B, A, HONEST4[:16]),
}


@pytest.fixture(scope="module")
def loaded(shared_vswitch: DummyVswitch) -> Iterator[DummyVswitch]:
    """With an uplink: what goes nowhere here may not go out there either."""
    shared_vswitch.add_bridge(BRIDGE, PRESENT)
    shared_vswitch.load(BRIDGE, compile_flows(PORTS, UPLINK).text())
    yield shared_vswitch
    shared_vswitch.vsctl("del-br", BRIDGE)


def sent(vswitch: DummyVswitch, frame: bytes, in_port: int = 1) -> str:
    """The datapath actions for these bytes, ports by their OpenFlow numbers."""
    actions = vswitch.trace(BRIDGE, f"in_port={in_port}", frame.hex())
    numbers = vswitch.datapath_ports()
    return ",".join(
        str(numbers[int(word)]) if word.isdecimal() else word
        for word in re.findall(r"[a-z_]+\([^)]*\)|[^,]+", actions)
    )


@pytest.mark.parametrize("name", [*PASSES])
def test_honest_twin_passes(loaded: DummyVswitch, name: str) -> None:
    assert sent(loaded, PASSES[name]) == "2"


@pytest.mark.parametrize("name", [*DROPPED])
def test_odd_frame_reaches_nobody(loaded: DummyVswitch, name: str) -> None:
    assert sent(loaded, DROPPED[name]) == "drop"


#: From the uplink, tags outermost first: one known tag leads in, only into its network (port 2 is in 101).
UPLINK_TAGS = {
    "none": ((), "drop"),
    "its own": (((TPID_CUSTOMER, 101),), "pop_vlan,2"),
    "its own with priority": (((TPID_CUSTOMER, 0xE065),), "pop_vlan,2"),
    # OpenFlow cannot tell the two kinds of tag apart: the fabric must not let hosts send service tags.
    "its own as service tag": (((TPID_SERVICE, 101),), "pop_vlan,2"),
    "priority alone": (((TPID_CUSTOMER, 0),), "drop"),
    "unknown": (((TPID_CUSTOMER, 103),), "drop"),
    "reserved": (((TPID_CUSTOMER, 4095),), "drop"),
    "another inside": (((TPID_CUSTOMER, 101), (TPID_CUSTOMER, 102)), "drop"),
    "itself inside": (((TPID_CUSTOMER, 101), (TPID_CUSTOMER, 101)), "drop"),
    "priority inside": (((TPID_CUSTOMER, 101), (TPID_CUSTOMER, 0)), "drop"),
    "inside a service tag": (((TPID_SERVICE, 101), (TPID_CUSTOMER, 102)), "drop"),
}


@pytest.mark.parametrize("name", [*UPLINK_TAGS])
def test_only_one_known_tag_leads_in(loaded: DummyVswitch, name: str) -> None:
    tags, wanted = UPLINK_TAGS[name]
    assert sent(loaded, ethernet(B, FAR, FROM_OUTSIDE, *tags), UPLINK) == wanted


def test_tags_in_tags_where_the_switch_reads_two(vswitch: DummyVswitch) -> None:
    """The switch's own limit is one tag unless somebody raises it: the answers stay the same."""
    vswitch.vsctl("set", "Open_vSwitch", ".", "other_config:vlan-limit=2")
    vswitch.kill_switch()
    vswitch.start_switch()
    vswitch.add_bridge(BRIDGE, PRESENT)
    vswitch.load(BRIDGE, compile_flows(PORTS, UPLINK).text())
    double = ethernet(B, FAR, FROM_OUTSIDE, (TPID_CUSTOMER, 101), (TPID_CUSTOMER, 102))
    assert "dl_vlan1=102" in vswitch.control("ofproto/trace", BRIDGE, f"in_port={UPLINK}", double.hex())
    for name, (tags, wanted) in UPLINK_TAGS.items():
        assert sent(vswitch, ethernet(B, FAR, FROM_OUTSIDE, *tags), UPLINK) == wanted, name
    for name, frame in DROPPED.items():
        assert sent(vswitch, frame) == "drop", name


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        (r"^.*icmp,nw_frag=first .*\n", "redirect in pieces, first"),
        (r"^.*icmp,nw_frag=later .*\n", "redirect in pieces, later"),
        (r"^.*icmp6,nw_frag=first .*\n", "router advertisement in pieces"),
        (r"^.*icmp6,nw_frag=first .*\n", "neighbour answer for another in pieces"),
        (r"^.*ipv6,nw_proto=0 .*\n", "router advertisement in the second piece"),
        (r"^.*ipv6,nw_proto=59 .*\n", "headers that lead nowhere"),
        (r",vlan_tci=0x0000/0x1fff(?=.*reg6)", "priority tag"),
        (r",vlan_tci=0x0000/0x1fff(?=.*reg6)", "service tag"),
    ],
)
def test_odd_frame_gets_through_without_its_rule(loaded: DummyVswitch, pattern: str, name: str) -> None:
    text = compile_flows(PORTS, UPLINK).text()
    broken = re.sub(pattern, "", text, flags=re.MULTILINE)
    assert broken != text
    loaded.load(BRIDGE, broken)
    try:
        assert sent(loaded, DROPPED[name]) != "drop"
    finally:
        loaded.load(BRIDGE, text)
