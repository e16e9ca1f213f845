"""What the kernel says about one running instance, as values: the input of `isolation.verdicts`.

Filled by `agent.evidence.KernelInspector` from /proc and /sys, or made up by the simulated host. A field
that was not read is None, which becomes UNKNOWN and never PASS. Nothing is kept that is not judged: argv and
environment hold what must not be copied, so only answers to questions about them stand here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.model.observed import ObservedPort

#: A resource limit that is not limited.
UNLIMITED = -1


@dataclass(frozen=True)
class CoreFacts:
    """Whether the kernel would write this process to a disk when it crashes."""

    #: RLIMIT_CORE, or UNLIMITED.
    soft_bytes: int
    hard_bytes: int
    #: /proc/sys/kernel/core_pattern; one that starts with `|` is a program: it gets the dump even at limit 0.
    pattern: str


@dataclass(frozen=True)
class RamFacts:
    """Guest RAM as `numa_maps` shows it: the mappings that hold it, not QEMU's own memory."""

    #: KiB by the kernel's page size in KiB, then by node.
    kib: Mapping[int, Mapping[int, int]]
    #: Memory policies of those mappings: `bind:1`, `default`, `prefer:0`, ...
    policies: frozenset[str]


@dataclass(frozen=True)
class KsmFacts:
    """Kernel samepage merging. A kernel without it is `run=0, pages_shared=0, merging_pages=0`."""

    run: int
    #: Over the whole host.
    pages_shared: int
    #: Of this process; None before Linux 5.19, which does not say.
    merging_pages: int | None


@dataclass(frozen=True)
class DeviceFacts:
    """One PCI function that the instance was ordered, read again after its start."""

    vendor: str
    device: str
    node: int
    driver: str | None
    driver_override: str | None
    #: Addresses of all functions of its IOMMU group that are no bridges; None without a group.
    members: frozenset[str] | None
    #: Processes that have the group's or the function's own file below /dev/vfio open; None if any process
    #: could not be looked into.
    holders: tuple[int, ...] | None


@dataclass(frozen=True)
class DiskFacts:
    """One volume's file."""

    #: What `isolation.luks` finds wrong with the header; empty: nothing; None: it could not be read.
    header_problems: tuple[str, ...] | None
    uid: int
    gid: int
    #: Permission bits.
    mode: int
    #: Processes that have the file open.
    holders: tuple[int, ...] | None


@dataclass(frozen=True)
class Neighbour:
    """Another process that runs a virtual machine (holds a `kvm-vm` descriptor)."""

    pid: int
    uid: int
    #: Where any of its threads may run.
    cpus: frozenset[int]
    #: Its label from the security module; empty when it has none.
    label: str
    #: Tenant by the hypervisor's metadata; None: not one of ours, or not known.
    tenant: str | None = None


@dataclass(frozen=True)
class InstanceFacts:
    """One look at one running instance. None is: not read."""

    pid: int | None = None
    #: Clock ticks since boot, field 22 of /proc/PID/stat: with the pid it names the process for ever.
    start_ticks: int | None = None
    #: `-name guest=` of the process' argv.
    guest_name: str | None = None

    #: Real, effective, saved and file system ids together.
    uids: frozenset[int] | None = None
    gids: frozenset[int] | None = None
    #: Supplementary groups.
    groups: frozenset[int] | None = None
    cap_effective: int | None = None
    cap_permitted: int | None = None
    no_new_privs: bool | None = None
    #: 2 is filtering.
    seccomp: int | None = None
    #: Value of argv's `-sandbox`; empty without one.
    sandbox: str | None = None
    #: /proc/PID/attr/current.
    label: str | None = None
    own_mount_namespace: bool | None = None
    core: CoreFacts | None = None

    #: `KVM` or `TCG`, from the names of the vCPU threads.
    accelerator: str | None = None
    #: vCPU number to the host CPUs where its thread may run.
    vcpu_threads: Mapping[int, frozenset[int]] | None = None
    #: All other threads by tid.
    emulator_threads: Mapping[int, frozenset[int]] | None = None
    #: Threads among the process' own that run no code of it but the kernel's (vhost's, KVM's page recovery).
    kernel_threads: Mapping[int, frozenset[int]] | None = None

    ram: RamFacts | None = None
    ksm: KsmFacts | None = None
    #: VmSwap of the process.
    swapped_kib: int | None = None
    #: Active swap areas that are neither encrypted nor in memory.
    plain_swaps: tuple[str, ...] | None = None

    #: By address.
    devices: Mapping[str, DeviceFacts] | None = None
    #: Addresses of all functions whose file below /dev/vfio this process has open.
    vfio_held: frozenset[str] | None = None
    #: vfio's parameter that accepts hosts without interrupt remapping.
    unsafe_interrupts: bool | None = None
    #: vfio's parameter that accepts hosts without an IOMMU.
    unsafe_noiommu: bool | None = None

    #: By volume id.
    disks: Mapping[str, DiskFacts] | None = None
    #: Type of the file system that holds the seed and the console log.
    seed_filesystem: str | None = None
    console_filesystem: str | None = None

    #: How many secrets stand unencrypted in argv.
    plain_secrets: int | None = None
    #: Types of the file systems of the files that argv's secrets are read from or encrypted with.
    secret_filesystems: frozenset[str] | None = None
    #: Volumes of this instance whose passphrase the hypervisor still holds.
    secrets_left: frozenset[str] | None = None

    neighbours: tuple[Neighbour, ...] | None = None
    #: Ports of this instance by the switch's database.
    ports: tuple[ObservedPort, ...] | None = None
