"""Admission of ports: one network, one VLAN, one tenant; a MAC once, an address once in its network.

Tenants may use the same addresses as others do: networks are what keeps them apart, so a network or VLAN that
two tenants share is the worst that an assignment can say about ports. Pure; `admission` calls it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from orchestrator.model.assignment import Instance, Port, PortAddress
from orchestrator.model.errors import BulkheadError, InvalidInputError

#: Index in the assignment, and the instance.
Placed = Sequence[tuple[int, Instance]]

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass
class _Seen:
    """What the ports up to here have claimed."""

    ports: dict[str, str] = field(default_factory=dict)
    macs: dict[str, str] = field(default_factory=dict)
    #: Network to its tenant and VLAN; VLAN to its network.
    networks: dict[str, tuple[str, int]] = field(default_factory=dict)
    vlans: dict[int, str] = field(default_factory=dict)
    #: Network and IP version to the subnet; network and address to the port.
    subnets: dict[tuple[str, int], _Network] = field(default_factory=dict)
    addresses: dict[tuple[str, str], str] = field(default_factory=dict)


def network_problems(instances: Placed) -> Iterator[BulkheadError]:
    """Say what is wrong with ports, in order of place; the first port of a network says what it is."""
    seen = _Seen()
    for index, instance in instances:
        for at, port in enumerate(instance.ports):
            place = f"instances[{index}].ports[{at}]"
            yield from _identity_problems(seen, place, port)
            segment = list(_segment_problems(seen, place, port, instance.tenant))
            yield from segment
            # On a wrong segment its addresses are nobody's.
            if not segment:
                for inner, address in enumerate(port.addresses):
                    yield from _address_problems(seen, f"{place}.addresses[{inner}]", port, address)


def _identity_problems(seen: _Seen, place: str, port: Port) -> Iterator[BulkheadError]:
    if port.id in seen.ports:
        yield InvalidInputError(
            "port.named_twice", f"{port.id} stands at {seen.ports[port.id]} already", field=f"{place}.id"
        )
    if port.mac in seen.macs:
        yield InvalidInputError(
            "port.mac_taken", f"{port.mac} is the MAC of {seen.macs[port.mac]} already", field=f"{place}.mac"
        )
    seen.ports.setdefault(port.id, place)
    seen.macs.setdefault(port.mac, port.id)


def _segment_problems(seen: _Seen, place: str, port: Port, tenant: str) -> Iterator[BulkheadError]:
    """Refuse a network of two tenants, and anything but one VLAN for one network."""
    owner, vlan = seen.networks.get(port.network, (tenant, port.vlan))
    user = seen.vlans.get(port.vlan, port.network)
    if owner != tenant:
        yield InvalidInputError(
            "network.of_another_tenant",
            f"{port.network} belongs to {owner}, the port to {tenant}",
            field=f"{place}.network",
        )
    elif vlan != port.vlan:
        yield InvalidInputError(
            "network.two_vlans", f"{port.network} has VLAN {vlan} already", field=f"{place}.vlan"
        )
    elif user != port.network:
        yield InvalidInputError(
            "network.vlan_shared",
            f"VLAN {port.vlan} belongs to {user} already",
            field=f"{place}.vlan",
            hint=f"give {port.network} a VLAN of its own",
        )
    else:
        seen.networks[port.network] = (tenant, port.vlan)
        seen.vlans[port.vlan] = port.network


def _address_problems(seen: _Seen, place: str, port: Port, address: PortAddress) -> Iterator[BulkheadError]:
    interface = ipaddress.ip_interface(f"{address.address}/{address.prefix_length}")
    subnet: _Network = interface.network
    theirs = seen.subnets.setdefault((port.network, subnet.version), subnet)
    holder = seen.addresses.get((port.network, address.address))
    seen.addresses.setdefault((port.network, address.address), port.id)
    if theirs.prefixlen != subnet.prefixlen:
        yield InvalidInputError(
            "network.prefix_mismatch",
            f"{port.network} has prefix length {theirs.prefixlen} already",
            field=f"{place}.prefix_length",
        )
    elif theirs != subnet:
        yield InvalidInputError(
            "network.other_subnet",
            f"{address.address} is not in {theirs}, the subnet of {port.network}",
            field=f"{place}.address",
        )
    # A /31 or /32 has no broadcast address (RFC 3021), and IPv6 has none at all.
    if subnet.version == 4 and subnet.prefixlen < 31 and interface.ip == subnet.broadcast_address:
        yield InvalidInputError(
            "port.broadcast_address",
            f"{address.address} is the broadcast address of {subnet}",
            field=f"{place}.address",
        )
    if holder is not None:
        yield InvalidInputError(
            "network.address_taken",
            f"{address.address} is the address of {holder} already",
            field=f"{place}.address",
        )
