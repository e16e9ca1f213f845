"""vCPUs: how many, where each is pinned, and which sockets, cores, threads and NUMA cells the guest sees.

Never chooses a host CPU: the assignment says each. Called by `domain`.
"""

from __future__ import annotations

from lxml import etree

from orchestrator.agent.libvirt.features import CpuMode, HostFeatures
from orchestrator.agent.libvirt.xml.elements import node
from orchestrator.model.assignment import Instance
from orchestrator.model.cpus import format_cpu_list
from orchestrator.model.errors import InvalidInputError


def vcpus(instance: Instance) -> etree._Element:
    """All vCPUs, present from the start."""
    return node("vcpu", placement="static", text=str(len(instance.cpus.pins)))


def cputune(instance: Instance) -> etree._Element:
    """One host CPU for each vCPU; QEMU's own threads on theirs."""
    pins = sorted(instance.cpus.pins, key=lambda pin: pin.vcpu)
    return node(
        "cputune",
        *(node("vcpupin", vcpu=pin.vcpu, cpuset=pin.host_cpu) for pin in pins),
        node("emulatorpin", cpuset=format_cpu_list(instance.cpus.emulator)),
    )


def cpu(instance: Instance, features: HostFeatures) -> etree._Element:
    """The CPU model, topology and NUMA cells.

    Raises:
        InvalidInputError: `domain.topology`: the vCPUs do not make whole cores.
    """
    sockets, cores, threads = topology(instance)
    widest = node("maxphysaddr", mode="passthrough") if features.phys_bits else None
    shape = node("topology", sockets=sockets, dies=1, cores=cores, threads=threads)
    inside = [shape, widest, _cells(instance)]
    if features.cpu_mode is CpuMode.HOST_PASSTHROUGH:
        # Not migratable: a VM with a GPU never moves, and may see all its host's CPU can do.
        return node("cpu", *inside, mode="host-passthrough", check="none", migratable="off")
    return node("cpu", *inside, mode="host-model", check="partial")


def topology(instance: Instance) -> tuple[int, int, int]:
    """Return sockets, cores per socket and threads per core.

    One socket per NUMA cell where cells are equal runs of vCPUs, so that caches and cells agree; else one.

    Raises:
        InvalidInputError: `domain.topology`.
    """
    count, threads = len(instance.cpus.pins), instance.cpus.threads_per_core
    if count % threads:
        raise InvalidInputError(
            "domain.topology",
            f"{count} vCPUs are no whole cores of {threads} threads",
            field="cpus.threads_per_core",
        )
    cells = instance.memory.cells
    each, rest = divmod(count, len(cells))
    runs = all(
        sorted(cell.vcpus) == list(range(index * each, (index + 1) * each))
        for index, cell in enumerate(cells)
    )
    sockets = len(cells) if runs and not rest and each % threads == 0 else 1
    return sockets, count // sockets // threads, threads


def _cells(instance: Instance) -> etree._Element:
    return node(
        "numa",
        *(
            node(
                "cell",
                id=index,
                cpus=format_cpu_list(cell.vcpus) or None,
                memory=cell.memory_mib * 1024,
                unit="KiB",
            )
            for index, cell in enumerate(instance.memory.cells)
        ),
    )
