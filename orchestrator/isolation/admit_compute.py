"""Admission of CPUs and memory: every vCPU has its own host CPU, every cell its pages, no core two tenants.

The unit that isolates is the core with all its threads (DESIGN I2): siblings share caches and execution
ports. Without the host's facts only numbers are compared. Pure; `admission` calls it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from orchestrator.model.assignment import Instance, MemoryCell
from orchestrator.model.errors import BulkheadError, InvalidInputError
from orchestrator.model.host import HostFacts, NumaNode

_ORDINARY_PAGE_KIB = 4
_OTHER_CPU = "choose another host CPU"

#: Index in the assignment, and the instance.
Placed = Sequence[tuple[int, Instance]]


def compute_problems(instances: Placed, facts: HostFacts | None) -> list[BulkheadError]:
    """Say what is wrong with CPUs, then with memory."""
    found: list[BulkheadError] = []
    for index, instance in instances:
        found += _vcpu_problems(index, instance)
    found += _pin_problems(instances)
    found += _emulator_problems(instances)
    if facts is not None:
        found += _host_cpu_problems(instances, facts)
        found += _core_problems(instances, facts)
    for index, instance in instances:
        found += _cell_problems(index, instance)
    if facts is not None:
        found += _host_memory_problems(instances, facts)
    return found


def _vcpu_problems(index: int, instance: Instance) -> Iterator[BulkheadError]:
    """Refuse vCPU numbers that are not 0 to n-1, each once, and a core with one thread of two."""
    count = len(instance.cpus.pins)
    seen: set[int] = set()
    for at, pin in enumerate(instance.cpus.pins):
        if pin.vcpu in seen or pin.vcpu >= count:
            yield InvalidInputError(
                "cpu.vcpu_numbers",
                f"vCPU {pin.vcpu} is pinned twice" if pin.vcpu in seen else f"there is no vCPU {pin.vcpu}",
                field=f"instances[{index}].cpus.pins[{at}].vcpu",
                hint=f"number the vCPUs 0 to {count - 1}",
            )
        seen.add(pin.vcpu)
    if count % instance.cpus.threads_per_core:
        yield InvalidInputError(
            "cpu.half_core",
            f"{count} vCPUs do not make cores of {instance.cpus.threads_per_core} threads",
            field=f"instances[{index}].cpus.threads_per_core",
            hint="pin an even number of vCPUs, or say threads_per_core 1",
        )


def _pin_problems(instances: Placed) -> Iterator[BulkheadError]:
    """Refuse one host CPU for two vCPUs, whosever they are: dedicated means alone."""
    taken: dict[int, str] = {}
    for index, instance in instances:
        for at, pin in enumerate(instance.cpus.pins):
            if pin.host_cpu in taken:
                yield InvalidInputError(
                    "cpu.pinned_twice",
                    f"host CPU {pin.host_cpu} is {taken[pin.host_cpu]} already",
                    field=f"instances[{index}].cpus.pins[{at}].host_cpu",
                    hint=_OTHER_CPU,
                )
            else:
                taken[pin.host_cpu] = f"vCPU {pin.vcpu} of {instance.id}"


def _emulator_problems(instances: Placed) -> Iterator[BulkheadError]:
    """Refuse QEMU's own threads on another tenant's vCPU; on the instance's own they only cost speed."""
    owners = _pin_owners(instances)
    for index, instance in instances:
        for at, cpu in enumerate(instance.cpus.emulator):
            tenant, owner = owners.get(cpu, (instance.tenant, ""))
            if tenant != instance.tenant:
                yield InvalidInputError(
                    "cpu.emulator_on_vcpu",
                    f"host CPU {cpu} is a vCPU of {owner}, which belongs to another tenant",
                    field=f"instances[{index}].cpus.emulator[{at}]",
                    hint="let emulator threads run on the host's own CPUs",
                )


def _pin_owners(instances: Placed) -> dict[int, tuple[str, str]]:
    """Host CPU to tenant and instance whose vCPU it is; the first one where there are two."""
    owners: dict[int, tuple[str, str]] = {}
    for _, instance in instances:
        for pin in instance.cpus.pins:
            owners.setdefault(pin.host_cpu, (instance.tenant, instance.id))
    return owners


