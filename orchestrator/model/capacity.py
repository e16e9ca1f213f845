"""What a host can give, and what an instance demands: the two sides that placement brings together.

Values only; who holds what is the store's, who gets what is `placement`'s. The scheduler fills them from one
look at the database, offline planning from a file.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Set
from dataclasses import dataclass, field

from orchestrator.model.assignment import MAX_DISK_GIB, MAX_MEMORY_MIB, IsolationClass
from orchestrator.model.errors import InvalidInputError
from orchestrator.model.host import HostCpu, HostFacts
from orchestrator.model.states import GpuState, HostState

#: Kind (`cpu`, `gpu`) and unit (a CPU's number, a GPU's id) of a claim row.
Claim = tuple[str, str]
#: All that two demands must have in common to fit the same places.
Shape = tuple[int, int, int, int, str, int, str, int, str]

#: What one instance of an assignment can hold (`model.assignment`); a cell has at least so much memory.
MAX_VCPUS = 512
MAX_GPUS = 64
MIN_CELL_MIB = 64
PAGE_SIZES_KIB = (4, 2048, 1048576)


@dataclass(frozen=True, slots=True)
class CoreCapacity:
    """One physical core: the unit of CPU that isolates, with all its threads.

    Args:
        threads: host CPU numbers, rising.
        host_share: the host keeps one of its threads, so that no tenant may have any.
    """

    node: int
    socket: int
    threads: tuple[int, ...]
    host_share: bool


@dataclass(frozen=True, slots=True)
class PageCapacity:
    """Hugepages of one size on one node, counted in pages."""

    node: int
    page_size_kib: int
    total: int
    used: int


@dataclass(frozen=True, slots=True)
class GpuCapacity:
    """One whole GPU.

    Args:
        model: PCI ids as instance types name them, `vendor:device`.
        node: host NUMA node; -1 where the host does not know.
    """

    id: str
    address: str
    vendor: str
    device: str
    model: str
    serial: str
    node: int
    state: GpuState


@dataclass(frozen=True)
class HostCapacity:
    """One host at one moment.

    Args:
        generation: raised by each claim and release; a placement holds only for the one it was made for.
        host_cpus: CPUs that the host keeps, rising; QEMU's own threads run there.
        taken: what instances hold.
        core_tenants: lowest thread of a core to the tenant that holds the core; a core stands here even when
            only some of its threads are in `taken`.
    """

    id: str
    name: str
    state: HostState
    generation: int
    cores: tuple[CoreCapacity, ...]
    host_cpus: tuple[int, ...]
    pages: tuple[PageCapacity, ...]
    gpus: tuple[GpuCapacity, ...] = ()
    disk_gib: int = 0
    used_disk_gib: int = 0
    taken: frozenset[Claim] = frozenset()
    core_tenants: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Demand:
    """What one instance needs of a host.

    Args:
        request: id of its capacity request; with `submitted_ms` its place in the queue.
        gpu_model: PCI ids `vendor:device` that each GPU must have; None takes any.
        disk_gib: what its new volumes take; those that live on `pinned_host` are counted there already.
        threads_per_core: 1 gives each vCPU a core of its own, 2 gives each two vCPUs the siblings of one.
        pinned_host: the host where its volumes live; None when it is free to go anywhere.
        on_no_capacity: `wait` or `fail`.

    Raises:
        InvalidInputError: `demand.bounds`, `demand.half_core`, `demand.broken_page`: no host can ever run it.
    """

    request: str
    tenant: str
    vcpus: int
    memory_mib: int
    page_size_kib: int
    gpus: int = 0
    gpu_model: str | None = None
    disk_gib: int = 0
    isolation: str = IsolationClass.DEDICATED.value
    threads_per_core: int = 1
    pinned_host: str | None = None
    on_no_capacity: str = "wait"
    submitted_ms: int = 0

    def __post_init__(self) -> None:
        bounds = (
            ("vcpus", self.vcpus, 1, MAX_VCPUS),
            ("memory_mib", self.memory_mib, MIN_CELL_MIB, MAX_MEMORY_MIB),
            ("gpus", self.gpus, 0, MAX_GPUS),
            ("disk_gib", self.disk_gib, 0, MAX_DISK_GIB),
            ("threads_per_core", self.threads_per_core, 1, 2),
        )
        for name, value, low, high in bounds:
            if not low <= value <= high:
                raise InvalidInputError(
                    "demand.bounds", f"{name} is {value}; it must be {low} to {high}", field=name
                )
        if self.page_size_kib not in PAGE_SIZES_KIB:
            sizes = ", ".join(map(str, PAGE_SIZES_KIB))
            raise InvalidInputError(
                "demand.bounds",
                f"page_size_kib is {self.page_size_kib}; it must be one of {sizes}",
                field="page_size_kib",
            )
        if self.vcpus % self.threads_per_core:
            raise InvalidInputError(
                "demand.half_core",
                f"{self.vcpus} vCPUs do not make cores of {self.threads_per_core} threads",
                field="vcpus",
                hint="ask for an even number of vCPUs, or for threads_per_core 1",
            )
        if self.memory_mib * 1024 % self.page_size_kib:
            raise InvalidInputError(
                "demand.broken_page",
                f"{self.memory_mib} MiB are no whole number of {self.page_size_kib} KiB pages",
                field="memory_mib",
            )

    @property
    def cores(self) -> int:
        """Whole host cores that it takes."""
        return self.vcpus // self.threads_per_core

    @property
    def shape(self) -> Shape:
        """Say all that decides where it fits: not whose it is, nor when it came."""
        return (
            self.vcpus,
            self.memory_mib,
            self.page_size_kib,
            self.gpus,
            self.gpu_model or "",
            self.disk_gib,
            self.isolation,
            self.threads_per_core,
            self.pinned_host or "",
        )


def cores_of(cpus: Collection[HostCpu], host_cpus: Set[int]) -> tuple[CoreCapacity, ...]:
    """Put a host's threads together to cores, in the order of their lowest thread.

    Args:
        host_cpus: the threads that the host keeps.
    """
    sockets = {cpu.cpu: (cpu.node, cpu.socket) for cpu in cpus}
    # A sibling that the kernel has taken offline is named by its partner only, and cannot be pinned.
    threads_of = {tuple(sorted((cpu.siblings | {cpu.cpu}) & sockets.keys())) for cpu in cpus}
    return tuple(
        CoreCapacity(*sockets[threads[0]], threads, not host_cpus.isdisjoint(threads))
        for threads in sorted(threads_of)
    )


def capacity_of(
    facts: HostFacts,
    *,
    host: str,
    name: str,
    generation: int = 1,
    state: HostState = HostState.READY,
    gpus: Iterable[GpuCapacity] = (),
    disk_gib: int = 0,
) -> HostCapacity:
    """Say what a host is made of, nothing of it taken yet.

    Memory is what stands reserved in hugepages, each size by itself: ordinary memory is the host's.

    Args:
        facts: as its probe read them.
        host: its id.
        gpus: its pool, which only the store knows by id.
    """
    pages = tuple(
        PageCapacity(node.node, size_kib, node.hugepages[size_kib].total, 0)
        for node in sorted(facts.nodes, key=lambda each: each.node)
        for size_kib in sorted(node.hugepages)
        if node.hugepages[size_kib].total
    )
    return HostCapacity(
        id=host,
        name=name,
        state=state,
        generation=generation,
        cores=cores_of(facts.cpus, facts.host_cpus),
        host_cpus=tuple(sorted(facts.host_cpus & {cpu.cpu for cpu in facts.cpus})),
        pages=pages,
        gpus=tuple(sorted(gpus, key=lambda gpu: gpu.address)),
        disk_gib=disk_gib,
    )
