"""What a host can still give, counted once, so that most questions need no look at single cores.

Decides only what counts as free: whole cores without a claim on any thread, pages that no instance has, GPUs
that are clean. `snapshot` makes one per host and change; `first_fit` reads it. The validator never does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.model.capacity import GpuCapacity, HostCapacity
from orchestrator.model.states import GpuState, HostState

#: A free core: its threads, rising.
Threads = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Free:
    """The free part of one host.

    Args:
        ready: it takes new instances.
        cores: free cores by node, by lowest thread.
        core_counts: threads per guest core (1, 2) to how many free cores have so many threads.
        memory_kib: page size to free memory by node; a node without free pages is left out.
        gpus: free ones, by address.
        gpu_counts: free GPUs by model; None counts all.
        gpus_owned: GPUs by model in whatever state.
        emulator: the host's own CPUs by node.
    """

    host: HostCapacity
    ready: bool
    cores: Mapping[int, tuple[Threads, ...]]
    core_counts: Mapping[int, int]
    memory_kib: Mapping[int, Mapping[int, int]]
    gpus: tuple[GpuCapacity, ...]
    gpu_counts: Mapping[str | None, int]
    gpus_owned: Mapping[str | None, int]
    disk_gib: int
    emulator: Mapping[int, tuple[int, ...]]


def free_of(host: HostCapacity) -> Free:
    """Count what is free. Cost: linear in the host's cores, pages entries, GPUs and claims."""
    cores, emulator = _cores(host)
    everything = [threads for free in cores.values() for threads in free]
    memory_kib: dict[int, dict[int, int]] = {}
    for page in host.pages:
        left = page.total - page.used
        if left > 0:
            by_node = memory_kib.setdefault(page.page_size_kib, {})
            by_node[page.node] = by_node.get(page.node, 0) + left * page.page_size_kib
    gpus = tuple(
        gpu
        for gpu in sorted(host.gpus, key=lambda each: each.address)
        if gpu.state is GpuState.CLEAN and ("gpu", gpu.id) not in host.taken
    )
    return Free(
        host=host,
        ready=host.state is HostState.READY,
        cores=cores,
        core_counts={1: len(everything), 2: sum(len(threads) >= 2 for threads in everything)},
        memory_kib=memory_kib,
        gpus=gpus,
        gpu_counts=_by_model(gpus),
        gpus_owned=_by_model(host.gpus),
        disk_gib=host.disk_gib - host.used_disk_gib,
        emulator=emulator,
    )


def _cores(host: HostCapacity) -> tuple[dict[int, tuple[Threads, ...]], dict[int, tuple[int, ...]]]:
    taken = {int(unit) for kind, unit in host.taken if kind == "cpu"}
    kept = set(host.host_cpus)
    free: dict[int, list[Threads]] = {}
    emulator: dict[int, list[int]] = {}
    for core in host.cores:
        if core.host_share:
            emulator.setdefault(core.node, []).extend(cpu for cpu in core.threads if cpu in kept)
        elif core.threads[0] not in host.core_tenants and taken.isdisjoint(core.threads):
            free.setdefault(core.node, []).append(core.threads)
    return (
        {node: tuple(sorted(free[node])) for node in sorted(free)},
        {node: tuple(sorted(emulator[node])) for node in sorted(emulator)},
    )


def _by_model(gpus: tuple[GpuCapacity, ...]) -> dict[str | None, int]:
    counts: dict[str | None, int] = {None: len(gpus)}
    for gpu in gpus:
        counts[gpu.model] = counts.get(gpu.model, 0) + 1
    return counts