def _host_cpu_problems(instances: Placed, facts: HostFacts) -> Iterator[BulkheadError]:
    """Refuse CPUs that the host has not or keeps, and guest siblings that are none on the host."""
    siblings = {cpu.cpu: cpu.siblings for cpu in facts.cpus}
    for index, instance in instances:
        place = f"instances[{index}].cpus"
        for at, pin in enumerate(instance.cpus.pins):
            field = f"{place}.pins[{at}].host_cpu"
            if pin.host_cpu not in siblings:
                yield InvalidInputError(
                    "cpu.unknown", f"the host has no CPU {pin.host_cpu}", field=field, hint=_OTHER_CPU
                )
            elif pin.host_cpu in facts.host_cpus:
                yield InvalidInputError(
                    "cpu.host_share",
                    f"CPU {pin.host_cpu} stays with the host",
                    field=field,
                    hint=_OTHER_CPU,
                )
        for at, cpu in enumerate(instance.cpus.emulator):
            if cpu not in siblings:
                yield InvalidInputError(
                    "cpu.unknown", f"the host has no CPU {cpu}", field=f"{place}.emulator[{at}]"
                )
        if instance.cpus.threads_per_core == 2:
            yield from _pair_problems(place, instance, siblings)


def _pair_problems(
    place: str, instance: Instance, siblings: dict[int, frozenset[int]]
) -> Iterator[BulkheadError]:
    """Refuse a guest core (vCPUs 2k and 2k+1) that is not one host core."""
    by_vcpu = {pin.vcpu: (at, pin.host_cpu) for at, pin in enumerate(instance.cpus.pins)}
    for vcpu in sorted(by_vcpu):
        at, cpu = by_vcpu[vcpu]
        partner = by_vcpu.get(vcpu - 1)
        if vcpu % 2 == 0 or partner is None or cpu not in siblings or partner[1] not in siblings:
            continue
        if cpu != partner[1] and cpu not in siblings[partner[1]]:
            yield InvalidInputError(
                "cpu.not_siblings",
                f"vCPUs {vcpu - 1} and {vcpu} are one core of the guest; host CPUs {partner[1]} and {cpu} "
                "are not one core of the host",
                field=f"{place}.pins[{at}].host_cpu",
                hint=f"pin it to a sibling of CPU {partner[1]}, or say threads_per_core 1",
            )


def _core_problems(instances: Placed, facts: HostFacts) -> Iterator[BulkheadError]:
    """Refuse a core between two tenants, or between a tenant and the host (DESIGN I2).

    Emulator threads outside the host's share hold their core like vCPUs. What shares not only the core but
    the very CPU is told by the rules on pins.
    """
    siblings = {cpu.cpu: cpu.siblings for cpu in facts.cpus}
    owners = _pin_owners(instances)
    #: A core, by its lowest thread, to the tenant and instance that have it.
    cores: dict[int, tuple[str, str]] = {}
    pins = [
        (instance, pin.host_cpu, f"instances[{index}].cpus.pins[{at}].host_cpu")
        for index, instance in instances
        for at, pin in enumerate(instance.cpus.pins)
    ]
    emulators = [
        (instance, cpu, f"instances[{index}].cpus.emulator[{at}]")
        for index, instance in instances
        for at, cpu in enumerate(instance.cpus.emulator)
    ]
    for instance, cpu, field in (*pins, *emulators):
        if cpu not in siblings or cpu in facts.host_cpus:
            continue
        if owners.get(cpu, (instance.tenant, ""))[0] != instance.tenant:
            continue
        core = siblings[cpu] | {cpu}
        tenant, owner = cores.setdefault(min(core), (instance.tenant, instance.id))
        kept = sorted(core & facts.host_cpus)
        if tenant != instance.tenant:
            sharer = f"{owner}, which belongs to another tenant"
        elif kept:
            sharer = f"CPU {kept[0]}, which stays with the host"
        else:
            continue
        yield InvalidInputError(
            "cpu.core_shared",
            f"host CPU {cpu} shares its core with {sharer}",
            field=field,
            hint="give whole cores: threads of one core see each other's work",
        )


