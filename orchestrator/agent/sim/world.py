"""The simulated host's state: what its kernel, libvirt, switch and disks would hold. Outlives every agent."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from orchestrator.agent.faults import faultpoint
from orchestrator.isolation.flows import FlowProgram
from orchestrator.model.errors import BulkheadError
from orchestrator.model.host import HostCpu, HostFacts, Hugepages, NumaNode, PciFunction
from orchestrator.model.launch import LaunchSpec
from orchestrator.model.observed import ObservedSeed, ObservedVolume

#: What the kernel binds a stand-in to when nothing overrides it.
NATURAL_DRIVER = "bochs-drm"


@dataclass
class SimDomain:
    """A defined domain; it runs while it has a pid."""

    spec: LaunchSpec
    pid: int | None = None
    started: int = 0


@dataclass
class SimPort:
    """A tap on the bridge; labelled once the agent has said whose it is."""

    interface_id: str
    interface: str
    ofport: int
    port: str | None = None
    instance: str | None = None
    deployment: str | None = None
    vlan_mode: str = "trunk"
    vlan: int | None = None
    trunks: tuple[int, ...] = (4095,)
    open: bool = False


@dataclass
class SimWorld:
    """One simulated host.

    Args:
        functions: its PCI functions by address; drivers change as they are bound.
        sleep: how latency passes; tests of decisions leave it doing nothing.
        latency_s: seconds by verb (`start`, `bind`, `create_volume`, ...), passed to `sleep`.
    """

    cpus: tuple[HostCpu, ...]
    nodes: tuple[NumaNode, ...]
    functions: dict[str, PciFunction]
    host_cpus: frozenset[int]
    boot_id: str = "sim-boot-1"
    sleep: Callable[[float], None] = lambda _seconds: None
    latency_s: Mapping[str, float] = field(default_factory=dict)

    overrides: dict[str, str] = field(default_factory=dict)
    hung: set[str] = field(default_factory=set)
    hangs: set[str] = field(default_factory=set)
    wedged: set[str] = field(default_factory=set)
    domains: dict[str, SimDomain] = field(default_factory=dict)
    secrets: dict[str, bytes] = field(default_factory=dict)
    volumes: dict[str, ObservedVolume] = field(default_factory=dict)
    volume_keys: dict[str, bytes] = field(default_factory=dict)
    images: set[str] = field(default_factory=set)
    seeds: dict[str, ObservedSeed] = field(default_factory=dict)
    bridge_mode: str | None = None
    ports: list[SimPort] = field(default_factory=list)
    flows: FlowProgram | None = None
    #: Verdict ids whose fact the inspector is to misread, for seeing that checks notice.
    misread: dict[str, bool] = field(default_factory=dict)
    #: Errors to raise, by verb, each once and in order.
    failures: dict[str, list[BulkheadError]] = field(default_factory=dict)
    #: Counts every state-changing verb, for asserting that nothing happened.
    changes: int = 0
    #: Held by libvirtd where two of its calls would change the same list.
    libvirtd: threading.RLock = field(default_factory=threading.RLock, repr=False, compare=False)
    _next_pid: int = 1000
    _next_ofport: int = 1

    def act(self, verb: str) -> None:
        """Begin a state-changing verb: latency, then a fault if one is set."""
        self.look(verb)
        self.changes += 1

    def look(self, verb: str) -> None:
        """Begin a reading verb: latency, then a fault if one is set."""
        self.sleep(self.latency_s.get(verb, 0.0))
        waiting = self.failures.get(verb)
        if waiting:
            raise waiting.pop(0)

    def inside(self, verb: str) -> None:
        """Pass the middle of an effect, where a real one can be cut in two."""
        faultpoint(f"{verb}.inside")

    def next_pid(self) -> int:
        """Return a pid that was never used."""
        self._next_pid += 1
        return self._next_pid

    def next_ofport(self) -> int:
        """Return an OpenFlow port number that was never used."""
        self._next_ofport += 1
        return self._next_ofport

    def facts(self) -> HostFacts:
        """Say what the host is made of, now."""
        functions = tuple(self.functions[address] for address in sorted(self.functions))
        return HostFacts(self.cpus, self.nodes, functions, self.host_cpus, self.boot_id)

    def set_driver(self, address: str, driver: str | None) -> None:
        """Let a driver own a function; None is the one that the kernel would pick."""
        driver = driver or NATURAL_DRIVER
        self.functions[address] = dataclasses.replace(self.functions[address], driver=driver)

    def reboot(self) -> None:
        """Lose power: processes, tmpfs, secrets, overrides, taps and flows go; disks and definitions stay."""
        for domain in self.domains.values():
            domain.pid = None
        self.secrets.clear()
        self.seeds.clear()
        self.overrides.clear()
        self.hung.clear()
        self.ports.clear()
        self.flows = None
        for address, function in self.functions.items():
            if not function.is_bridge:
                self.set_driver(address, None)
        self.boot_id += "'"

    def restart_switch(self) -> None:
        """Lose the switch daemon's flows; ports and their marks stay in the database."""
        self.flows = FlowProgram(())


def everyday_world(*, nodes: int = 2, cores_per_node: int = 3, gpus_per_node: int = 2) -> SimWorld:
    """Make the lab host's everyday shape, or another size: no SMT, each node's first core for the host."""
    cpus: list[HostCpu] = []
    numa: list[NumaNode] = []
    functions: dict[str, PciFunction] = {}
    for node in range(nodes):
        mine = range(node * cores_per_node, (node + 1) * cores_per_node)
        cpus += [HostCpu(cpu, node, cpu - mine.start, node, frozenset({cpu})) for cpu in mine]
        numa.append(NumaNode(node, frozenset(mine), 2048, {2048: Hugepages(400, 400)}))
        for index in range(gpus_per_node):
            address = f"0000:{0x20 * (node + 1) + index + 1:02x}:00.0"
            group = node * gpus_per_node + index + 1
            functions[address] = PciFunction(
                address, "1234", "1111", "038000", node, NATURAL_DRIVER, group, ("bus",), {0: 16 << 20}
            )
    host = frozenset(node * cores_per_node for node in range(nodes))
    return SimWorld(tuple(cpus), tuple(numa), functions, host)
