"""Is this placement right? Asked of every placement before it is committed, by code that did not make it.

Shares nothing with `first_fit` but the values of the model: it counts from the host's cores, pages and GPUs
anew. The scheduler calls it, commits nothing that has a violation, and takes it out of the queue.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from orchestrator.model.capacity import MIN_CELL_MIB, Demand, HostCapacity
from orchestrator.model.placement import Placement
from orchestrator.model.states import GpuState, HostState


def violations(placement: Placement, demand: Demand, host: HostCapacity) -> tuple[str, ...]:
    """Say all that is wrong with a placement, in sentences; empty when it may be committed.

    Args:
        host: as it is now, before the placement.
    """
    return (
        *_host(placement, demand, host),
        *_vcpus(placement, demand),
        *_cpus(placement, host),
        *_cores(placement, demand, host),
        *_emulator(placement, host),
        *_cells(placement, demand),
        *_memory(placement, host),
        *_gpus(placement, demand, host),
    )


def _host(placement: Placement, demand: Demand, host: HostCapacity) -> Iterator[str]:
    if placement.host != host.id:
        yield f"it is for {placement.host}, not for {host.id}"
    if placement.host_generation != host.generation:
        yield f"it is for generation {placement.host_generation}; the host is at {host.generation}"
    if host.state is not HostState.READY:
        yield f"the host is {host.state.value}"
    if demand.pinned_host is not None and demand.pinned_host != host.id:
        yield f"its volumes live on {demand.pinned_host}"
    if demand.isolation != "dedicated":
        yield f"whole devices are not isolation class {demand.isolation}"
    if host.used_disk_gib + demand.disk_gib > host.disk_gib:
        yield f"{demand.disk_gib} GiB of disk are wanted; {host.disk_gib - host.used_disk_gib} are free"


def _vcpus(placement: Placement, demand: Demand) -> Iterator[str]:
    numbers = [pin.vcpu for pin in placement.pins]
    if numbers != list(range(demand.vcpus)):
        yield f"vCPUs are {numbers}; they must be 0 to {demand.vcpus - 1}, in order"
    if placement.threads_per_core != demand.threads_per_core:
        yield f"it has {placement.threads_per_core} threads per core; {demand.threads_per_core} are wanted"


def _cpus(placement: Placement, host: HostCapacity) -> Iterator[str]:
    """Each CPU exists, is one vCPU's alone, is nobody's yet, and not the host's."""
    existing = {cpu for core in host.cores for cpu in core.threads}
    kept = {cpu for core in host.cores if core.host_share for cpu in core.threads} | set(host.host_cpus)
    for cpu, count in sorted(Counter(pin.host_cpu for pin in placement.pins).items()):
        if count > 1:
            yield f"CPU {cpu} has {count} vCPUs"
    for cpu, count in sorted(Counter(placement.held_cpus).items()):
        if count > 1:
            yield f"CPU {cpu} is held {count} times"
    for cpu in sorted({pin.host_cpu for pin in placement.pins} | set(placement.held_cpus)):
        if cpu not in existing:
            yield f"the host has no CPU {cpu}"
        if cpu in kept:
            yield f"CPU {cpu} is on a core of the host's share"
        if ("cpu", str(cpu)) in host.taken:
            yield f"CPU {cpu} is taken"


def _cores(placement: Placement, demand: Demand, host: HostCapacity) -> Iterator[str]:
    """Cores are whole and alone, and a guest's core is a core of the host."""
    pinned = {pin.host_cpu: pin.vcpu for pin in placement.pins}
    core_of = {cpu: at for at, core in enumerate(host.cores) for cpu in core.threads}
    whole: set[int] = set()
    for core in host.cores:
        vcpus = sorted(pinned[cpu] for cpu in core.threads if cpu in pinned)
        if not vcpus:
            continue
        whole |= set(core.threads)
        tenant = host.core_tenants.get(min(core.threads))
        if tenant is not None:
            yield f"the core of CPU {core.threads[0]} is held by {tenant}"
        if len(vcpus) > demand.threads_per_core:
            yield f"the core of CPU {core.threads[0]} has vCPUs {vcpus}, more than {demand.threads_per_core}"
    held = set(placement.held_cpus)
    if held != whole:
        yield f"it holds CPUs {sorted(held)}; its whole cores are {sorted(whole)}"
    if demand.threads_per_core == 2:
        by_vcpu = {pin.vcpu: core_of.get(pin.host_cpu) for pin in placement.pins}
        for vcpu in range(0, demand.vcpus - 1, 2):
            if by_vcpu.get(vcpu) != by_vcpu.get(vcpu + 1):
                yield f"vCPUs {vcpu} and {vcpu + 1} are not on one core"


