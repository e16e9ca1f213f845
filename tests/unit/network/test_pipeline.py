"""The compiled flows in a real Open vSwitch against the model of what a frame may reach."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.isolation.flows import FlowPort, compile_flows
from orchestrator.isolation.reachability import (
    BROADCAST,
    ETH_ARP,
    ETH_IPV4,
    ETH_IPV6,
    ICMP,
    ICMPV6,
    NO_MAC,
    UDP,
    Arp,
    Delivery,
    Frame,
    Ip,
    deliveries,
)
from tests.unit.network.conftest import DummyVswitch
from tests.unit.network.frames import UPLINK, frames, port_sets, traced

BRIDGE = "br-pipe"
A, B, C, D = (f"02:00:00:00:00:0{digit}" for digit in "1234")
FAR = "02:00:00:00:00:77"

#: Two tenants: 1 and 2 in VLAN 101, 3 and 4 in VLAN 102 with the very same MACs and addresses; 5 is closed.
PORTS = (
    FlowPort("prt_a", 1, 101, A, ("10.0.0.1", "fd00::1")),
    FlowPort("prt_b", 2, 101, B, ("10.0.0.2", "fd00::2")),
    FlowPort("prt_c", 3, 102, A, ("10.0.0.1", "fd00::1")),
    FlowPort("prt_d", 4, 102, D, ("10.0.0.2", "fd00::2")),
)
CLOSED = 5


def ipv4(source: str, target: str, protocol: int = UDP, port: int = 53, kind: int = 8) -> Ip:
    return Ip(source, target, protocol, port, kind)


def icmpv6(source: str, target: str, kind: int, about: str = "::", link: str = NO_MAC) -> Ip:
    return Ip(source, target, ICMPV6, 0, kind, 0, about, link)


#: name -> frame, most from port 1, and where it must go. Written out by hand: the model is checked by it too.
CASES: dict[str, tuple[Frame, set[Delivery]]] = {
    "honest IPv4": (Frame(1, A, B, ETH_IPV4, ip=ipv4("10.0.0.1", "10.0.0.2")), {Delivery(2)}),
    "honest IPv6": (Frame(1, A, B, ETH_IPV6, ip=Ip("fd00::1", "fd00::2", 6, 443)), {Delivery(2)}),
    "honest link-local": (
        Frame(1, A, B, ETH_IPV6, ip=icmpv6("fe80::ff:fe00:1", "fe80::ff:fe00:2", 128)),
        {Delivery(2)},
    ),
    "ARP question": (Frame(1, A, BROADCAST, ETH_ARP, arp=Arp(1, "10.0.0.1", "10.0.0.2", A)), {Delivery(2)}),
    "ARP answer": (Frame(2, B, A, ETH_ARP, arp=Arp(2, "10.0.0.2", "10.0.0.1", B, A)), {Delivery(1)}),
    "neighbour question": (
        Frame(1, A, "33:33:ff:00:00:02", ETH_IPV6, ip=icmpv6("fd00::1", "ff02::1:ff00:2", 135, "fd00::2", A)),
        {Delivery(2)},
    ),
    "neighbour answer": (
        Frame(2, B, A, ETH_IPV6, ip=icmpv6("fd00::2", "fd00::1", 136, "fd00::2", B)),
        {Delivery(1)},
    ),
    "neighbour answer without option": (
        Frame(2, B, A, ETH_IPV6, ip=icmpv6("fd00::2", "fd00::1", 136, "fd00::2")),
        {Delivery(1)},
    ),
    "same MAC in the other network": (
        Frame(3, A, D, ETH_IPV4, ip=ipv4("10.0.0.1", "10.0.0.2")),
        {Delivery(4)},
    ),
    "spoofed MAC": (Frame(1, B, B, ETH_IPV4, ip=ipv4("10.0.0.1", "10.0.0.2")), set()),
    "foreign MAC as sender": (Frame(1, FAR, B, ETH_IPV4, ip=ipv4("10.0.0.1", "10.0.0.2")), set()),
    "spoofed IPv4": (Frame(1, A, B, ETH_IPV4, ip=ipv4("10.0.0.2", "10.0.0.2")), set()),
    "unspecified IPv4": (
        Frame(1, A, BROADCAST, ETH_IPV4, ip=ipv4("0.0.0.0", "255.255.255.255", port=67)),
        set(),
    ),
    "spoofed IPv6": (Frame(1, A, B, ETH_IPV6, ip=Ip("fd00::2", "fd00::2", 6, 443)), set()),
    "ARP claims another address": (Frame(1, A, B, ETH_ARP, arp=Arp(2, "10.0.0.2", "10.0.0.1", A)), set()),
    "ARP claims another MAC": (Frame(1, A, B, ETH_ARP, arp=Arp(2, "10.0.0.1", "10.0.0.1", B)), set()),
    "ARP question claims another": (
        Frame(1, A, BROADCAST, ETH_ARP, arp=Arp(1, "10.0.0.9", "10.0.0.2", A)),
        set(),
    ),
    "ARP probe": (Frame(1, A, BROADCAST, ETH_ARP, arp=Arp(1, "0.0.0.0", "10.0.0.2", A)), set()),
    "reverse ARP": (Frame(1, A, B, ETH_ARP, arp=Arp(3, "10.0.0.1", "10.0.0.2", A)), set()),
    "neighbour answer for another": (
        Frame(1, A, B, ETH_IPV6, ip=icmpv6("fd00::1", "fd00::2", 136, "fd00::9", A)),
        set(),
    ),
    "neighbour answer with another MAC": (
        Frame(1, A, B, ETH_IPV6, ip=icmpv6("fd00::1", "fd00::2", 136, "fd00::1", D)),
        set(),
    ),
    "neighbour question with another MAC": (
        Frame(1, A, B, ETH_IPV6, ip=icmpv6("fd00::1", "fd00::2", 135, "fd00::2", D)),
        set(),
    ),
    "duplicate address detection": (
        Frame(1, A, "33:33:ff:00:00:02", ETH_IPV6, ip=icmpv6("::", "ff02::1:ff00:2", 135, "fd00::2")),
        set(),
    ),
    "tagged with the own VLAN": (Frame(1, A, B, ETH_IPV4, 101, ip=ipv4("10.0.0.1", "10.0.0.2")), set()),
    "tagged with the other VLAN": (Frame(1, A, D, ETH_IPV4, 102, ip=ipv4("10.0.0.1", "10.0.0.2")), set()),
    "priority tag": (Frame(1, A, B, ETH_IPV4, 0, ip=ipv4("10.0.0.1", "10.0.0.2")), set()),
    "another tenant's MAC": (Frame(1, A, D, ETH_IPV4, ip=ipv4("10.0.0.1", "10.0.0.2")), set()),
    "LLDP": (Frame(1, A, "01:80:c2:00:00:0e", 0x88CC), set()),
    "spanning tree's address": (
        Frame(1, A, "01:80:c2:00:00:00", ETH_IPV4, ip=ipv4("10.0.0.1", "10.0.0.2")),
        set(),
    ),
    "unknown ethertype": (Frame(1, A, B, 0x88E5), set()),
    "router advertisement": (
        Frame(1, A, B, ETH_IPV6, ip=icmpv6("fe80::ff:fe00:1", "fe80::ff:fe00:2", 134)),
        set(),
    ),
    "IPv6 redirect": (Frame(1, A, B, ETH_IPV6, ip=icmpv6("fe80::ff:fe00:1", "fd00::2", 137)), set()),
    "IPv4 redirect": (Frame(1, A, B, ETH_IPV4, ip=ipv4("10.0.0.1", "10.0.0.2", ICMP, 0, 5)), set()),
    "DHCP server": (Frame(1, A, B, ETH_IPV4, ip=ipv4("10.0.0.1", "10.0.0.2", port=68)), set()),
    "DHCPv6 server": (Frame(1, A, B, ETH_IPV6, ip=Ip("fd00::1", "fd00::2", UDP, 546)), set()),
    "broadcast": (Frame(1, A, BROADCAST, ETH_IPV4, ip=ipv4("10.0.0.1", "255.255.255.255")), set()),
    "to itself": (Frame(1, A, A, ETH_IPV4, ip=ipv4("10.0.0.1", "10.0.0.1")), set()),
    "closed port": (Frame(CLOSED, A, B, ETH_IPV4, ip=ipv4("10.0.0.1", "10.0.0.2")), set()),
    "the host's own port": (Frame(65534, A, B, ETH_IPV4, ip=ipv4("10.0.0.1", "10.0.0.2")), set()),
}

#: The same with an uplink.
UPLINK_CASES: dict[str, tuple[Frame, set[Delivery]]] = {
    "unknown unicast goes out tagged": (
        Frame(1, A, FAR, ETH_IPV4, ip=ipv4("10.0.0.1", "10.0.0.7")),
        {Delivery(UPLINK, 101)},
    ),
    "unknown ARP question goes out tagged": (
        Frame(3, A, BROADCAST, ETH_ARP, arp=Arp(1, "10.0.0.1", "10.0.0.7", A)),
        {Delivery(UPLINK, 102)},
    ),
    "unknown neighbour question goes out tagged": (
        Frame(1, A, "33:33:ff:00:00:07", ETH_IPV6, ip=icmpv6("fd00::1", "ff02::1:ff00:7", 135, "fd00::7", A)),
        {Delivery(UPLINK, 101)},
    ),
    "known stays here": (Frame(1, A, B, ETH_IPV4, ip=ipv4("10.0.0.1", "10.0.0.2")), {Delivery(2)}),
    "broadcast stays out": (Frame(1, A, BROADCAST, ETH_IPV4, ip=ipv4("10.0.0.1", "255.255.255.255")), set()),
    "from outside": (Frame(UPLINK, FAR, A, ETH_IPV4, 102, ip=ipv4("10.0.0.7", "10.0.0.1")), {Delivery(3)}),
    "question from outside": (
        Frame(UPLINK, FAR, BROADCAST, ETH_ARP, 101, arp=Arp(1, "10.0.0.7", "10.0.0.2", FAR)),
        {Delivery(2)},
    ),
    "never out again": (
        Frame(UPLINK, FAR, "02:00:00:00:00:78", ETH_IPV4, 101, ip=ipv4("10.0.0.7", "10.0.0.8")),
        set(),
    ),
    "unknown VLAN": (Frame(UPLINK, FAR, A, ETH_IPV4, 103, ip=ipv4("10.0.0.7", "10.0.0.1")), set()),
    "no VLAN": (Frame(UPLINK, FAR, A, ETH_IPV4, ip=ipv4("10.0.0.7", "10.0.0.1")), set()),
    "our own MAC from outside": (Frame(UPLINK, B, A, ETH_IPV4, 101, ip=ipv4("10.0.0.2", "10.0.0.1")), set()),
    "router advertisement from outside": (
        Frame(UPLINK, FAR, A, ETH_IPV6, 101, ip=icmpv6("fe80::77", "fd00::1", 134)),
        set(),
    ),
}


@pytest.fixture(scope="module")
def pipe(shared_vswitch: DummyVswitch) -> Iterator[DummyVswitch]:
    shared_vswitch.add_bridge(BRIDGE, [*range(1, 9), UPLINK])
    yield shared_vswitch
    shared_vswitch.vsctl("del-br", BRIDGE)


def differences(pipe: DummyVswitch, flows: str, uplink: int | None) -> dict[str, tuple[object, object]]:
    """Load flows and name the cases that do not go where the hand-written table says."""
    pipe.load(BRIDGE, flows)
    numbers = pipe.datapath_ports()
    cases = (
        CASES
        if uplink is None
        else {**{k: v for k, v in CASES.items() if v[0].source != FAR}, **UPLINK_CASES}
    )
    wrong = {}
    for name, (frame, wanted) in cases.items():
        if uplink is not None and name not in UPLINK_CASES:
            # With an uplink, unicasts to nobody here go out: the model says which; it is checked without one.
            wanted = set(deliveries(PORTS, frame, uplink))
        found = traced(pipe, BRIDGE, frame, numbers)
        if found != wanted:
            wrong[name] = (found, wanted)
    return wrong


@pytest.mark.parametrize("uplink", [None, UPLINK])
def test_flows_send_each_frame_where_it_may_go(pipe: DummyVswitch, uplink: int | None) -> None:
    assert differences(pipe, compile_flows(PORTS, uplink).text(), uplink) == {}


@pytest.mark.parametrize("name", [*CASES])
def test_model_agrees_with_the_table(name: str) -> None:
    frame, wanted = CASES[name]
    assert deliveries(PORTS, frame) == wanted


@pytest.mark.parametrize("name", [*UPLINK_CASES])
def test_model_agrees_with_the_table_for_the_uplink(name: str) -> None:
    frame, wanted = UPLINK_CASES[name]
    assert deliveries(PORTS, frame, UPLINK) == wanted


#: A fault put into the program: pattern, replacement, and one case that must notice it.
FAULTS = {
    "port in the wrong network": (
        r"(in_port=3,.*)0x66->reg6",
        r"\g<1>0x65->reg6",
        "same MAC in the other network",
    ),
    "no router guard": (r"^.*icmp_type=134 .*\n", "", "router advertisement"),
    "no redirect guard": (r"^.*icmp6,icmp_type=137 .*\n", "", "IPv6 redirect"),
    "no IPv4 redirect guard": (r"^.*icmp,icmp_type=5 .*\n", "", "IPv4 redirect"),
    "no DHCP guard": (r"^.*udp,tp_dst=68 .*\n", "", "DHCP server"),
    "no DHCPv6 guard": (r"^.*udp6,tp_dst=546 .*\n", "", "DHCPv6 server"),
    "no neighbour guard": (r"^.*priority=150,.*\n", "", "neighbour answer for another"),
    "any MAC": (r"(table=10,.*),dl_src=[0-9a-f:]+", r"\1", "spoofed MAC"),
    "any IPv4 source": (r",nw_src=10.0.0.1", "", "spoofed IPv4"),
    "any IPv6 source": (r"(ipv6,.*),ipv6_src=fd00::1 ", r"\1 ", "spoofed IPv6"),
    "any ARP address": (r",arp_spa=10.0.0.1", "", "ARP claims another address"),
    "any ARP MAC": (r",arp_sha=[0-9a-f:]+", "", "ARP claims another MAC"),
    "any target of answers": (
        r"icmp_type=136,(.*),nd_target=fd00::1,",
        r"icmp_type=136,\1,",
        "neighbour answer for another",
    ),
    "any link of questions": (r",nd_sll=[0-9a-f:]+", "", "neighbour question with another MAC"),
    "tags pass": (r",vlan_tci=0x0000/0x1fff", "", "tagged with the own VLAN"),
    "networks forgotten": (r"(table=(?:30|50),.*)reg6=0x66,", r"\1", "another tenant's MAC"),
    "flood": (r"(table=30,priority=0) actions=drop", r"\1 actions=FLOOD", "broadcast"),
    "honest frames lost": (r"^.*nw_src=10.0.0.1 .*\n", "", "honest IPv4"),
    "answers lost": (r"^.*nd_tll=00:00:00:00:00:00 .*\n", "", "neighbour answer without option"),
}


@pytest.mark.parametrize("fault", [*FAULTS])
def test_comparison_sees_a_fault(pipe: DummyVswitch, fault: str) -> None:
    pattern, replacement, case = FAULTS[fault]
    text = compile_flows(PORTS).text()
    broken = re.sub(pattern, replacement, text, flags=re.MULTILINE)
    assert broken != text
    assert case in differences(pipe, broken, None)


UPLINK_FAULTS = {
    "goes round": (r"^.*table=30,priority=60,.*\n|^.*table=50,priority=200,reg5=0x9,.*\n", "", None),
    "wrong tag": (r"set_field:4197->vlan_vid", "set_field:4198->vlan_vid", "unknown unicast goes out tagged"),
    "no tag": (r"push_vlan:0x8100,set_field:\d+->vlan_vid,", "", "unknown unicast goes out tagged"),
    "own MACs come in": (r"^.*priority=260,.*\n", "", "our own MAC from outside"),
    "wrong network": (r"(dl_vlan=102 .*)0x66->reg6", r"\g<1>0x65->reg6", "from outside"),
}


@pytest.mark.parametrize("fault", [name for name, (_, _, case) in UPLINK_FAULTS.items() if case])
def test_comparison_sees_a_fault_at_the_uplink(pipe: DummyVswitch, fault: str) -> None:
    pattern, replacement, case = UPLINK_FAULTS[fault]
    text = compile_flows(PORTS, UPLINK).text()
    broken = re.sub(pattern, replacement, text, flags=re.MULTILINE)
    assert broken != text
    assert case in differences(pipe, broken, UPLINK)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    ports=port_sets(),
    uplink=st.sampled_from((None, UPLINK)),
    sent=st.lists(frames(), min_size=15, max_size=25),
)
def test_switch_and_model_agree(
    pipe: DummyVswitch, ports: tuple[FlowPort, ...], uplink: int | None, sent: list[Frame]
) -> None:
    pipe.load(BRIDGE, compile_flows(ports, uplink).text())
    numbers = pipe.datapath_ports()
    for frame in sent:
        assert traced(pipe, BRIDGE, frame, numbers) == deliveries(ports, frame, uplink), frame


@pytest.mark.parametrize("uplink", [None, UPLINK])
def test_switch_gives_back_what_was_loaded(pipe: DummyVswitch, uplink: int | None) -> None:
    program = compile_flows(PORTS, uplink)
    pipe.load(BRIDGE, program.text())
    target = f"unix:{pipe.home}/{BRIDGE}.mgmt"
    assert (
        pipe.run("ovs-ofctl", "-O", "OpenFlow14", "diff-flows", target, "/dev/stdin", stdin=program.text())
        == ""
    )
