"""A simulated lab host with tenants on it, and a fresh agent whenever one is wanted."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from images.labhost.tenants import ACME, GLOBEX, Tenancy, assignment_of, instance_for
from orchestrator.agent.host import AgentSettings
from orchestrator.agent.journal import Journal
from orchestrator.agent.reconcile import Agent
from orchestrator.agent.sim import SimWorld, everyday_world, sim_host
from orchestrator.model.assignment import Assignment, ImageRef, Instance
from orchestrator.model.launch import LaunchSpec
from orchestrator.model.report import HostReport

IMAGE = ImageRef(digest="sha256:" + "1" * 64, size_bytes=1 << 20)

ACME2 = Tenancy("acme", "help", 1, 101, 11)


class Fleet:
    """One simulated host, its journal's place, and its clock; one instance after another unless told."""

    def __init__(self, tmp: Path, *, at_once: int = 1) -> None:
        self.world: SimWorld = everyday_world()
        self.world.images.add(IMAGE.digest)
        self.settings = AgentSettings(state_dir=tmp / "state", run_dir=tmp / "run", at_once=at_once)
        self.now_s = 1_000_000.0

    def agent(self) -> Agent:
        """A new agent: nothing survives from the last one but the host and the journal."""
        return Agent(
            sim_host(self.world),
            Journal(self.settings.journal_path),
            self.settings,
            clock=lambda: self.now_s,
        )

    def apply(self, assignment: Assignment) -> HostReport:
        """Apply with a new agent."""
        return self.agent().apply(assignment)

    def probe(self) -> dict[str, Any]:
        """What `bulkhead agent probe` would print."""
        return dataclasses.asdict(self.world.facts())

    def instance(self, tenancy: Tenancy, *, core: int = 0, generation: int = 1) -> Instance:
        """One tenant's VM on this host."""
        return instance_for(tenancy, self.probe(), IMAGE, core=core, generation=generation)

    def two_tenants(self, revision: int = 1) -> Assignment:
        """acme on node 0, globex on node 1, same addresses."""
        return assignment_of([self.instance(ACME), self.instance(GLOBEX)], revision=revision)

    def snapshot(self) -> dict[str, Any]:
        """Everything that must be the same however one got here (pids and port numbers are not)."""
        world = self.world
        return {
            "domains": {n: (_content(d.spec), d.pid is not None) for n, d in world.domains.items()},
            "volumes": dict(world.volumes),
            "keys": dict(world.volume_keys),
            "secrets": dict(world.secrets),
            "seeds": dict(world.seeds),
            "drivers": {a: f.driver for a, f in world.functions.items()},
            "overrides": dict(world.overrides),
            "ports": sorted(
                (p.port or p.interface, p.instance or "", p.vlan_mode, p.vlan, p.trunks, p.open)
                for p in world.ports
            ),
            "flows": len(world.flows.flows) if world.flows else None,
        }


def _content(spec: LaunchSpec) -> str:
    """The definition's digest without where this test's files are."""
    return dataclasses.replace(spec, console_path="", guest_socket="").digest()