def _cell_problems(index: int, instance: Instance) -> Iterator[BulkheadError]:
    """Refuse vCPUs in no cell or two, a node for two cells, and memory that is no whole number of pages."""
    place = f"instances[{index}].memory"
    count = len(instance.cpus.pins)
    numbered = {pin.vcpu for pin in instance.cpus.pins} == set(range(count))
    nodes: set[int] = set()
    placed: set[int] = set()
    for at, cell in enumerate(instance.memory.cells):
        if cell.node in nodes:
            yield InvalidInputError(
                "memory.node_twice",
                f"node {cell.node} already holds another cell",
                field=f"{place}.cells[{at}].node",
                hint="join the cells of one node",
            )
        nodes.add(cell.node)
        if cell.memory_mib * 1024 % instance.memory.page_size_kib:
            yield InvalidInputError(
                "memory.broken_page",
                f"{cell.memory_mib} MiB are no whole number of {instance.memory.page_size_kib} KiB pages",
                field=f"{place}.cells[{at}].memory_mib",
            )
        for inner, vcpu in enumerate(cell.vcpus):
            # Wrong numbers are told where they are pinned.
            if numbered and (vcpu in placed or vcpu >= count):
                yield InvalidInputError(
                    "memory.vcpu_twice" if vcpu in placed else "memory.vcpu_unknown",
                    f"vCPU {vcpu} is in a cell already" if vcpu in placed else f"there is no vCPU {vcpu}",
                    field=f"{place}.cells[{at}].vcpus[{inner}]",
                )
            placed.add(vcpu)
    missing = sorted(set(range(count)) - placed)
    if numbered and missing:
        yield InvalidInputError(
            "memory.vcpu_missing",
            f"vCPU {missing[0]} is in no cell"
            + (f", nor are {len(missing) - 1} more" if missing[1:] else ""),
            field=f"{place}.cells",
            hint="name every vCPU in exactly one cell",
        )


def _host_memory_problems(instances: Placed, facts: HostFacts) -> Iterator[BulkheadError]:
    """Refuse nodes and pages that the host has not, sums that it cannot hold, and vCPUs far from their cell.

    Sums are over what is ordered, against all pages of a node: which pages are free now depends on VMs that
    run, most of them the very ones that are ordered.
    """
    nodes = {node.node: node for node in facts.nodes}
    cpu_nodes = {cpu.cpu: cpu.node for cpu in facts.cpus}
    wanted_kib: dict[tuple[int, int], int] = {}
    for index, instance in instances:
        size_kib = instance.memory.page_size_kib
        for at, cell in enumerate(instance.memory.cells):
            place = f"instances[{index}].memory.cells[{at}]"
            node = nodes.get(cell.node)
            if node is None:
                yield InvalidInputError(
                    "memory.node_unknown", f"the host has no NUMA node {cell.node}", field=f"{place}.node"
                )
                continue
            before_kib = wanted_kib.get((cell.node, size_kib), 0)
            after_kib = before_kib + cell.memory_mib * 1024
            wanted_kib[(cell.node, size_kib)] = after_kib
            has_kib = _capacity_kib(node, size_kib)
            # Told once, where the sum passes what there is.
            if before_kib <= has_kib < after_kib:
                yield InvalidInputError(
                    "memory.too_little" if has_kib else "memory.no_pages",
                    f"node {cell.node} has {has_kib} KiB in pages of {size_kib} KiB; "
                    f"{after_kib} KiB are ordered up to here",
                    field=f"{place}.memory_mib" if has_kib else f"instances[{index}].memory.page_size_kib",
                    hint="order less there, or reserve more pages on the host",
                )
            if node.cpus:
                yield from _far_problems(place, instance, cell, cpu_nodes)


def _capacity_kib(node: NumaNode, page_size_kib: int) -> int:
    """Return what a node has in pages of one size; hugepages are no ordinary memory any more."""
    if page_size_kib != _ORDINARY_PAGE_KIB:
        pages = node.hugepages.get(page_size_kib)
        return pages.total * page_size_kib if pages is not None else 0
    reserved_kib = sum(pages.total * size_kib for size_kib, pages in node.hugepages.items())
    return max(0, node.memory_mib * 1024 - reserved_kib)


def _far_problems(
    place: str, instance: Instance, cell: MemoryCell, cpu_nodes: dict[int, int]
) -> Iterator[BulkheadError]:
    """Refuse a vCPU whose cell says near and whose host CPU is on another node."""
    by_vcpu = {pin.vcpu: pin.host_cpu for pin in instance.cpus.pins}
    for at, vcpu in enumerate(cell.vcpus):
        cpu = by_vcpu.get(vcpu)
        if cpu is not None and cpu_nodes.get(cpu, cell.node) != cell.node:
            yield InvalidInputError(
                "memory.vcpu_far",
                f"vCPU {vcpu} is pinned to CPU {cpu} of node {cpu_nodes[cpu]}, not of node {cell.node}",
                field=f"{place}.vcpus[{at}]",
                hint="pin it to a CPU of the cell's node, or put it into another cell",
            )
