"""Frames for the pipeline's tests: their words in ofproto/trace, and how Hypothesis draws them."""

from __future__ import annotations

import dataclasses
import re

from hypothesis import strategies as st

from orchestrator.isolation.flows import FlowPort
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
)
from tests.unit.network.conftest import DummyVswitch

UPLINK = 9
MACS = tuple(f"02:00:00:00:00:{number:02x}" for number in range(1, 6))
IPV4 = tuple(f"10.0.0.{number}" for number in range(1, 6))
IPV6 = tuple(f"fd00::{number}" for number in range(1, 6))
LINK_LOCAL = tuple(f"fe80::ff:fe00:{number}" for number in range(1, 6))
VLANS = (101, 102, 4094)


def trace_words(frame: Frame) -> str:
    """The frame in ovs-fields' syntax."""
    words = [f"in_port={frame.in_port}", f"dl_src={frame.source}", f"dl_dst={frame.target}"]
    if frame.vlan is not None:
        words.append(f"vlan_tci={0x1000 | frame.vlan:#x}")
    words.append(f"dl_type={frame.ethertype:#x}")
    if frame.arp is not None:
        words += [
            f"arp_op={frame.arp.operation}",
            f"arp_spa={frame.arp.sender_address}",
            f"arp_tpa={frame.arp.target_address}",
            f"arp_sha={frame.arp.sender_mac}",
            f"arp_tha={frame.arp.target_mac}",
        ]
    if frame.ip is not None:
        words += _ip_words(frame.ip, is_v6=frame.ethertype == ETH_IPV6)
    return ",".join(words)


def _ip_words(packet: Ip, *, is_v6: bool) -> list[str]:
    kind = "ipv6" if is_v6 else "nw"
    words = [
        f"{kind}_src={packet.source}",
        f"{kind}_dst={packet.target}",
        f"nw_proto={packet.protocol}",
        "nw_ttl=255",
    ]
    if packet.fragment:
        words.append("nw_frag=first")
    if packet.protocol in (6, UDP):
        name = "udp" if packet.protocol == UDP else "tcp"
        words += [f"{name}_src={packet.target_port ^ 1}", f"{name}_dst={packet.target_port}"]
    elif packet.protocol == (ICMPV6 if is_v6 else ICMP):
        name = "icmpv6" if is_v6 else "icmp"
        words += [f"{name}_type={packet.icmp_type}", f"{name}_code={packet.icmp_code}"]
        if is_v6 and packet.icmp_type in (135, 136) and packet.icmp_code == 0:
            link = "nd_sll" if packet.icmp_type == 135 else "nd_tll"
            words += [f"nd_target={packet.nd_target}", f"{link}={packet.nd_link}"]
    return words


def traced(vswitch: DummyVswitch, bridge: str, frame: Frame, numbers: dict[int, int]) -> frozenset[Delivery]:
    """Where Open vSwitch itself sends the frame."""
    actions = vswitch.trace(bridge, trace_words(frame))
    if actions == "drop":
        return frozenset()
    found: set[Delivery] = set()
    vlan = frame.vlan
    for action in re.findall(r"[a-z_]+\([^)]*\)|[^,]+", actions):
        if action == "pop_vlan":
            vlan = None
        elif push := re.fullmatch(r"push_vlan\(vid=(\d+),pcp=0\)", action):
            vlan = int(push[1])
        else:
            found.add(Delivery(numbers[int(action)], vlan))
    return frozenset(found)


@st.composite
def port_sets(draw: st.DrawFn, max_size: int = 6) -> tuple[FlowPort, ...]:
    """Ports that differ where they must: few MACs and addresses, so that networks overlap."""
    chosen = draw(
        st.lists(
            st.tuples(st.integers(0, 4), st.sampled_from(VLANS), st.sampled_from(("4", "6", "46"))),
            max_size=max_size,
            unique_by=lambda pair: pair[:2],
        )
    )
    numbers = draw(st.permutations(range(1, 9)))
    return tuple(
        FlowPort(
            f"prt_{number}",
            number,
            vlan,
            MACS[who],
            ((IPV4[who],) if "4" in families else ()) + ((IPV6[who],) if "6" in families else ()),
        )
        for number, (who, vlan, families) in zip(numbers, chosen, strict=False)
    )


