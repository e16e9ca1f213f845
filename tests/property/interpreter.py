"""Runs a flow program on a frame in plain Python, from its text alone: a second reader beside Open vSwitch.

It knows the words that our programs use and stops at any other, so that a new one cannot slip by unread.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass

from orchestrator.isolation.reachability import (
    ETH_ARP,
    ETH_IPV4,
    ETH_IPV6,
    ICMP,
    ICMPV6,
    UDP,
    Delivery,
    Frame,
)

#: Protocol words: ethertype and, for some, the protocol inside.
_KINDS = {
    "arp": (ETH_ARP, None),
    "ip": (ETH_IPV4, None),
    "ipv6": (ETH_IPV6, None),
    "icmp": (ETH_IPV4, ICMP),
    "icmp6": (ETH_IPV6, ICMPV6),
    "udp": (ETH_IPV4, UDP),
    "udp6": (ETH_IPV6, UDP),
}


@dataclass(frozen=True)
class Rule:
    """One flow, taken apart."""

    table: int
    priority: int
    match: tuple[str, ...]
    actions: tuple[str, ...]


def read(flows: Iterable[str]) -> list[Rule]:
    """Take the flows of a program apart, the strongest first."""
    rules = []
    for flow in flows:
        left, actions = flow.split(" actions=")
        _, table, priority, *match = left.split(",")
        numbers = [int(word.partition("=")[2]) for word in (table, priority)]
        rules.append(Rule(*numbers, tuple(match), tuple(actions.split(","))))
    return sorted(rules, key=lambda rule: -rule.priority)


def run(rules: list[Rule], frame: Frame) -> frozenset[Delivery]:
    """Where the frame goes; one that two flows of one priority claim is an error of the program."""
    registers = {5: 0, 6: 0, 7: 0}
    vlan, table, out = frame.vlan, 0, set()
    while True:
        hits = [rule for rule in rules if rule.table == table and _matches(rule, frame, vlan, registers)]
        assert hits, f"table {table} has no last word"
        best = [rule for rule in hits if rule.priority == hits[0].priority]
        assert len({rule.actions for rule in best}) == 1, f"two flows claim the frame: {best}"
        onward = None
        for action in best[0].actions:
            if action == "pop_vlan":
                vlan = None
            elif action == "push_vlan:0x8100":
                vlan = 0
            elif found := re.fullmatch(r"set_field:(\w+)->reg([567])", action):
                registers[int(found[2])] = int(found[1], 0)
            elif found := re.fullmatch(r"set_field:(\d+)->vlan_vid", action):
                vlan = int(found[1]) & 0xFFF
            elif found := re.fullmatch(r"output:(\d+)", action):
                # OpenFlow never sends a frame back to where it came from by number.
                if int(found[1]) != frame.in_port:
                    out.add(Delivery(int(found[1]), vlan))
            elif found := re.fullmatch(r"goto_table:(\d+)", action):
                onward = int(found[1])
            else:
                assert action == "drop", f"unknown action {action}"
        if onward is None:
            return frozenset(out)
        assert onward > table
        table = onward


def _matches(rule: Rule, frame: Frame, vlan: int | None, registers: dict[int, int]) -> bool:
    return all(_holds(word, frame, vlan, registers) for word in rule.match)


def _holds(word: str, frame: Frame, vlan: int | None, registers: dict[int, int]) -> bool:
    name, _, value = word.partition("=")
    if name in _KINDS:
        ethertype, protocol = _KINDS[name]
        inside = frame.ip.protocol if frame.ip is not None else None
        return frame.ethertype == ethertype and protocol in (None, inside)
    if word == "vlan_tci=0x0000/0x1fff":
        return vlan is None
    if name.startswith("reg"):
        return registers[int(name[3:])] == int(value, 0)
    if name in ("dl_src", "dl_dst"):
        return _masked(frame.source if name == "dl_src" else frame.target, value)
    whole = {"in_port": frame.in_port, "dl_vlan": vlan}
    if name in whole:
        return whole[name] == int(value)
    return _inner_holds(name, value, frame)


def _inner_holds(name: str, value: str, frame: Frame) -> bool:
    """Fields of ARP and IP; their kind stands before them in the match, so they are there."""
    if frame.arp is not None:
        claims = {
            "arp_op": str(frame.arp.operation),
            "arp_spa": frame.arp.sender_address,
            "arp_tpa": frame.arp.target_address,
            "arp_sha": frame.arp.sender_mac,
        }
        return claims[name] == value
    packet = frame.ip
    if packet is None:
        return False
    # In a piece of a packet the switch reads these as 0.
    seen = 0 if packet.fragment else 1
    numbers = {
        "nw_proto": packet.protocol,
        "tp_dst": packet.target_port * seen,
        "icmp_type": packet.icmp_type * seen,
        "icmp_code": packet.icmp_code * seen,
    }
    if name in numbers:
        return numbers[name] == int(value)
    if name == "nw_frag":
        return packet.fragment and value == "first"
    links = {"nd_sll": packet.nd_link, "nd_tll": packet.nd_link}
    if name in links:
        return links[name] == value
    addresses = {"nw_src": packet.source, "ipv6_src": packet.source, "nd_target": packet.nd_target}
    return ipaddress.ip_address(addresses[name]) == ipaddress.ip_address(value)


def _masked(mac: str, pattern: str) -> bool:
    value, _, mask = pattern.partition("/")
    bits = _bits(mask) if mask else 0xFFFFFFFFFFFF
    return _bits(mac) & bits == _bits(value) & bits


def _bits(mac: str) -> int:
    return int(mac.replace(":", ""), 16)
