"""One look at a host: its CPUs, NUMA nodes and PCI functions, read from sysfs and procfs.

There is one way of reading: plain files under a root, the machine's own or a recording's. pyudev cannot be
pointed at another root, so it serves `watch` alone. What the kernel does not say stays unknown (-1, empty,
None) and is never made up. Nothing here writes, and no attribute is read that the kernel guards with the
device lock (`driver_override`), so a driver that hangs in its remove does not hang the probe. Called by the
agent's inspector and by `agent probe`.
"""

from __future__ import annotations

from pathlib import Path

from hostprep.probe.cpus import default_host_cpus, read_caches, read_cpus
from hostprep.probe.files import HostPath, read_text
from hostprep.probe.memory import read_nodes
from hostprep.probe.pci import read_function, read_functions
from orchestrator.model.gpus import DEFAULT_MODELS
from orchestrator.model.host import HostFacts

__all__ = ["read_function", "read_host"]

#: Versions and makers only: serial numbers of boards are nobody's business here.
_FIRMWARE = {
    "bios_vendor": "sys/class/dmi/id/bios_vendor",
    "bios_version": "sys/class/dmi/id/bios_version",
    "bios_date": "sys/class/dmi/id/bios_date",
    "board_vendor": "sys/class/dmi/id/board_vendor",
    "board_name": "sys/class/dmi/id/board_name",
    "microcode": "sys/devices/system/cpu/cpu0/microcode/version",
    "kernel": "proc/sys/kernel/osrelease",
}


def read_host(
    root: HostPath = Path("/"),
    host_cpus: frozenset[int] | None = None,
    gpu_models: tuple[str, ...] = DEFAULT_MODELS,
) -> HostFacts:
    """Read what the host under `root` is made of.

    Args:
        root: where `sys` and `proc` are: this machine's, or a recording's.
        gpu_models: what counts as a GPU (`model.gpus`).
        host_cpus: CPUs that stay with the host; None takes the first core of each node.

    Raises:
        HostError: `host.unreadable`: a kernel file holds what no kernel writes.
    """
    nodes = read_nodes(root)
    cpus = read_cpus(root, nodes)
    return HostFacts(
        cpus=cpus,
        nodes=nodes,
        functions=read_functions(root),
        host_cpus=default_host_cpus(cpus) if host_cpus is None else host_cpus,
        boot_id=read_text(root / "proc/sys/kernel/random/boot_id") or "",
        caches=read_caches(root, cpus),
        firmware=read_firmware(root),
        gpu_models=gpu_models,
    )


def read_firmware(root: HostPath) -> dict[str, str]:
    """Read which firmware, microcode and kernel run; what is not told is left out."""
    found = {name: read_text(root / path) for name, path in _FIRMWARE.items()}
    return {name: text for name, text in found.items() if text}
