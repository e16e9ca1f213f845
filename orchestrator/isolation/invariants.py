"""The invariants of DESIGN §5 over one host, checked by a program that shares nothing with what keeps them.

Decides from one look at everything (`HostState`) whether I1, I2, I3, I4, I5 and I10 hold, as far as a single
host can break them. Those about safety hold at every moment; those about leftovers and missing flows only
once things settle. Pure; tests call it after every fault, the doctor at any time. What one running instance's
kernel shows is `verdicts`'.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from orchestrator.isolation.flows import FlowPort, FlowProgram, compile_flows
from orchestrator.model.assignment import AbsentKind, Assignment
from orchestrator.model.host import HostFacts
from orchestrator.model.observed import (
    DomainState,
    ObservedDomain,
    ObservedPort,
    ObservedSecret,
    ObservedSeed,
    ObservedSwitch,
    ObservedVolume,
)

#: Ways in which a tenant's bytes may lie on a host.
PROTECTIONS = ("luks", "tmpfs")
_DEAD_VLAN = 4095
_COOKIE = re.compile(r"cookie=0x[0-9a-f]+,")


@dataclass(frozen=True)
class Violation:
    """One broken invariant."""

    #: `I1` to `I12`.
    invariant: str
    #: Id or address of what it is about.
    subject: str
    sentence: str


@dataclass(frozen=True)
class PoolEntry:
    """A device of the pool, as the journal has it."""

    id: str
    address: str
    state: str
    tenancy: int
    instance: str | None
    evidence: str


@dataclass(frozen=True)
class PortClaim:
    """What a port may speak as, as the journal has it."""

    port: str
    instance: str
    vlan: int
    mac: str
    addresses: tuple[str, ...]


@dataclass(frozen=True)
class HostState:
    """One look at a whole host."""

    facts: HostFacts
    domains: tuple[ObservedDomain, ...]
    switch: ObservedSwitch
    secrets: tuple[ObservedSecret, ...] = ()
    volumes: tuple[ObservedVolume, ...] = ()
    seeds: tuple[ObservedSeed, ...] = ()
    pool: tuple[PoolEntry, ...] = ()
    claims: tuple[PortClaim, ...] = ()
    #: How a tenant's bytes lie, by kind (`volume`, `seed`, `log`) and id: one of PROTECTIONS, or else.
    protection: Mapping[tuple[str, str], str] = field(default_factory=dict)
    #: Addresses that Bulkhead's VFIO driver owns now.
    taken: frozenset[str] = frozenset()
    #: What `Switch.drift(expected_flows(state))` said: `+` a flow that misses, `-` one too many.
    flow_drift: tuple[str, ...] = ()
    #: The assignment that was followed last, where it is known.
    assignment: Assignment | None = None


def violations(state: HostState, *, settled: bool) -> tuple[Violation, ...]:
    """Say what is broken, by invariant and subject; empty when nothing is.

    Args:
        settled: the agent finished without error. Before that, leftovers and flows that still miss are no
            violation: both are closed, and the next agent clears them.
    """
    rules: list[Callable[[HostState], Iterable[Violation]]] = [
        _i1_devices,
        _i2_cores,
        _i2_networks,
        _i4_encrypted,
        _i5_ports,
        _i5_extra_flows,
        _i10_sanitised,
    ]
    if settled:
        rules += [_i3_orphans, _i3_ports, _i3_absent, _i5_missing_flows]
    found = {violation for rule in rules for violation in rule(state)}
    return tuple(sorted(found, key=lambda v: (int(v.invariant[1:]), v.subject, v.sentence)))


def expected_flows(state: HostState) -> FlowProgram:
    """Compile what the switch must run: the claims of open ports that are tagged as claimed.

    Raises:
        InvalidInputError: two claims contradict each other (I2 says how).
    """
    claims = {claim.port: claim for claim in state.claims}
    speaking = [
        FlowPort(port.port, port.ofport, claim.vlan, claim.mac, claim.addresses)
        for port in state.switch.ports
        if (claim := claims.get(port.port)) is not None
        and port.ofport is not None
        and _as_claimed(port, claim)
    ]
    return compile_flows(speaking, uplink_ofport=state.switch.uplink_ofport)


def _as_claimed(port: ObservedPort, claim: PortClaim) -> bool:
    tagged = port.vlan_mode == "access" and port.vlan == claim.vlan and not port.trunks
    return port.open and tagged and port.instance == claim.instance


def _live(state: HostState) -> list[ObservedDomain]:
    return [domain for domain in state.domains if domain.state is not DomainState.SHUTOFF]


def _i1_devices(state: HostState) -> Iterator[Violation]:
    """No device in two live VMs, none with a VM that does not hold it, no IOMMU group between two VMs."""
    pool = {entry.address: entry for entry in state.pool}
    groups = {each.address: each.group for each in state.facts.functions}
    holders: dict[str, str] = {}
    group_holders: dict[int, str] = {}
    for domain in _live(state):
        for address in domain.devices:
            other = holders.setdefault(address, domain.instance)
            if other != domain.instance:
                yield Violation("I1", address, f"it is in {other} and {domain.instance}, which both live")
            entry = pool.get(address)
            if entry is None or entry.instance != domain.instance:
                holder = entry.instance if entry is not None else None
                yield Violation("I1", address, f"it is in {domain.instance}; {holder or 'nobody'} holds it")
            group = groups.get(address)
            if group is None:
                yield Violation("I1", address, f"it is in {domain.instance}, and no IOMMU confines it")
                continue
            neighbour = group_holders.setdefault(group, domain.instance)
            if neighbour != domain.instance and other == domain.instance:
                yield Violation("I1", address, f"its IOMMU group is shared with {neighbour}")


def _i2_cores(state: HostState) -> Iterator[Violation]:
    """No CPU in two live VMs; no core between two tenants, or between a tenant and the host."""
    cores = {cpu.cpu: cpu.siblings | {cpu.cpu} for cpu in state.facts.cpus}
    cpus: dict[int, str] = {}
    owners: dict[int, tuple[str, str]] = {}
    for domain in _live(state):
        for cpu in sorted(domain.cpus):
            subject = f"cpu {cpu}"
            first = cpus.setdefault(cpu, domain.instance)
            if first != domain.instance:
                yield Violation("I2", subject, f"it is a vCPU of {first} and of {domain.instance}")
            core = cores.get(cpu)
            if core is None:
                yield Violation("I2", subject, f"{domain.instance} has it; the host does not know its core")
                continue
            tenant, owner = owners.setdefault(min(core), (domain.tenant, domain.instance))
            if tenant != domain.tenant:
                yield Violation("I2", subject, f"its core is shared by {owner} and {domain.instance}")
            if core & state.facts.host_cpus:
                yield Violation("I2", subject, f"its core is shared by the host and {domain.instance}")


def _i2_networks(state: HostState) -> Iterator[Violation]:
    """A MAC once, a VLAN for one tenant, an address once in its VLAN; among the ports of live VMs."""
    tenants = {domain.instance: domain.tenant for domain in _live(state)}
    macs: dict[str, str] = {}
    vlans: dict[int, tuple[str, str]] = {}
    addresses: dict[tuple[int, str], str] = {}
    for claim in sorted(state.claims, key=lambda each: each.port):
        tenant = tenants.get(claim.instance)
        if tenant is None:
            continue
        other = macs.setdefault(claim.mac, claim.port)
        if other != claim.port:
            yield Violation("I2", claim.mac, f"it is the MAC of {other} and {claim.port}")
        owner, first = vlans.setdefault(claim.vlan, (tenant, claim.port))
        if owner != tenant:
            yield Violation(
                "I2", f"vlan {claim.vlan}", f"{first} of {owner} and {claim.port} of {tenant} use it"
            )
        for address in claim.addresses:
            holder = addresses.setdefault((claim.vlan, address), claim.port)
            if holder != claim.port:
                yield Violation("I2", address, f"{holder} and {claim.port} have it in VLAN {claim.vlan}")


def _i3_orphans(state: HostState) -> Iterator[Violation]:
    """Nothing without an owner: secrets never outlive a start, the rest never its VM."""
    defined = {domain.instance for domain in state.domains}
    for secret in state.secrets:
        yield Violation("I3", secret.volume, "its secret outlived the start")
    for volume in state.volumes:
        if not volume.complete:
            yield Violation("I3", volume.volume, "the volume was never finished")
    for seed in state.seeds:
        if seed.instance not in defined:
            yield Violation("I3", seed.instance, "its seed is here without it")
    for entry in state.pool:
        if entry.instance is not None and entry.instance not in defined:
            yield Violation("I3", entry.address, f"it is kept for {entry.instance}, which is gone")
    for address in sorted(state.taken - {entry.address for entry in state.pool}):
        yield Violation("I3", address, "it was taken from the host and is not in the pool")


def _i3_ports(state: HostState) -> Iterator[Violation]:
    """No port without a running VM, no claim without a VM, nothing on our bridge that is not ours."""
    defined = {domain.instance for domain in state.domains}
    live = {domain.instance for domain in _live(state)}
    for port in state.switch.ports:
        if port.instance not in live:
            yield Violation("I3", port.port, f"the port is here; {port.instance} does not run")
    for interface in state.switch.foreign:
        yield Violation("I3", interface, "the interface is on our bridge and carries no id of ours")
    for claim in state.claims:
        if claim.instance not in defined:
            yield Violation("I3", claim.port, f"the journal keeps it; {claim.instance} is gone")


def _i3_absent(state: HostState) -> Iterator[Violation]:
    """What was ordered away is away, up to the generation of the order."""
    if state.assignment is None:
        return
    domains = {domain.instance: domain.generation for domain in state.domains}
    volumes = {volume.volume: volume.generation for volume in state.volumes}
    pooled = {entry.id for entry in state.pool}
    for order in state.assignment.absent:
        if order.kind is AbsentKind.DEVICE:
            remains = order.id in pooled
        else:
            here = domains if order.kind is AbsentKind.INSTANCE else volumes
            remains = here.get(order.id, order.generation + 1) <= order.generation
        if remains:
            yield Violation("I3", order.id, "it was ordered away and is still here")


def _i4_encrypted(state: HostState) -> Iterator[Violation]:
    """Disks, seeds and kept logs are encrypted or on tmpfs; a disk is its own tenant's. Unread is broken."""
    kept = {("volume", volume.volume) for volume in state.volumes if volume.complete}
    kept |= {("seed", seed.instance) for seed in state.seeds}
    # What is still being written counts when somebody looked at it.
    for kind, subject in sorted(kept | set(state.protection)):
        found = state.protection.get((kind, subject))
        if found not in PROTECTIONS:
            how = "not known to be protected" if found is None else f"kept as {found}"
            yield Violation("I4", subject, f"its {kind} is {how}")
    owners = {volume.volume: volume.tenant for volume in state.volumes}
    for domain in state.domains:
        for name in domain.volumes:
            if owners.get(name, domain.tenant) != domain.tenant:
                yield Violation("I4", name, f"it is {owners[name]}'s and in a VM of {domain.tenant}")