def _emulator(placement: Placement, host: HostCapacity) -> Iterator[str]:
    """QEMU's own threads run on the host's CPUs; on the instance's own only where the host keeps none."""
    allowed = set(host.host_cpus) or {pin.host_cpu for pin in placement.pins}
    if not placement.emulator:
        yield "its emulator threads have no CPU"
    for cpu in placement.emulator:
        if cpu not in allowed:
            yield f"its emulator threads may not run on CPU {cpu}"


def _cells(placement: Placement, demand: Demand) -> Iterator[str]:
    if placement.page_size_kib != demand.page_size_kib:
        yield f"pages are {placement.page_size_kib} KiB; {demand.page_size_kib} KiB are wanted"
    for node, count in sorted(Counter(cell.node for cell in placement.cells).items()):
        if count > 1:
            yield f"node {node} has {count} cells"
    together_mib = sum(cell.memory_mib for cell in placement.cells)
    if together_mib != demand.memory_mib:
        yield f"its cells have {together_mib} MiB; {demand.memory_mib} are wanted"
    for cell in placement.cells:
        if cell.memory_mib < MIN_CELL_MIB:
            yield f"the cell of node {cell.node} has {cell.memory_mib} MiB; {MIN_CELL_MIB} are the least"
        if cell.memory_mib * 1024 % placement.page_size_kib:
            yield f"the cell of node {cell.node} is no whole number of pages"
    in_cells = sorted(vcpu for cell in placement.cells for vcpu in cell.vcpus)
    if in_cells != sorted(pin.vcpu for pin in placement.pins):
        yield f"cells name vCPUs {in_cells}; each must stand in one"


def _memory(placement: Placement, host: HostCapacity) -> Iterator[str]:
    """Each node has the pages free, and the vCPUs of its cell."""
    node_of = {cpu: core.node for core in host.cores for cpu in core.threads}
    pinned = {pin.vcpu: pin.host_cpu for pin in placement.pins}
    wanted: Counter[int] = Counter()
    for cell in placement.cells:
        wanted[cell.node] += cell.memory_mib * 1024
        for vcpu in cell.vcpus:
            if vcpu in pinned and node_of.get(pinned[vcpu]) != cell.node:
                yield f"vCPU {vcpu} is on CPU {pinned[vcpu]}, which is not of its cell's node {cell.node}"
    for node, wanted_kib in sorted(wanted.items()):
        left = sum(
            page.total - page.used
            for page in host.pages
            if (page.node, page.page_size_kib) == (node, placement.page_size_kib)
        )
        if wanted_kib > left * placement.page_size_kib:
            yield f"node {node} has {left} pages free; {wanted_kib} KiB are wanted"


def _gpus(placement: Placement, demand: Demand, host: HostCapacity) -> Iterator[str]:
    """Each GPU is on the host, as it is known there, clean, and nobody's."""
    if len(placement.devices) != demand.gpus:
        yield f"it has {len(placement.devices)} GPUs; {demand.gpus} are wanted"
    known = {gpu.id: gpu for gpu in host.gpus}
    for identity, count in sorted(Counter(gpu.id for gpu in placement.devices).items()):
        if count > 1:
            yield f"{identity} is given {count} times"
    for placed in placement.devices:
        gpu = known.get(placed.id)
        if gpu is None:
            yield f"the host has no {placed.id}"
            continue
        if placed != (gpu.id, gpu.address, gpu.vendor, gpu.device, gpu.node, gpu.serial):
            yield f"{placed.id} is another GPU than the host has"
        if gpu.state is not GpuState.CLEAN:
            yield f"{placed.id} is {gpu.state.value}, not clean"
        if ("gpu", gpu.id) in host.taken:
            yield f"{placed.id} is taken"
        if demand.gpu_model is not None and gpu.model != demand.gpu_model:
            yield f"{placed.id} is a {gpu.model}; {demand.gpu_model} is wanted"
