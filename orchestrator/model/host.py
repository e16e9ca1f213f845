"""What a host is made of: CPUs, NUMA nodes, PCI functions, as read once from the kernel by `hostprep.probe`.

Pure values; admission and verdicts reason over them, the probe fills them, the simulated host makes them up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from orchestrator.model.gpus import DEFAULT_MODELS


@dataclass(frozen=True)
class HostCpu:
    """One logical CPU (hardware thread)."""

    cpu: int
    #: Physical package; -1 where the kernel does not say.
    socket: int
    core: int
    node: int
    #: All threads of the same core, this one included.
    siblings: frozenset[int]


@dataclass(frozen=True)
class Cache:
    """One cache and the logical CPUs that share it."""

    level: int
    #: `data`, `instruction` or `unified`.
    kind: str
    size_kib: int
    cpus: frozenset[int]


@dataclass(frozen=True)
class Hugepages:
    """Pages of one size on one node."""

    total: int
    free: int


@dataclass(frozen=True)
class NumaNode:
    """One node; a node may have no memory or no CPUs."""

    node: int
    cpus: frozenset[int]
    memory_mib: int
    #: By page size in KiB (2048, 1048576).
    hugepages: Mapping[int, Hugepages] = field(default_factory=dict)
    #: To each node in order of number, in the firmware's measure (10 is here); empty where it is not told.
    distances: tuple[int, ...] = ()


@dataclass(frozen=True)
class PciFunction:
    """One PCI function as sysfs shows it."""

    address: str
    #: Four hex digits without 0x.
    vendor: str
    device: str
    #: Six hex digits without 0x: class, subclass, programming interface.
    class_code: str
    #: -1 is unknown and stays unknown.
    node: int
    driver: str | None
    #: IOMMU group number now; not an identity. None where no IOMMU covers the function.
    group: int | None
    reset_methods: tuple[str, ...] = ()
    #: Sizes in bytes of the memory BARs by index.
    bars: Mapping[int, int] = field(default_factory=dict)
    #: Address of the physical function, for a virtual one.
    physical_function: str | None = None
    virtual_functions: int = 0
    serial: str = ""
    #: The bridge right above; None on a root bus.
    parent: str | None = None
    #: Bus of the root complex as sysfs names it (`pci0000:20`); empty where it is not told.
    root_complex: str = ""
    #: ACS controls that are on, by lspci's names; None where the function has no ACS.
    acs: tuple[str, ...] | None = None
    #: How many virtual functions it could have.
    virtual_functions_max: int = 0
    #: Board vendor and device, `10de:16c1`.
    subsystem: str = ""
    revision: str = ""
    #: The firmware shows its console on it.
    boot_display: bool = False

    @property
    def is_bridge(self) -> bool:
        """Bridges (class 06) share groups by nature and are never handed out."""
        return self.class_code.startswith("06")


@dataclass(frozen=True)
class HostFacts:
    """One look at a host."""

    cpus: tuple[HostCpu, ...]
    nodes: tuple[NumaNode, ...]
    functions: tuple[PciFunction, ...]
    #: CPUs that stay with the host (its own work, QEMU's emulator threads); never a tenant's vCPU.
    host_cpus: frozenset[int]
    boot_id: str
    caches: tuple[Cache, ...] = ()
    #: Firmware, microcode and kernel by name.
    firmware: Mapping[str, str] = field(default_factory=dict)
    #: What counts as a GPU on this host (`model.gpus`).
    gpu_models: tuple[str, ...] = DEFAULT_MODELS

    def function(self, address: str) -> PciFunction | None:
        """Find a function by canonical address. Cost: O(functions)."""
        return next((each for each in self.functions if each.address == address), None)

    def group_members(self, group: int) -> tuple[PciFunction, ...]:
        """All functions of an IOMMU group, bridges included, by address."""
        return tuple(sorted((f for f in self.functions if f.group == group), key=lambda f: f.address))