def _i5_ports(state: HostState) -> Iterator[Violation]:
    """The bridge is closed by default, an open port is as claimed, a closed one on the dead VLAN."""
    if state.switch.exists and state.switch.fail_mode != "secure":
        yield Violation("I5", "bridge", f"its fail mode is {state.switch.fail_mode or 'not set'}, not secure")
    claims = {claim.port: claim for claim in state.claims}
    for port in state.switch.ports:
        claim = claims.get(port.port)
        if port.open and (claim is None or not _as_claimed(port, claim)):
            yield Violation("I5", port.port, "it is open otherwise than the journal says")
        dead = port.vlan_mode == "trunk" and port.trunks == (_DEAD_VLAN,) and port.vlan is None
        if not port.open and not dead:
            yield Violation("I5", port.port, "it is closed and not on the dead VLAN")


def _i5_extra_flows(state: HostState) -> Iterator[Violation]:
    """No flow that the policy does not have: a flow too many is an opening."""
    extra, _ = _drift(state)
    for flow in extra:
        yield Violation("I5", "flows", f"too many: {flow}")


def _i5_missing_flows(state: HostState) -> Iterator[Violation]:
    _, missing = _drift(state)
    for flow in missing:
        yield Violation("I5", "flows", f"missing: {flow}")


def _drift(state: HostState) -> tuple[list[str], list[str]]:
    """Return flows too many and flows that miss, without cookies: those only name their program."""
    found: dict[str, set[str]] = {"+": set(), "-": set()}
    for line in state.flow_drift:
        found["-" if line.startswith("-") else "+"].add(_COOKIE.sub("", line.lstrip("+-")))
    return sorted(found["-"] - found["+"]), sorted(found["+"] - found["-"])


def _i10_sanitised(state: HostState) -> Iterator[Violation]:
    """What a tenant can touch was cleaned for this very tenancy."""
    for entry in state.pool:
        if entry.state == "exposed" and not entry.evidence:
            yield Violation("I10", entry.address, f"tenancy {entry.tenancy} has no evidence of cleaning")
        if entry.state == "exposed" and entry.tenancy < 1:
            yield Violation("I10", entry.address, "it is exposed and its tenancy was not counted")
    exposed = {entry.address for entry in state.pool if entry.state == "exposed"}
    for domain in _live(state):
        for address in domain.devices:
            if address not in exposed:
                yield Violation("I10", address, f"it is in {domain.instance} and was never marked exposed")
