"""A controller over a real database, and one simulated host whose agent follows what the controller says.

What the agents' link carries is handed over here by calls: each test says when a host looks and reports.
"""

from __future__ import annotations

import base64
import dataclasses
import json
from pathlib import Path

from orchestrator.agent.host import AgentSettings
from orchestrator.agent.journal import Journal
from orchestrator.agent.reconcile import Agent
from orchestrator.agent.sim import everyday_world, sim_host
from orchestrator.controller import (
    assignments,
    attachments,
    catalog,
    hosts,
    instance_create,
    instances,
    leases,
    networks,
    people,
    reports,
    tenants,
    volumes,
)
from orchestrator.controller.caller import Caller
from orchestrator.controller.instance_create import NewInstance
from orchestrator.controller.scheduler import LEASE, Pass, Scheduler
from orchestrator.model.actor import CONTROLLER, Actor
from orchestrator.model.assignment import Assignment
from orchestrator.model.fleet import FleetHost
from orchestrator.model.instance import InstanceRecord
from orchestrator.model.operation import Operation
from orchestrator.model.report import HostReport
from orchestrator.model.volume import VolumeRecord
from orchestrator.store.ids import new_id
from orchestrator.store.nouns import INSTANCES, OPERATIONS
from orchestrator.store.rows import PLATFORM
from orchestrator.store.store import Store

DIGEST = "sha256:" + "1" * 64
PLENTY = {
    "instances": 20,
    "vcpus": 20,
    "memory_mib": 20_000,
    "gpus": 20,
    "volumes": 20,
    "disk_gib": 99,
    "networks": 5,
}


class AnyKeys:
    """Stands for the controller's keys: what a host gets is the same each time it asks."""

    def passphrase(self, volume: str, generation: int) -> bytes:
        return base64.b64encode(f"{volume}/{generation}".encode().ljust(32, b"k")[:32])


class Platform:
    """The whole of it."""

    def __init__(self, store: Store, tmp: Path) -> None:
        self.store = store
        self.world = everyday_world()
        self.world.images.add(DIGEST)
        self.settings = AgentSettings(state_dir=tmp / "state", run_dir=tmp / "run", at_once=1)
        self.now_s = 1_000_000.0
        self.scheduler = Scheduler(store)
        self.acme = self.tenant("acme")
        self.globex = self.tenant("globex")
        with store.unit_of_work(CONTROLLER) as tx:
            shape = dict.fromkeys(("vcpus", "gpus", "disk_gib", "threads_per_core"), 1)
            catalog.create_type(
                tx,
                name="small",
                memory_mib=256,
                page_size_kib=2048,
                gpu_model=None,
                isolation="dedicated",
                **shape,
            )
            catalog.create_image(
                tx, name="probe", digest=DIGEST, size_bytes=1 << 20, firmware="bios", tenant_id=None
            )
            self.host_id = hosts.create(tx, "node1", 100).id
        self.said: HostReport | None = None
        self.report()

    def tenant(self, name: str) -> Caller:
        with self.store.unit_of_work(CONTROLLER) as tx:
            made = tenants.create(tx, name, PLENTY)
            who = people.create(
                tx, made.id, people.NewPrincipal(name=f"{name}-admin", kind="user", roles=("tenant-admin",))
            )
        actor = Actor(kind="user", id=who.id, tenant=made.id)
        caller = Caller(who, frozenset({"read", "write"}), made, actor)
        with self.store.unit_of_work(actor) as tx:
            networks.create(tx, caller, "lan", "10.0.0.0/24", networks.VlanRange())
        return caller

    # -- what tenants ask for

    def create(self, caller: Caller, name: str, **more: object) -> Operation:
        wanted = NewInstance(name=name, type="small", image="probe", networks=("lan",), **more)  # type: ignore[arg-type]
        with self.store.unit_of_work(caller.actor) as tx:
            return instance_create.create(tx, caller, wanted, new_id("op"))

    def ask(self, caller: Caller, verb: str, name: str) -> Operation:
        with self.store.unit_of_work(caller.actor) as tx:
            return getattr(instances, verb)(tx, caller, name, new_id("op"))

    def instance(self, caller: Caller, name: str) -> InstanceRecord:
        with self.store.reading() as tx:
            return instances.get(tx, caller, name)

    def operation(self, operation: Operation) -> Operation:
        with self.store.reading() as tx:
            found = OPERATIONS.get(tx, PLATFORM, operation.id)
            assert found is not None
            return found

    def all_instances(self) -> list[InstanceRecord]:
        with self.store.reading() as tx:
            return INSTANCES.where(tx, PLATFORM)

    def host(self) -> FleetHost:
        with self.store.reading() as tx:
            return hosts.get(tx, self.host_id)

    def volume(self, caller: Caller, name: str, size_gib: int = 2) -> VolumeRecord:
        """Make one of its own."""
        with self.store.unit_of_work(caller.actor) as tx:
            return volumes.create(tx, caller, name, size_gib)

    def seen_volume(self, caller: Caller, name: str) -> VolumeRecord:
        with self.store.reading() as tx:
            return volumes.get(tx, caller, name)

    def erase(self, caller: Caller, name: str) -> Operation:
        with self.store.unit_of_work(caller.actor) as tx:
            return volumes.remove(tx, caller, name, new_id("op"))

    def wire(self, caller: Caller, verb: str, instance: str, volume: str) -> InstanceRecord:
        """Attach or detach."""
        with self.store.unit_of_work(caller.actor) as tx:
            return getattr(attachments, verb)(tx, caller, instance, volume)

    # -- what the loops do

    def schedule(self) -> Pass:
        lease = leases.take(self.store, LEASE, "controller-1")
        assert lease is not None
        return self.scheduler.run(lease)

    def assignment(self) -> Assignment:
        """What the host's agent gets when it polls."""
        with self.store.unit_of_work(CONTROLLER) as tx:
            assignments.hand_out(tx, self.host_id)
        with self.store.reading() as tx:
            found = assignments.compiled(tx, self.host_id)
        assert found is not None
        # Over the wire and back: what is compiled must be what an agent can read.
        return Assignment.model_validate(json.loads(found.model_dump_json()))

    def apply(self) -> HostReport:
        """A new agent follows the assignment on the simulated host."""
        host = dataclasses.replace(sim_host(self.world), keys=AnyKeys())
        agent = Agent(host, Journal(self.settings.journal_path), self.settings, clock=lambda: self.now_s)
        self.said = agent.apply(self.assignment())
        return self.said

    def report(self) -> None:
        """The host says what came of it."""
        said = reports.Said(
            boot_id=self.world.boot_id,
            agent_version="test",
            facts=self.world.facts(),
            report=self.said,
            refusal=None,
        )
        with self.store.unit_of_work(Actor(kind="host", id=self.host_id)) as tx:
            reports.received(tx, self.host_id, said)

    def settle(self) -> None:
        """Let everything happen that would happen by itself."""
        for _ in range(4):
            self.schedule()
            self.apply()
            self.report()
