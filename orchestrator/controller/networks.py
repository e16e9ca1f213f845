"""Networks: a tenant's segments. Tenants may use the same addresses; VLANs are the fabric's."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from sqlalchemy import Column, bindparam, delete, exists, func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.sql.dml import ReturningUpdate

from orchestrator.controller import quotas
from orchestrator.controller.caller import Caller, unknown
from orchestrator.model.errors import CapacityError, ConflictError, InvalidInputError
from orchestrator.model.network import Network, NetworkPort
from orchestrator.store.ids import new_id
from orchestrator.store.nouns import NETWORKS, PORTS
from orchestrator.store.tables.networks import NetworkRow, PortRow
from orchestrator.store.unit_of_work import Reader, UnitOfWork, table_of
from orchestrator.store.violations import violated

_NETWORKS, _PORTS = table_of(NetworkRow), table_of(PortRow)

#: Offsets 1 to 9 of a prefix are kept for gateways and services to come.
FIRST_OFFSET = 10
_TRIES = 8
#: RFC 1918 §3.
_PRIVATE = tuple(map(ipaddress.IPv4Network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")))


@dataclass(frozen=True)
class VlanRange:
    """The fabric's VLANs that tenants' networks may have, both ends included."""

    first: int = 100
    last: int = 4000


def create(tx: UnitOfWork, caller: Caller, name: str, cidr: str, vlans: VlanRange) -> Network:
    """Make a network on the lowest free VLAN.

    Raises:
        InvalidInputError: `network.cidr`.
        ConflictError: `network.name_taken`.
        CapacityError: `network.no_vlan`.
        QuotaError: `quota.exceeded`.
    """
    prefix = _prefix(cidr)
    quotas.reserve(tx, caller.tenant_id, {"networks": 1})
    identity = new_id("net")
    vlan = _lowest_free(tx, vlans)
    try:
        tx.add(
            NetworkRow,
            id=identity,
            tenant_id=caller.tenant_id,
            name=name,
            cidr=str(prefix),
            vlan=vlan,
            next_offset=FIRST_OFFSET,
            generation=1,
            created_ms=tx.now_ms,
        )
    except IntegrityError as exc:
        if violated(exc) == "network_vlan":
            raise ConflictError("network.vlan_race", "another network took the VLAN; try again") from exc
        raise ConflictError("network.name_taken", f"there is a network {name} already", field="name") from exc
    tx.record("network.create", ("network", identity), tenant=caller.tenant_id, details={"name": name})
    found = NETWORKS.get(tx, caller.scope, identity)
    assert found is not None  # noqa: S101 - this transaction made it
    return found


def get(tx: Reader, caller: Caller, reference: str) -> Network:
    """Return one.

    Raises:
        NotFoundError: `network.unknown`.
    """
    found = NETWORKS.get(tx, caller.scope, reference)
    if found is None:
        raise unknown("network", reference)
    return found


def remove(tx: UnitOfWork, caller: Caller, reference: str) -> None:
    """Delete one that no port uses.

    Raises:
        NotFoundError: `network.unknown`.
        ConflictError: `network.in_use`.
    """
    network = get(tx, caller, reference)
    used = exists().where(_PORTS.c.network_id == network.id)
    gone = tx.execute(delete(_NETWORKS).where(_NETWORKS.c.id == network.id, ~used))
    if gone.rowcount == 0:
        raise ConflictError(
            "network.in_use", f"instances still use {network.name}", hint="delete those instances first"
        )
    quotas.give_back(tx, caller.tenant_id, {"networks": 1})
    tx.record("network.delete", ("network", network.id), tenant=caller.tenant_id, stage="outcome")


def ports(tx: Reader, caller: Caller, instances: Sequence[str]) -> dict[str, list[NetworkPort]]:
    """The ports of some instances, by instance, oldest first."""
    found: dict[str, list[NetworkPort]] = {each: [] for each in instances}
    # SQLite takes a bounded number of parameters.
    for at in range(0, len(instances), 500):
        wanted = _PORTS.c.instance_id.in_(instances[at : at + 500])
        for port in PORTS.where(tx, caller.scope, wanted):
            found[port.instance_id].append(port)
    return found


@dataclass(frozen=True)
class Address:
    """An address taken on a network, not yet written down."""

    network_id: str
    address: str
    prefix_length: int


def take_address(tx: UnitOfWork, caller: Caller, reference: str) -> Address:
    """Take the next address of a network: one statement, and the row lock makes it ours alone.

    Raises:
        NotFoundError: `network.unknown`.
        CapacityError: `network.full`.
    """
    network_id, prefix = "", ipaddress.IPv4Network("0.0.0.0/0")
    for _ in range(_TRIES):
        row = tx.execute(
            _taking(NETWORKS.key(reference)), {"reference": reference, "tenant": caller.tenant_id}
        ).first()
        if row is None:
            raise unknown("network", reference)
        network_id, prefix = row.id, ipaddress.IPv4Network(row.cidr)
        usable = prefix.num_addresses - 1 - FIRST_OFFSET
        turn, place = divmod(row.next_offset - 1 - FIRST_OFFSET, usable)
        address = str(prefix[FIRST_OFFSET + place])
        # In the first round no address was given out before; later ones may still be in use.
        if turn == 0 or not _in_use(tx, row.id, address):
            return Address(row.id, address, prefix.prefixlen)
    return _first_free(tx, network_id, prefix)


@cache
def _taking(key: Column[Any]) -> ReturningUpdate[Any]:
    """The statement that takes a place on the network whose `key` is given."""
    return (
        update(_NETWORKS)
        .where(key == bindparam("reference"), _NETWORKS.c.tenant_id == bindparam("tenant"))
        .values(next_offset=_NETWORKS.c.next_offset + 1)
        .returning(_NETWORKS.c.id, _NETWORKS.c.cidr, _NETWORKS.c.next_offset)
    )


def _first_free(tx: Reader, network_id: str, prefix: ipaddress.IPv4Network) -> Address:
    taken = {row.address for row in tx.all(select(_PORTS.c.address).where(_PORTS.c.network_id == network_id))}
    for offset in range(FIRST_OFFSET, prefix.num_addresses - 1):
        if (address := str(prefix[offset])) not in taken:
            return Address(network_id, address, prefix.prefixlen)
    raise CapacityError("network.full", f"every address of {prefix} is in use")


def _in_use(tx: Reader, network_id: str, address: str) -> bool:
    found = select(_PORTS.c.id).where(_PORTS.c.network_id == network_id, _PORTS.c.address == address)
    return tx.first(found) is not None


def _prefix(cidr: str) -> ipaddress.IPv4Network:
    try:
        prefix = ipaddress.IPv4Network(cidr)
    except ValueError as exc:
        raise InvalidInputError(
            "network.cidr", f"{cidr[:40]!r} is no IPv4 prefix such as 10.0.0.0/24", field="cidr"
        ) from exc
    if not 16 <= prefix.prefixlen <= 27:
        raise InvalidInputError("network.cidr", "a network has a prefix of /16 to /27", field="cidr")
    # Python calls loopback, link-local and test networks private too; guests have other uses for those.
    if not any(prefix.subnet_of(private) for private in _PRIVATE):
        raise InvalidInputError("network.cidr", f"{prefix} is not private address space", field="cidr")
    return prefix


def _lowest_free(tx: Reader, vlans: VlanRange) -> int:
    """The lowest VLAN in range that no network has: the first, or one above a taken one."""
    above = _NETWORKS.alias("above")
    if tx.scalar(select(func.count()).where(_NETWORKS.c.vlan == vlans.first)) == 0:
        return vlans.first
    gap = (
        select(func.min(_NETWORKS.c.vlan) + 1)
        .where(_NETWORKS.c.vlan >= vlans.first, _NETWORKS.c.vlan < vlans.last)
        .where(~exists().where(above.c.vlan == _NETWORKS.c.vlan + 1))
    )
    found = tx.scalar(gap)
    if found is None:
        raise CapacityError(
            "network.no_vlan",
            f"all VLANs from {vlans.first} to {vlans.last} are taken",
            hint="delete a network, or ask an operator for a wider range",
        )
    return int(found)
