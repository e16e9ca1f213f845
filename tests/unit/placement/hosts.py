"""Hosts of any make for tests of placement: nodes, threads per core, pages and GPUs by number."""

from __future__ import annotations

from typing import Any

from orchestrator.agent.sim import everyday_world
from orchestrator.model.capacity import Demand, GpuCapacity, HostCapacity, capacity_of
from orchestrator.model.host import HostCpu, HostFacts, Hugepages, NumaNode, PciFunction
from orchestrator.model.placement import Placement
from orchestrator.model.states import GpuState

VENDOR, DEVICE = "1234", "1111"
MODEL = f"{VENDOR}:{DEVICE}"


def facts_of(
    *,
    nodes: int = 2,
    cores: int = 4,
    threads: int = 1,
    pages: int = 400,
    page_kib: int = 2048,
    gpus: int = 2,
    kept: int = 1,
) -> HostFacts:
    """Each node with so many cores (threads numbered as Linux does), pages and GPUs; first cores are kept."""
    count = nodes * cores
    all_cores = [frozenset(core + count * thread for thread in range(threads)) for core in range(count)]
    cpus = tuple(
        HostCpu(cpu, core // cores, core % cores, core // cores, siblings)
        for core, siblings in enumerate(all_cores)
        for cpu in sorted(siblings)
    )
    numa = tuple(
        NumaNode(
            node,
            frozenset(cpu.cpu for cpu in cpus if cpu.node == node),
            pages * page_kib // 1024 + 1024,
            {page_kib: Hugepages(pages, pages)},
        )
        for node in range(nodes)
    )
    functions = tuple(
        PciFunction(
            f"0000:{0x10 * (node + 1) + index:02x}:00.0",
            VENDOR,
            DEVICE,
            "030200",
            node,
            None,
            node * gpus + index,
            ("bus",),
        )
        for node in range(nodes)
        for index in range(gpus)
    )
    own = frozenset(cpu for core, siblings in enumerate(all_cores) if core % cores < kept for cpu in siblings)
    return HostFacts(cpus, numa, functions, own, "boot-1")


def gpus_of(facts: HostFacts, host: str, state: GpuState = GpuState.CLEAN) -> tuple[GpuCapacity, ...]:
    """Every function of the host as a GPU of its pool."""
    return tuple(
        GpuCapacity(
            f"gpu_{host.removeprefix('hst_')}_{each.address.replace(':', '').replace('.', '')}",
            each.address,
            each.vendor,
            each.device,
            f"{each.vendor}:{each.device}",
            each.serial,
            each.node,
            state,
        )
        for each in facts.functions
    )


def host_of(facts: HostFacts, name: str = "a", **other: Any) -> HostCapacity:
    """A ready host with all its GPUs clean and 1,000 GiB of disk."""
    identity = f"hst_{name}"
    return capacity_of(
        facts, host=identity, name=name, **{"gpus": gpus_of(facts, identity), "disk_gib": 1000, **other}
    )


def make_host(name: str = "a", **shape: int) -> HostCapacity:
    """A host by numbers."""
    return host_of(facts_of(**shape), name)


def everyday_host(name: str = "lab") -> HostCapacity:
    """The simulated host of the agent's own tests."""
    return host_of(everyday_world().facts(), name)


def want(request: str = "req_1", **fields: Any) -> Demand:
    """A demand: one vCPU, 256 MiB, and whatever is said."""
    return Demand(
        **{
            "request": request,
            "tenant": "ten_acme",
            "vcpus": 1,
            "memory_mib": 256,
            "page_size_kib": 2048,
            **fields,
        }
    )


def placed(found: object) -> Placement:
    """It is a placement, not a refusal."""
    assert isinstance(found, Placement), found
    return found
