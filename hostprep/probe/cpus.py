"""Logical CPUs with their cores, siblings, sockets, nodes and caches; offline CPUs are left out."""

from __future__ import annotations

import re
from collections.abc import Iterable

from hostprep.probe.files import HostPath, names, read_cpu_set, read_number, read_text
from orchestrator.model.host import Cache, HostCpu, NumaNode

_CPUS = "sys/devices/system/cpu"
_CPU = re.compile(r"^cpu(\d+)$")
_CACHE = re.compile(r"^index\d+$")
_SIZE = re.compile(r"^(\d+)K$")


def read_cpus(root: HostPath, nodes: Iterable[NumaNode]) -> tuple[HostCpu, ...]:
    """Read the CPUs that are online, by number.

    Siblings that the kernel does not tell are the empty set, which no CPU has in truth: a thread whose
    siblings are unknown must not be taken for a whole core.

    Raises:
        HostError: `host.unreadable`.
    """
    node_of = {cpu: node.node for node in nodes for cpu in node.cpus}
    return tuple(_read_cpu(root / _CPUS, cpu, node_of.get(cpu, -1)) for cpu in sorted(_online(root / _CPUS)))


def default_host_cpus(cpus: Iterable[HostCpu]) -> frozenset[int]:
    """Return the first core of every node with all its threads: the host's own share by default.

    CPUs whose node is unknown count as one node of their own.
    """
    first: dict[int, HostCpu] = {}
    for cpu in sorted(cpus, key=lambda each: each.cpu):
        first.setdefault(cpu.node, cpu)
    return frozenset().union(*(cpu.siblings | {cpu.cpu} for cpu in first.values()))


def read_caches(root: HostPath, cpus: Iterable[HostCpu]) -> tuple[Cache, ...]:
    """Read each cache once, by level, kind and first CPU; one whose sharers or size are not told is left out.

    Raises:
        HostError: `host.unreadable`.
    """
    found: set[Cache] = set()
    for cpu in cpus:
        folder = root / _CPUS / f"cpu{cpu.cpu}" / "cache"
        for name in names(folder):
            if _CACHE.match(name):
                cache = _read_cache(folder / name)
                found |= set() if cache is None else {cache}
    return tuple(sorted(found, key=lambda each: (each.level, each.kind, sorted(each.cpus))))


def _read_cache(folder: HostPath) -> Cache | None:
    level = read_number(folder / "level")
    cpus = read_cpu_set(folder / "shared_cpu_list")
    size = _SIZE.match(read_text(folder / "size") or "")
    if level is None or not cpus or size is None:
        return None
    return Cache(level, (read_text(folder / "type") or "").lower(), int(size[1]), cpus)


def _online(folder: HostPath) -> frozenset[int]:
    online = read_cpu_set(folder / "online")
    if online is not None:
        return online
    # Kernels without CPU hotplug have no `online`; there each CPU that exists runs.
    return frozenset(int(match.group(1)) for name in names(folder) if (match := _CPU.match(name)))


def _read_cpu(folder: HostPath, cpu: int, node: int) -> HostCpu:
    topology = folder / f"cpu{cpu}" / "topology"
    siblings = read_cpu_set(topology / "thread_siblings_list")
    socket = read_number(topology / "physical_package_id")
    core = read_number(topology / "core_id")
    return HostCpu(
        cpu=cpu,
        socket=-1 if socket is None else socket,
        core=-1 if core is None else core,
        node=node,
        siblings=frozenset() if siblings is None else siblings,
    )