def frames() -> st.SearchStrategy[Frame]:
    """Frames near the border: mostly right, with one or two things wrong."""
    whole = st.builds(
        _frame,
        who=st.integers(0, 4),
        whom=st.integers(0, 4),
        in_port=st.sampled_from((1, 2, 3, 4, 5, 6, 7, 8, UPLINK, UPLINK)),
        vlan=st.sampled_from((None, None, None, 0, *VLANS)),
        kind=st.sampled_from(("arp", "arp", "v4", "v6", "ns", "ns", "na", "other")),
        wrong=st.sets(st.sampled_from(("source", "claim", "target", "number", "cast")), max_size=1),
        liar=st.integers(0, 4),
        number=st.integers(0, 15),
    )
    return st.builds(_cut, whole, st.sampled_from((False, False, False, False, True)))


def _cut(frame: Frame, in_pieces: bool) -> Frame:
    """Its first piece, where it is something that comes in pieces."""
    if frame.ip is None:
        return frame
    return dataclasses.replace(frame, ip=dataclasses.replace(frame.ip, fragment=in_pieces))


def _frame(
    who: int, whom: int, in_port: int, vlan: int | None, kind: str, wrong: set[str], liar: int, number: int
) -> Frame:
    source = MACS[liar] if "source" in wrong else MACS[who]
    claim = liar if "claim" in wrong else who
    target = MACS[liar] if "target" in wrong else MACS[whom]
    if "cast" in wrong:
        target = (BROADCAST, "01:80:c2:00:00:0e", "33:33:00:00:00:01", "33:33:ff:00:00:02")[number % 4]
    if kind == "other":
        return Frame(in_port, source, target, (0x88CC, 0x8035, 0x88E5, 0x0842)[number % 4], vlan)
    if kind == "arp":
        operation = (number % 4) if "number" in wrong else 1 + number % 2
        link = MACS[liar] if liar % 2 and "claim" in wrong else MACS[who]
        asks = operation == 1 and "cast" not in wrong
        arp = Arp(operation, IPV4[claim], IPV4[whom], link)
        return Frame(in_port, source, BROADCAST if asks else target, ETH_ARP, vlan, arp=arp)
    if kind == "v4":
        port = (53, 67, 68, 546)[number % 4]
        icmp = (8, 5, 9, 0)[number // 4]
        packet = Ip(IPV4[claim], IPV4[whom], (UDP, ICMP, 6)[number % 3], port, icmp)
        return Frame(in_port, source, target, ETH_IPV4, vlan, ip=packet)
    own = LINK_LOCAL if number % 2 else IPV6
    if kind == "v6":
        port = (53, 68, 546, 547)[number % 4]
        icmp = (128, 134, 137, 133)[number // 4]
        packet = Ip(own[claim], IPV6[whom], (UDP, ICMPV6, 6)[number % 3], port, icmp)
        return Frame(in_port, source, target, ETH_IPV6, vlan, ip=packet)
    code = 1 if "number" in wrong else 0
    if kind == "ns":
        link = NO_MAC if number == 7 else MACS[claim]
        packet = Ip("::" if number == 5 else own[who], "ff02::1", ICMPV6, 0, 135, code, IPV6[whom], link)
        group = "33:33:ff:00:00:" + MACS[whom][-2:]
        return Frame(in_port, source, target if "cast" in wrong else group, ETH_IPV6, vlan, ip=packet)
    link = NO_MAC if number > 7 else MACS[who]
    packet = Ip(own[who], IPV6[whom], ICMPV6, 0, 136, code, own[claim], link)
    return Frame(in_port, source, target, ETH_IPV6, vlan, ip=packet)
