"""Finds the first host, in order of names, that can run an instance, and where on it; or says why none can.

Decides host, nodes, exact cores and GPUs, all from a `Fleet`; the lowest numbers win, so the same fleet gives
the same place. Whole cores only: a core goes to one instance, siblings included. `scheduling` calls it; what
it answers is checked by `validate`, which shares nothing with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from orchestrator.model.assignment import IsolationClass
from orchestrator.model.capacity import Demand, GpuCapacity, HostCapacity
from orchestrator.model.placement import Cell, Pin, PlacedGpu, Placement
from orchestrator.placement.free import Free, Threads
from orchestrator.placement.nodes import (
    Node,
    choose,
    most_cores,
    most_memory_mib,
    offers,
    spread,
    unit_mib,
)
from orchestrator.placement.refusal import Miss, Refusal, sum_up
from orchestrator.placement.snapshot import Fleet


def place(demand: Demand, hosts: Fleet | Iterable[HostCapacity]) -> Placement | Refusal:
    """Find the first place, or say why there is none.

    Cost: a few comparisons for each host that is short of a sum; only one whose sums suffice is looked into.

    Raises:
        InvalidInputError: `host.named_twice`.
    """
    fleet = hosts if isinstance(hosts, Fleet) else Fleet.of(hosts)
    found = place_from(demand, fleet, 0)
    return found[1] if found is not None else refuse(demand, fleet)


def place_from(demand: Demand, fleet: Fleet, start: int) -> tuple[int, Placement] | None:
    """Find the first place at or after a position of the fleet.

    While a fleet only fills, a demand that did not fit on a host never will: a caller that places many of one
    shape goes on where the last one fitted.

    Returns:
        The host's position and the place on it; None when no host from there on can run it.
    """
    if demand.isolation != IsolationClass.DEDICATED:
        return None
    if demand.pinned_host is not None:
        position = fleet.position(demand.pinned_host)
        if position is None or position < start:
            return None
        found = place_on(demand, fleet.free(position))
        return (position, found) if found is not None else None
    for position, free in enumerate(fleet.frees(start), start):
        found = place_on(demand, free)
        if found is not None:
            return position, found
    return None


def place_on(demand: Demand, free: Free) -> Placement | None:
    """Find a place on this host; None when it has no room or takes nothing new."""
    if not _sums_suffice(demand, free):
        return None
    chosen = choose(demand, offers(demand, free))
    return _laid_out(demand, free, chosen) if chosen is not None else None


def refuse(demand: Demand, fleet: Fleet) -> Refusal:
    """Say why no host can run it. Only for a demand that `place_from` found no place for."""
    if demand.pinned_host is None:
        return sum_up(len(fleet), (miss for free in fleet.frees() for miss in _misses(demand, free)))
    position = fleet.position(demand.pinned_host)
    if position is None:
        return sum_up(len(fleet), (), elsewhere=len(fleet))
    return sum_up(len(fleet), _misses(demand, fleet.free(position)), elsewhere=len(fleet) - 1)


def _sums_suffice(demand: Demand, free: Free) -> bool:
    memory_kib = free.memory_kib.get(demand.page_size_kib)
    return (
        free.ready
        and free.gpu_counts.get(demand.gpu_model, 0) >= demand.gpus
        and free.core_counts[demand.threads_per_core] >= demand.cores
        and free.disk_gib >= demand.disk_gib
        and memory_kib is not None
        and sum(memory_kib.values()) >= demand.memory_mib * 1024
    )


def _laid_out(demand: Demand, free: Free, chosen: Sequence[Node]) -> Placement:
    """Take the lowest cores and GPUs of the chosen nodes."""
    nodes = sorted(chosen, key=lambda each: each.node)
    unit = unit_mib(demand)
    core_shares = spread(demand.cores, [node.cores for node in nodes])
    unit_shares = spread(demand.memory_mib // unit, [node.memory_mib // unit for node in nodes])
    pins: list[Pin] = []
    cells: list[Cell] = []
    held: list[int] = []
    for node, cores, units in zip(nodes, core_shares, unit_shares, strict=True):
        first = len(pins)
        for threads in _cores_of(demand, free, node.node)[:cores]:
            pins += [Pin(len(pins) + at, cpu) for at, cpu in enumerate(threads[: demand.threads_per_core])]
            held += threads
        cells.append(Cell(node.node, units * unit, tuple(range(first, len(pins)))))
    return Placement(
        host=free.host.id,
        host_generation=free.host.generation,
        page_size_kib=demand.page_size_kib,
        threads_per_core=demand.threads_per_core,
        pins=tuple(pins),
        emulator=_emulator(free, nodes, pins),
        cells=tuple(cells),
        devices=tuple(
            PlacedGpu(gpu.id, gpu.address, gpu.vendor, gpu.device, gpu.node, gpu.serial)
            for gpu in _gpus(demand, free, nodes)
        ),
        held_cpus=tuple(sorted(held)),
    )


def _cores_of(demand: Demand, free: Free, node: int) -> list[Threads]:
    return [threads for threads in free.cores.get(node, ()) if len(threads) >= demand.threads_per_core]


def _emulator(free: Free, nodes: Sequence[Node], pins: Sequence[Pin]) -> tuple[int, ...]:
    """The host's own CPUs of these nodes, else of all; the instance's own where the host keeps none."""
    near = [cpu for node in nodes for cpu in free.emulator.get(node.node, ())]
    return tuple(sorted(near or free.host.host_cpus or (pin.host_cpu for pin in pins)))


def _gpus(demand: Demand, free: Free, nodes: Sequence[Node]) -> list[GpuCapacity]:
    """Near ones first, and of those from as few nodes as can be; ones on an unknown node last."""
    near = {node.node for node in nodes}
    fitting = [gpu for gpu in free.gpus if demand.gpu_model in (None, gpu.model)]
    counts: dict[int, int] = {}
    for gpu in fitting:
        counts[gpu.node] = counts.get(gpu.node, 0) + 1

    def rank(gpu: GpuCapacity) -> tuple[bool, bool, int, int, str]:
        return (gpu.node not in near, gpu.node < 0, -counts[gpu.node], gpu.node, gpu.address)

    return sorted(sorted(fitting, key=rank)[: demand.gpus], key=lambda gpu: gpu.address)


def _misses(demand: Demand, free: Free) -> Iterator[Miss]:
    """Say all that this host is short of; at least one thing."""
    if demand.isolation != IsolationClass.DEDICATED:
        yield Miss("isolation.unsupported", 1, 0, demand.isolation)
        return
    if not free.ready:
        yield Miss("host.cordoned", 1, 0, "host")
        return
    unit = "GPU" if demand.gpus == 1 else "GPUs"
    unit += "" if demand.gpu_model is None else f" {demand.gpu_model}"
    owned, gpus = free.gpus_owned.get(demand.gpu_model, 0), free.gpu_counts.get(demand.gpu_model, 0)
    if demand.gpu_model is not None and owned < demand.gpus:
        yield Miss("gpu.model", demand.gpus, owned, unit)
    elif gpus < demand.gpus:
        yield Miss("gpu.short", demand.gpus, gpus, unit)
    yield from _compute_misses(demand, free)
    if free.disk_gib < demand.disk_gib:
        yield Miss("disk.short", demand.disk_gib, free.disk_gib, "GiB")


def _compute_misses(demand: Demand, free: Free) -> Iterator[Miss]:
    """CPUs and memory: each by its sum, and where both sums suffice, by what lies on the same nodes."""
    threads = "whole core" if demand.cores == 1 else "whole cores"
    threads += "" if demand.threads_per_core == 1 else " of 2 threads"
    pages = f"MiB in {demand.page_size_kib} KiB pages"
    cores = free.core_counts[demand.threads_per_core]
    memory_mib = sum(free.memory_kib.get(demand.page_size_kib, {}).values()) // 1024
    if cores < demand.cores:
        yield Miss("cpu.short", demand.cores, cores, threads)
    if memory_mib < demand.memory_mib:
        yield Miss("memory.short", demand.memory_mib, memory_mib, pages)
    nodes = offers(demand, free)
    if cores < demand.cores or memory_mib < demand.memory_mib or choose(demand, nodes) is not None:
        return
    beside = most_cores(demand, nodes)
    if beside < demand.cores:
        yield Miss("cpu.short", demand.cores, beside, f"{threads} beside its memory")
    else:
        have_mib = min(most_memory_mib(demand, nodes), demand.memory_mib - unit_mib(demand))
        yield Miss("memory.short", demand.memory_mib, have_mib, f"{pages} beside its CPUs")
