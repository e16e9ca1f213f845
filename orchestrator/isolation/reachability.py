"""Says which ports a frame may reach, in plain Python: what the switch's flows are held against.

Written from the rules, not from the flows, and shares no code with `flows`, so that a mistake in either shows
as a difference. Never compiles anything. Tests compare it with Open vSwitch's own trace of the compiled
program.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

from orchestrator.isolation.flows import FlowPort

ETH_IPV4, ETH_ARP, ETH_IPV6 = 0x0800, 0x0806, 0x86DD
UDP, ICMP, ICMPV6 = 17, 1, 58
BROADCAST = "ff:ff:ff:ff:ff:ff"
NO_MAC = "00:00:00:00:00:00"
_SOLICITATION, _ADVERTISEMENT = 135, 136
#: How the kernel's and the userspace datapath show a chain of IPv6 headers that breaks off.
_NOTHING_FOLLOWS = (0, 59)


@dataclass(frozen=True)
class Arp:
    """ARP's fields for IPv4 over Ethernet."""

    operation: int
    sender_address: str
    target_address: str
    sender_mac: str
    target_mac: str = NO_MAC


@dataclass(frozen=True)
class Ip:
    """The fields of an IPv4 or IPv6 packet that the rules look at; ports are UDP's or TCP's."""

    source: str
    target: str
    protocol: int
    target_port: int = 0
    icmp_type: int = 0
    icmp_code: int = 0
    #: Neighbour discovery: the address in question and the link-layer option, `NO_MAC` where there is none.
    nd_target: str = "::"
    nd_link: str = NO_MAC
    #: A piece of a packet. The switch sees neither ports nor types in it, not even in the first one.
    fragment: bool = False


@dataclass(frozen=True)
class Frame:
    """One frame as it comes in: `ethertype` is what follows the tag, `vlan` None for an untagged frame."""

    in_port: int
    source: str
    target: str
    ethertype: int
    vlan: int | None = None
    arp: Arp | None = None
    ip: Ip | None = None


@dataclass(frozen=True)
class Delivery:
    """A port that the frame goes out of, with the tag that it then carries."""

    ofport: int
    vlan: int | None = None


def deliveries(
    ports: Iterable[FlowPort], frame: Frame, uplink_ofport: int | None = None
) -> frozenset[Delivery]:
    """All the places that one frame reaches, when exactly these ports may speak."""
    known = tuple(ports)
    if frame.ethertype not in (ETH_IPV4, ETH_ARP, ETH_IPV6):
        return frozenset()
    if _is_servers_talk(frame) or _hides_its_type(frame):
        return frozenset()
    if uplink_ofport is not None and frame.in_port == uplink_ofport:
        inside = [port for port in known if port.vlan == frame.vlan]
        if any(port.mac == frame.source for port in inside):
            return frozenset()
        return frozenset(Delivery(port.ofport) for port in inside if _is_for(port, frame))
    for sender in known:
        if sender.ofport == frame.in_port:
            if frame.vlan is not None or not _is_honest(sender, frame):
                return frozenset()
            return _from_tenant(known, sender, frame, uplink_ofport)
    return frozenset()


def addresses_of(port: FlowPort) -> frozenset[str]:
    """Every address a port may use: its own, and with IPv6 the link-local one that follows from its MAC."""
    given = {ipaddress.ip_address(text) for text in port.addresses}
    if any(address.version == 6 for address in given):
        octets = [int(part, 16) for part in port.mac.split(":")]
        octets[0] ^= 0x02
        words = (
            octets[0] << 8 | octets[1],
            octets[2] << 8 | 0xFF,
            0xFE00 | octets[3],
            octets[4] << 8 | octets[5],
        )
        given.add(ipaddress.ip_address("fe80::" + ":".join(f"{word:x}" for word in words)))
    return frozenset(str(address) for address in given)


def _from_tenant(
    known: tuple[FlowPort, ...], sender: FlowPort, frame: Frame, uplink: int | None
) -> frozenset[Delivery]:
    network = [port for port in known if port.vlan == sender.vlan]
    receivers = [port for port in network if _is_for(port, frame)]
    if receivers:
        return frozenset(Delivery(port.ofport) for port in receivers if port is not sender)
    unicast = not int(frame.target[:2], 16) & 1
    if uplink is not None and (unicast or _asked_address(frame) is not None):
        return frozenset({Delivery(uplink, sender.vlan)})
    return frozenset()


def _is_for(port: FlowPort, frame: Frame) -> bool:
    asked = _asked_address(frame)
    if asked is None:
        return port.mac == frame.target
    if asked not in addresses_of(port):
        return False
    return frame.ethertype == ETH_ARP or frame.target[-8:] == _group_of(asked)


def _asked_address(frame: Frame) -> str | None:
    """The address that a broadcast question looks for; None when the frame is no such question."""
    if frame.ethertype == ETH_ARP and frame.arp is not None:
        is_question = frame.target == BROADCAST and frame.arp.operation == 1
        return frame.arp.target_address if is_question else None
    if frame.ethertype == ETH_IPV6 and frame.ip is not None and frame.ip.protocol == ICMPV6:
        solicits = frame.ip.icmp_type == _SOLICITATION and frame.ip.icmp_code == 0
        return frame.ip.nd_target if solicits and frame.target.startswith("33:33:ff:") else None
    return None


def _group_of(address: str) -> str:
    """The last three octets of the group MAC that an IPv6 address listens on."""
    digits = ipaddress.IPv6Address(address).exploded.replace(":", "")[-6:]
    return ":".join((digits[:2], digits[2:4], digits[4:]))


def _is_honest(sender: FlowPort, frame: Frame) -> bool:
    """Whether the frame claims nothing that is not the sender's own."""
    own = addresses_of(sender)
    if frame.source != sender.mac:
        return False
    if frame.ethertype == ETH_ARP:
        claim = frame.arp
        return (
            claim is not None
            and claim.operation in (1, 2)
            and claim.sender_mac == sender.mac
            and claim.sender_address in own
        )
    packet = frame.ip
    if packet is None or packet.source not in own:
        return False
    if frame.ethertype == ETH_IPV6 and packet.protocol == ICMPV6:
        if packet.icmp_type == _SOLICITATION:
            return packet.icmp_code == 0 and packet.nd_link == sender.mac
        if packet.icmp_type == _ADVERTISEMENT:
            speaks_of_itself = packet.nd_target == packet.source and packet.nd_link in (sender.mac, NO_MAC)
            return packet.icmp_code == 0 and speaks_of_itself
    return True


def _is_servers_talk(frame: Frame) -> bool:
    """What only DHCP servers and routers say, as far as it can be seen."""
    packet = frame.ip
    if packet is None or packet.fragment:
        return False
    if packet.protocol == UDP:
        return packet.target_port == (68 if frame.ethertype == ETH_IPV4 else 546)
    if frame.ethertype == ETH_IPV4:
        return packet.protocol == ICMP and packet.icmp_type in (5, 9)
    return packet.protocol == ICMPV6 and packet.icmp_type in (134, 137)


def _hides_its_type(frame: Frame) -> bool:
    """ICMP in pieces, or IPv6 headers that stop before they say what they carry."""
    packet = frame.ip
    if packet is None:
        return False
    if frame.ethertype == ETH_IPV4:
        return packet.protocol == ICMP and packet.fragment
    return packet.protocol in _NOTHING_FOLLOWS or (packet.protocol == ICMPV6 and packet.fragment)
