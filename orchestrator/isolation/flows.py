"""Compiles the ports that may speak into the switch's whole OpenFlow program.

Decides, per frame: which port may send it (table 0 admit, table 10 anti-spoof), which single port of the
same network gets it (table 30 locate, table 50 output). What no flow names is dropped: every table ends in
a drop, nothing is ever flooded, learned or handed to NORMAL or LOCAL. Register 5 holds the sender's port
number, register 6 its network (the VLAN), register 7 the receiver. Pure; the flow sync calls it;
`reachability` says the same again, on its own.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from orchestrator.model.errors import InvalidInputError

ADMIT, ANTI_SPOOF, LOCATE, OUTPUT = 0, 10, 30, 50
TABLES = (ADMIT, ANTI_SPOOF, LOCATE, OUTPUT)

#: The highest number of an ordinary port (from OpenFlow's OFPP_MAX on: NORMAL, FLOOD, LOCAL and the like).
MAX_OFPORT = 0xFEFF
#: 802.1Q's tag present bit, as OpenFlow wants it set in vlan_vid.
_VLAN_PRESENT = 0x1000
_UNTAGGED = "vlan_tci=0x0000/0x1fff"
_BROADCAST = "ff:ff:ff:ff:ff:ff"
_MAC = re.compile(r"[0-9a-f]{2}(?::[0-9a-f]{2}){5}")

#: What only routers and DHCP servers send; no tenant is one, and no host sends it to us. Ports: RFC 2131 and
#: 8415; ICMP types: RFC 792 (redirect), RFC 1256 (router advertisement), RFC 4861 (134 and 137 likewise).
_SERVER_ONLY = (
    "udp,tp_dst=68",
    "udp6,tp_dst=546",
    "icmp,icmp_type=5",
    "icmp,icmp_type=9",
    "icmp6,icmp_type=134",
    "icmp6,icmp_type=137",
)
#: What hides its type. In a fragment, the first one too, Open vSwitch sees ports and types as 0, so that an
#: advertisement in pieces would pass the guards above: no ICMP in pieces (RFC 6980 asks it of neighbour
#: discovery; large pings are the price). Later pieces of IPv6 show as protocol 44 whatever they hold, and are
#: nothing without a first. IPv6 headers that break off before the last (RFC 7112) show as protocol 0, and
#: as 59 where the kernel reads them. UDP may come in pieces, ports unseen: tenants need that, and a DHCP
#: answer finds nobody, since no client's question (from 0.0.0.0 or to a group) ever leaves.
#: (`nw_frag=yes` would say it shorter, but ovs-ofctl 3.1 then reports a difference for ever.)
_UNREADABLE = (
    "icmp,nw_frag=first",
    "icmp,nw_frag=later",
    "icmp6,nw_frag=first",
    "ipv6,nw_proto=0",
    "ipv6,nw_proto=59",
)


@dataclass(frozen=True)
class FlowPort:
    """A port that may speak: as this MAC and these addresses, in this VLAN, through this OpenFlow port."""

    port: str
    ofport: int
    vlan: int
    mac: str
    #: IPv4 and IPv6 addresses without prefix.
    addresses: tuple[str, ...]


@dataclass(frozen=True)
class FlowProgram:
    """All flows of one bridge in canonical order, in the words of `ovs-ofctl -O OpenFlow14`."""

    flows: tuple[str, ...]

    def text(self) -> str:
        """One flow a line, as `ovs-ofctl replace-flows BRIDGE -` reads it."""
        return "".join(f"{flow}\n" for flow in self.flows)

    def digest(self) -> str:
        """SHA-256 of the text: equal programs, equal digests, on every host and in every run."""
        return "sha256:" + hashlib.sha256(self.text().encode()).hexdigest()


@dataclass(frozen=True)
class _Flow:
    table: int
    priority: int
    match: str
    actions: str

    def text(self, cookie: str) -> str:
        match = f",{self.match}" if self.match else ""
        return f"cookie={cookie},table={self.table},priority={self.priority}{match} actions={self.actions}"


@dataclass(frozen=True)
class _Speaker:
    """A checked port with its addresses in canonical form."""

    ofport: int
    vlan: int
    mac: str
    ipv4: tuple[str, ...]
    ipv6: tuple[str, ...]


def compile_flows(ports: Iterable[FlowPort], uplink_ofport: int | None = None) -> FlowProgram:
    """Compile the program of a bridge on which exactly these ports may speak.

    A port with an IPv6 address may also speak as the link-local address of its MAC (EUI-64, RFC 4291), which
    neighbour discovery needs. Duplicate address detection goes nowhere: addresses are unique by construction.

    Args:
        ports: in any order; ports of different VLANs may have the same MACs and addresses.
        uplink_ofport: OpenFlow number of the port to the fabric, where frames carry their VLAN's tag.

    Raises:
        InvalidInputError: `network.duplicate_port`, `network.duplicate_ofport`, `network.duplicate_mac` and
            `network.duplicate_address` (these two within one VLAN), `network.bad_ofport`, `network.bad_vlan`,
            `network.bad_mac`, `network.bad_address`. Nothing is compiled then.
    """
    speakers = _checked(tuple(ports), uplink_ofport)
    flows = [_Flow(table, 0, "", "drop") for table in TABLES]
    flows += [_Flow(ANTI_SPOOF, 300, match, "drop") for match in _SERVER_ONLY + _UNREADABLE]
    for speaker in speakers:
        flows += _admit(speaker)
        flows += _speak_as(speaker)
        flows += _locate(speaker)
        flows += _deliver(speaker)
    if uplink_ofport is not None:
        flows += _uplink(speakers, uplink_ofport)
    ordered = sorted(flows, key=lambda flow: (flow.table, -flow.priority, flow.match, flow.actions))
    policy = "".join(flow.text("") + "\n" for flow in ordered)
    # The leading b keeps clear of 0 (no cookie) and of all ones (reserved), and is easy to spot in a dump.
    cookie = "0xb" + hashlib.sha256(policy.encode()).hexdigest()[:15]
    return FlowProgram(tuple(flow.text(cookie) for flow in ordered))


def solicited_node_mac(address: str) -> str:
    """The multicast MAC on which an IPv6 address hears neighbour solicitations (RFC 4291, RFC 2464)."""
    low = ipaddress.IPv6Address(address).packed[-3:]
    return "33:33:ff:" + ":".join(f"{byte:02x}" for byte in low)


def link_local(mac: str) -> str:
    """The link-local address made from a MAC (modified EUI-64, RFC 4291 appendix A)."""
    octets = bytes.fromhex(mac.replace(":", ""))
    host = bytes((octets[0] ^ 2, *octets[1:3], 0xFF, 0xFE, *octets[3:]))
    return str(ipaddress.IPv6Address(b"\xfe\x80" + bytes(6) + host))


def _admit(speaker: _Speaker) -> Iterator[_Flow]:
    """Untagged frames only: a tenant's tag would be a leap into another network."""
    yield _Flow(
        ADMIT,
        100,
        f"in_port={speaker.ofport},{_UNTAGGED}",
        f"{_load(5, speaker.ofport)},{_load(6, speaker.vlan)},goto_table:{ANTI_SPOOF}",
    )


