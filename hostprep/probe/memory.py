"""NUMA nodes with memory, hugepages, distances. A node may lack memory or CPUs; both are told as they are."""

from __future__ import annotations

import re

from hostprep.probe.files import HostPath, names, read_cpu_set, read_number, read_text, unreadable
from orchestrator.model.host import Hugepages, NumaNode

_NODES = "sys/devices/system/node"
_NODE = re.compile(r"^node(\d+)$")
_TOTAL = re.compile(r"^Node\s+\d+\s+MemTotal:\s+(\d+)\s+kB$", re.MULTILINE)
_PAGES = re.compile(r"^hugepages-(\d+)kB$")


def read_nodes(root: HostPath) -> tuple[NumaNode, ...]:
    """Read all nodes that are online, by number; none on a kernel without NUMA.

    Raises:
        HostError: `host.unreadable`.
    """
    found = [int(match.group(1)) for name in names(root / _NODES) if (match := _NODE.match(name))]
    return tuple(_read_node(root / _NODES / f"node{node}", node) for node in sorted(found))


def _read_node(folder: HostPath, node: int) -> NumaNode:
    return NumaNode(
        node=node,
        cpus=read_cpu_set(folder / "cpulist") or frozenset(),
        memory_mib=_memory_mib(folder / "meminfo"),
        hugepages=_hugepages(folder / "hugepages"),
        distances=_distances(folder / "distance"),
    )


def _memory_mib(path: HostPath) -> int:
    """Return the node's memory; 0 where the kernel does not say: nothing may be placed on the unknown."""
    text = read_text(path)
    if text is None:
        return 0
    match = _TOTAL.search(text)
    if match is None:
        raise unreadable(path, text, "a node's meminfo")
    return int(match.group(1)) // 1024


def _distances(path: HostPath) -> tuple[int, ...]:
    """Return how far each node is, in the firmware's measure (ACPI SLIT: 10 is here), in order of node."""
    text = read_text(path)
    if text is None:
        return ()
    try:
        return tuple(int(part) for part in text.split())
    except ValueError as exc:
        raise unreadable(path, text, "a row of distances") from exc


def _hugepages(folder: HostPath) -> dict[int, Hugepages]:
    """Return pages by size in KiB; a size whose counts cannot be read is left out."""
    found: dict[int, Hugepages] = {}
    for name in names(folder):
        match = _PAGES.match(name)
        if match is None:
            continue
        total = read_number(folder / name / "nr_hugepages")
        free = read_number(folder / name / "free_hugepages")
        if total is not None and free is not None:
            found[int(match.group(1))] = Hugepages(total, free)
    return found
