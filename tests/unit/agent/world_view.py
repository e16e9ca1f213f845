"""One look at a simulated host as the invariants want it, and what they say."""

from __future__ import annotations

import dataclasses

from orchestrator.agent.sim import sim_host
from orchestrator.isolation.invariants import (
    HostState,
    PoolEntry,
    PortClaim,
    Violation,
    expected_flows,
    violations,
)
from orchestrator.model.assignment import Assignment
from tests.unit.agent.fleet import Fleet


def look(fleet: Fleet, assignment: Assignment | None = None) -> HostState:
    """Read everything through the drivers and the journal's file, as a new agent would."""
    host = sim_host(fleet.world)
    journal = fleet.agent()._journal.state
    volumes = host.volumes.observe()
    seeds = host.seeds.observe()
    protection = {
        ("volume", v.volume): "luks" if v.volume in fleet.world.volume_keys else "plain"
        for v in volumes
        if v.complete
    }
    state = HostState(
        facts=fleet.world.facts(),
        domains=host.hypervisor.domains(),
        switch=host.switch.observe(),
        secrets=host.hypervisor.secrets(),
        volumes=volumes,
        seeds=seeds,
        pool=tuple(
            PoolEntry(d.id, d.address, d.state, d.tenancy, d.instance, d.evidence)
            for d in journal.pool.values()
        ),
        claims=tuple(
            PortClaim(name, p.instance, p.vlan, p.mac, p.addresses) for name, p in journal.ports.items()
        ),
        protection={**protection, **{("seed", s.instance): "tmpfs" for s in seeds}},
        taken=frozenset(fleet.world.overrides),
        assignment=assignment,
    )
    return dataclasses.replace(state, flow_drift=host.switch.drift(expected_flows(state)))


def broken_invariants(
    fleet: Fleet, *, settled: bool, assignment: Assignment | None = None
) -> tuple[Violation, ...]:
    """What of DESIGN §5 does not hold on this host now."""
    return violations(look(fleet, assignment), settled=settled)