def _speak_as(speaker: _Speaker) -> Iterator[_Flow]:
    """Exact pairs of MAC and address; all else, other ethertypes too, falls to the table's drop."""
    who = f"reg5={speaker.ofport:#x},dl_src={speaker.mac}"
    onward = f"goto_table:{LOCATE}"
    for address in speaker.ipv4:
        for operation in (1, 2):
            claim = f"arp,{who},arp_op={operation},arp_spa={address},arp_sha={speaker.mac}"
            yield _Flow(ANTI_SPOOF, 100, claim, onward)
        yield _Flow(ANTI_SPOOF, 100, f"ip,{who},nw_src={address}", onward)
    if not speaker.ipv6:
        return
    for kind in (135, 136):
        yield _Flow(ANTI_SPOOF, 150, f"icmp6,reg5={speaker.ofport:#x},icmp_type={kind}", "drop")
    for address in speaker.ipv6:
        yield _Flow(ANTI_SPOOF, 100, f"ipv6,{who},ipv6_src={address}", onward)
        asks = f"icmp6,{who},ipv6_src={address},icmp_type=135,icmp_code=0,nd_sll={speaker.mac}"
        yield _Flow(ANTI_SPOOF, 200, asks, onward)
        # Answers to unicast questions may leave the option out (RFC 4861 §7.2.4): it reads zero then.
        for link in (speaker.mac, "00:00:00:00:00:00"):
            answers = f"icmp6,{who},ipv6_src={address},icmp_type=136,icmp_code=0,nd_target={address}"
            yield _Flow(ANTI_SPOOF, 200, f"{answers},nd_tll={link}", onward)


def _locate(speaker: _Speaker) -> Iterator[_Flow]:
    """The one receiver in the sender's network; a question goes only to who owns the address asked for."""
    here = f"{_load(7, speaker.ofport)},goto_table:{OUTPUT}"
    net = f"reg6={speaker.vlan:#x}"
    yield _Flow(LOCATE, 100, f"{net},dl_dst={speaker.mac}", here)
    for address in speaker.ipv4:
        yield _Flow(LOCATE, 100, f"arp,{net},dl_dst={_BROADCAST},arp_op=1,arp_tpa={address}", here)
    for address in speaker.ipv6:
        group = solicited_node_mac(address)
        yield _Flow(
            LOCATE, 100, f"icmp6,{net},dl_dst={group},icmp_type=135,icmp_code=0,nd_target={address}", here
        )


def _deliver(speaker: _Speaker) -> Iterator[_Flow]:
    """The network stands in the match once more: a wrong receiver alone cannot cross networks."""
    number = f"{speaker.ofport:#x}"
    yield _Flow(OUTPUT, 200, f"reg5={number},reg7={number}", "drop")
    yield _Flow(OUTPUT, 100, f"reg6={speaker.vlan:#x},reg7={number}", f"output:{speaker.ofport}")


