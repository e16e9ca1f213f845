"""What the agent finds on its host, as values: domains, secrets, volumes, seeds, switch ports, devices.

Drivers make these; the reconciler compares them with the assignment. Everything tagged as ours carries
deployment, id and generation in its own metadata (domain `<metadata>`, OVS `external_ids`, file names), so
that nothing has to be remembered to know what a thing is.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class DomainState(StrEnum):
    """The few states that matter for deciding."""

    RUNNING = "running"
    SHUTOFF = "shutoff"
    #: Paused, crashed, blocked in shutdown: alive in some way, but not doing its work.
    OTHER = "other"


@dataclass(frozen=True)
class ObservedDomain:
    """A libvirt domain that carries our metadata."""

    instance: str
    tenant: str
    deployment: str
    generation: int
    #: `LaunchSpec.digest()` of what it was defined from.
    digest: str
    state: DomainState
    #: QEMU's pid while it lives.
    pid: int | None
    #: uid that QEMU runs as, from the definition.
    uid: int
    #: What the definition holds, read back from its XML: host CPUs of vCPUs, PCI addresses, volume ids,
    #: port ids.
    cpus: frozenset[int]
    devices: tuple[str, ...]
    volumes: tuple[str, ...]
    ports: tuple[str, ...]


@dataclass(frozen=True)
class ObservedSecret:
    """A libvirt secret of ours: exists only between put and drop around a start."""

    volume: str


@dataclass(frozen=True)
class ObservedVolume:
    """A volume's file."""

    volume: str
    deployment: str
    generation: int
    tenant: str
    size_bytes: int
    #: False while it is being written: a crash leaves it so, and it is made again.
    complete: bool


@dataclass(frozen=True)
class ObservedSeed:
    """A NoCloud seed on tmpfs."""

    instance: str
    generation: int


@dataclass(frozen=True)
class ObservedPort:
    """A port of ours on our bridge."""

    port: str
    instance: str
    deployment: str
    #: Interface name in the kernel (the tap).
    interface: str
    #: OpenFlow port number; None until the switch gave one.
    ofport: int | None
    #: `access` or `trunk`, as the database has it.
    vlan_mode: str
    vlan: int | None
    trunks: tuple[int, ...]
    #: Whether our own mark says open; the mark is set in the transaction that sets the tag.
    open: bool


@dataclass(frozen=True)
class ObservedSwitch:
    """The bridge and what hangs on it."""

    exists: bool
    #: `secure` or it is not ours.
    fail_mode: str
    ports: tuple[ObservedPort, ...]
    #: Interfaces on our bridge that carry no id of ours (the bridge's own port and the uplink left out).
    foreign: tuple[str, ...] = ()
    #: OpenFlow number of the uplink, where there is one.
    uplink_ofport: int | None = None


@dataclass(frozen=True)
class GroupMember:
    """One function of an IOMMU group."""

    address: str
    class_code: str
    driver: str | None

    @property
    def is_bridge(self) -> bool:
        """Bridges do not spoil a group."""
        return self.class_code.startswith("06")


@dataclass(frozen=True)
class ObservedDevice:
    """A PCI function now."""

    address: str
    vendor: str
    device: str
    class_code: str
    node: int
    driver: str | None
    driver_override: str | None
    group: int | None
    members: tuple[GroupMember, ...]
    reset_methods: tuple[str, ...]
    #: Processes that hold the group's /dev/vfio file open now.
    holders: tuple[int, ...]
    serial: str = ""
    #: False when configuration space reads all ones or header type 127: the device is wedged.
    responds: bool = True


@dataclass(frozen=True)
class ResetEvidence:
    """What was done to a device between tenants and what it answered."""

    address: str
    #: The kernel's method that was tried first (`bus`, `flr`, ...).
    method: str
    duration_s: float
    responds: bool
    #: DESIGN §4's class of evidence; a plain reset proves no memory clearing.
    evidence_class: str = "reset_only"
