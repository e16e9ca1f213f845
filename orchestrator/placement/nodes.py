"""Which NUMA nodes of one host an instance spans, and how it is divided among them.

One node that holds everything is best; then the fewest nodes that are near all of its GPUs; then the fewest
nodes at all. Pure arithmetic over counts; `first_fit` turns them into CPUs and cells.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, groupby
from math import gcd

from orchestrator.model.capacity import MIN_CELL_MIB, Demand
from orchestrator.placement.free import Free

#: Sets of nodes looked at per host: all of them for hosts of up to 12 nodes.
_MAX_SETS = 4096


@dataclass(frozen=True, slots=True)
class Node:
    """What one node offers to one demand.

    Args:
        cores: free cores with enough threads.
        memory_mib: free memory in its page size, a whole number of `unit_mib`.
        gpus: free GPUs that it may have; none are counted where no core is free.
    """

    node: int
    cores: int
    memory_mib: int
    gpus: int


def unit_mib(demand: Demand) -> int:
    """The least step of memory: whole pages that are whole MiB."""
    return demand.page_size_kib // gcd(demand.page_size_kib, 1024)


def floor_mib(demand: Demand) -> int:
    """The least memory of one cell."""
    unit = unit_mib(demand)
    return -(-MIN_CELL_MIB // unit) * unit


def offers(demand: Demand, free: Free) -> list[Node]:
    """Say what each node with room for a cell offers, by node. Others are no use: cores need memory near."""
    unit, floor = unit_mib(demand), floor_mib(demand)
    gpus: dict[int, int] = {}
    for gpu in free.gpus:
        if demand.gpu_model in (None, gpu.model):
            gpus[gpu.node] = gpus.get(gpu.node, 0) + 1
    found = []
    for node, kib in sorted(free.memory_kib.get(demand.page_size_kib, {}).items()):
        memory_mib = kib // 1024 // unit * unit
        if memory_mib >= floor:
            cores = free.cores.get(node, ())
            fitting = sum(len(threads) >= demand.threads_per_core for threads in cores)
            # A GPU draws memory near it only together with the CPUs that work on it.
            found.append(Node(node, fitting, memory_mib, gpus.get(node, 0) if fitting else 0))
    return found


def choose(demand: Demand, nodes: Sequence[Node]) -> tuple[Node, ...] | None:
    """Choose the nodes that it spans; None when no set of them holds it.

    Among sets of one size: most of its GPUs near, then fewest nodes without a core, then lowest numbers.
    """
    near = min(demand.gpus, sum(node.gpus for node in nodes))
    fallback: tuple[Node, ...] | None = None
    for _, same_size in groupby(_sets(demand, nodes), key=len):
        ranked = [
            (
                max(0, near - sum(node.gpus for node in chosen)),
                sum(node.cores == 0 for node in chosen),
                chosen,
            )
            for chosen in same_size
            if sum(node.memory_mib for node in chosen) >= demand.memory_mib
        ]
        if not ranked:
            continue
        far, _, best = min(ranked, key=lambda each: each[:2])
        if far == 0:
            return best
        fallback = fallback or best
    return fallback


def most_cores(demand: Demand, nodes: Sequence[Node]) -> int:
    """The most cores that it could have here, given that each node it spans must hold a cell of it."""
    spans = demand.memory_mib // floor_mib(demand)
    return sum(sorted((node.cores for node in nodes), reverse=True)[:spans])


def most_memory_mib(demand: Demand, nodes: Sequence[Node]) -> int:
    """The most memory beside enough cores for it."""
    return max((sum(node.memory_mib for node in chosen) for chosen in _sets(demand, nodes)), default=0)


def spread(total: int, caps: Sequence[int]) -> list[int]:
    """Divide as evenly as the caps allow; what is over goes to the largest, the first of equals.

    Args:
        total: at most the sum of `caps`.
        caps: the most that each can take.

    Returns:
        As many numbers as caps, that sum up to `total`. Where no cap is below f, and `total` is not below f
        per cap, no number is below f.
    """
    shares = [0] * len(caps)
    left, waiting = total, len(caps)
    # Who can take least goes first, so that what it leaves is divided among the others.
    for at in sorted(range(len(caps)), key=lambda each: (caps[each], -each)):
        shares[at] = min(caps[at], left // waiting)
        left -= shares[at]
        waiting -= 1
    return shares


def _sets(demand: Demand, nodes: Sequence[Node]) -> Iterator[tuple[Node, ...]]:
    """Sets of nodes with enough cores whose cells could each have the least memory; small ones first."""
    # Where there are too many sets, those of the richest nodes are looked at.
    ordered = nodes
    if 2 ** len(nodes) > _MAX_SETS:
        ordered = sorted(nodes, key=lambda each: (-each.gpus, -each.cores, -each.memory_mib, each.node))
    largest = min(len(nodes), demand.memory_mib // floor_mib(demand))
    looked = 0
    for size in range(1, largest + 1):
        for chosen in combinations(ordered, size):
            looked += 1
            if looked > _MAX_SETS:
                return
            if sum(node.cores for node in chosen) >= demand.cores:
                yield chosen