def _uplink(speakers: tuple[_Speaker, ...], uplink: int) -> Iterator[_Flow]:
    """What a network cannot find here goes out under its tag; what comes in is delivered here or dropped."""
    number = f"{uplink:#x}"
    outward = f"{_load(7, uplink)},goto_table:{OUTPUT}"
    for vlan in sorted({speaker.vlan for speaker in speakers}):
        net = f"reg6={vlan:#x}"
        yield _Flow(
            ADMIT,
            100,
            f"in_port={uplink},dl_vlan={vlan}",
            f"pop_vlan,{_load(5, uplink)},{_load(6, vlan)},goto_table:{ANTI_SPOOF}",
        )
        unicast = "00:00:00:00:00:00/01:00:00:00:00:00"
        yield _Flow(LOCATE, 50, f"{net},dl_dst={unicast}", outward)
        yield _Flow(LOCATE, 50, f"arp,{net},dl_dst={_BROADCAST},arp_op=1", outward)
        groups = "33:33:ff:00:00:00/ff:ff:ff:00:00:00"
        yield _Flow(LOCATE, 50, f"icmp6,{net},dl_dst={groups},icmp_type=135,icmp_code=0", outward)
        tag = f"push_vlan:0x8100,set_field:{vlan | _VLAN_PRESENT}->vlan_vid"
        yield _Flow(OUTPUT, 100, f"{net},reg7={number}", f"{tag},output:{uplink}")
    for speaker in speakers:
        # Our own MACs never come from outside: a loop in the fabric, or somebody there who takes our place.
        stolen = f"reg5={number},reg6={speaker.vlan:#x},dl_src={speaker.mac}"
        yield _Flow(ANTI_SPOOF, 260, stolen, "drop")
    for kind in ("arp", "ip", "ipv6"):
        # Untagged here means that no second tag was under the first.
        yield _Flow(ANTI_SPOOF, 250, f"{kind},reg5={number},{_UNTAGGED}", f"goto_table:{LOCATE}")
    yield _Flow(LOCATE, 60, f"reg5={number}", "drop")
    yield _Flow(OUTPUT, 200, f"reg5={number},reg7={number}", "drop")


def _load(register: int, value: int) -> str:
    return f"set_field:{value:#x}->reg{register}"


def _checked(ports: tuple[FlowPort, ...], uplink: int | None) -> tuple[_Speaker, ...]:
    """Refuse what is malformed or ambiguous; sort, so that the order given does not matter."""
    taken: dict[tuple[str, object], str] = {}
    if uplink is not None:
        _check_ofport(uplink, "the uplink")
        taken["ofport", uplink] = "the uplink"

    def claim(kind: str, key: object, owner: str) -> None:
        other = taken.setdefault((kind, key), owner)
        if other is not owner:
            raise InvalidInputError(f"network.duplicate_{kind}", f"{owner} and {other} both have {key}")

    speakers = []
    for position, port in enumerate(ports):
        owner = f"port {port.port} (number {position})"
        _check_ofport(port.ofport, owner)
        if not 1 <= port.vlan <= 4094:
            raise InvalidInputError("network.bad_vlan", f"{owner} has VLAN {port.vlan}; 1 to 4094 exist")
        if not _MAC.fullmatch(port.mac) or int(port.mac[:2], 16) & 1:
            raise InvalidInputError("network.bad_mac", f"{owner} has {port.mac!r}, not a unicast MAC")
        ipv4, ipv6 = _families(port, owner)
        claim("port", port.port, owner)
        claim("ofport", port.ofport, owner)
        claim("mac", (port.vlan, port.mac), owner)
        for address in ipv4 + ipv6:
            claim("address", (port.vlan, address), owner)
        speakers.append(_Speaker(port.ofport, port.vlan, port.mac, ipv4, ipv6))
    return tuple(sorted(speakers, key=lambda speaker: speaker.ofport))


def _check_ofport(ofport: int, owner: str) -> None:
    if not 1 <= ofport <= MAX_OFPORT:
        raise InvalidInputError(
            "network.bad_ofport", f"{owner} has OpenFlow port {ofport}; 1 to {MAX_OFPORT} are ordinary ones"
        )


def _families(port: FlowPort, owner: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Addresses by family, canonical, sorted, with the link-local one where there is IPv6 at all."""
    found: dict[int, set[str]] = {4: set(), 6: set()}
    for text in port.addresses:
        try:
            address = ipaddress.ip_address(text)
        except ValueError as exc:
            raise InvalidInputError("network.bad_address", f"{owner} has {text!r}, not an address") from exc
        if not _can_be_a_ports(address):
            raise InvalidInputError("network.bad_address", f"{owner} has {text!r}: no port can have that")
        found[address.version].add(str(address))
    if found[6]:
        found[6].add(link_local(port.mac))
    return tuple(sorted(found[4])), tuple(sorted(found[6]))


def _can_be_a_ports(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address):
        # IPv4 in IPv6's clothes never stands on a wire, and Python's versions spell it differently.
        odd = address.scope_id is not None or address.ipv4_mapped is not None
    else:
        odd = address == ipaddress.IPv4Address("255.255.255.255")
    return not (odd or address.is_multicast or address.is_unspecified or address.is_loopback)
