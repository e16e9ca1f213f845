"""Guest memory: how much, in which pages, and strictly from which host nodes.

Never shared with another VM (no KSM) and never in a core dump. Called by `domain`.
"""

from __future__ import annotations

from lxml import etree

from orchestrator.agent.libvirt.xml.elements import node
from orchestrator.model.assignment import Instance
from orchestrator.model.cpus import format_cpu_list

#: The kernel's ordinary page: no hugepages then.
ORDINARY_PAGE_KIB = 4


def amount(instance: Instance) -> etree._Element:
    """All cells together; left out of any dump of QEMU's memory."""
    total_mib = sum(cell.memory_mib for cell in instance.memory.cells)
    return node("memory", unit="KiB", dumpCore="off", text=str(total_mib * 1024))


def backing(instance: Instance) -> etree._Element:
    """Hugepages for every guest cell, and no merging of equal pages whatever their size."""
    huge = None
    if instance.memory.page_size_kib != ORDINARY_PAGE_KIB:
        cells = format_cpu_list(range(len(instance.memory.cells)))
        huge = node("hugepages", node("page", size=instance.memory.page_size_kib, unit="KiB", nodeset=cells))
    return node("memoryBacking", huge, node("nosharepages"))


def numatune(instance: Instance) -> etree._Element:
    """Strict for the process as a whole and for each guest cell: too little memory fails the start."""
    cells = instance.memory.cells
    return node(
        "numatune",
        node("memory", mode="strict", nodeset=format_cpu_list(cell.node for cell in cells)),
        *(
            node("memnode", cellid=index, mode="strict", nodeset=cell.node)
            for index, cell in enumerate(cells)
        ),
    )
