"""The assignment: what one host must run, as the controller says it and the agent obeys it.

It is the whole truth about placement: exact CPUs, memory per node, devices, addresses; nothing is left to
choose on the host. It never carries a key: keys come through a port of their own. Absence never destroys:
what is to go away stands in `absent`, with id and generation. These messages hold the shape and what can be
told from one field; `orchestrator.isolation.admission` holds the rules between fields and against the host.

Wire form: JSON, version 1, unknown fields refused. `bulkhead agent schema` prints the JSON Schema.
"""

from __future__ import annotations

import ipaddress
from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from orchestrator.model.cpus import MAX_CPU
from orchestrator.model.ids import (
    DeploymentId,
    GpuId,
    HostId,
    InstanceId,
    NetworkId,
    PortId,
    TenantId,
    VolumeId,
)
from orchestrator.model.pci import PCI_ADDRESS_PATTERN

ASSIGNMENT_VERSION = 1

#: Bounds that no real host exceeds; they keep hostile numbers out of loops and 64-bit fields.
MAX_NODE = 1023
MAX_MEMORY_MIB = 64 * 1024 * 1024
MAX_DISK_GIB = 1024 * 1024

CpuNumber = Annotated[int, Field(ge=0, le=MAX_CPU)]
NodeNumber = Annotated[int, Field(ge=0, le=MAX_NODE)]
Generation = Annotated[int, Field(ge=1, lt=2**63)]
#: Names are for people: letters, digits, inner dots and dashes; no control characters, no spaces, no path
#: parts.
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9](?:[a-z0-9.-]{0,61}[a-z0-9])?$", max_length=63)]
Digest = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
Mac = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{2}(?::[0-9a-f]{2}){5}$")]
Address = Annotated[str, StringConstraints(pattern=PCI_ADDRESS_PATTERN)]
PciId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{4}$")]


class _Message(BaseModel):
    """What all messages share: frozen, strict, closed."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class IsolationClass(StrEnum):
    """What the tenant was promised (DESIGN §4)."""

    DEDICATED = "dedicated"
    MIG_VGPU = "mig-vgpu"
    FABRIC = "fabric"


class Power(StrEnum):
    """The wanted power state."""

    RUNNING = "running"
    STOPPED = "stopped"


class Firmware(StrEnum):
    """What boots the disk; direct kernel boot does not exist."""

    UEFI = "uefi"
    BIOS = "bios"


class VcpuPin(_Message):
    """One vCPU and the one host CPU (thread) that it sits on."""

    vcpu: CpuNumber
    host_cpu: CpuNumber


class Cpus(_Message):
    """Dedicated CPUs: every vCPU pinned, QEMU's own threads on `emulator`."""

    pins: tuple[VcpuPin, ...] = Field(min_length=1, max_length=512, strict=False)
    #: Host CPUs for QEMU's emulator threads; they may be the host's own share, never another tenant's.
    emulator: tuple[CpuNumber, ...] = Field(min_length=1, max_length=512, strict=False)
    #: Threads per guest core: 1, or 2 when both siblings of each host core are given.
    threads_per_core: Literal[1, 2] = 1

    @field_validator("threads_per_core", mode="before")
    @classmethod
    def _is_number(cls, value: object) -> object:
        # Python takes true for 1; JSON does not.
        if isinstance(value, bool):
            raise ValueError("must be 1 or 2, not true or false")
        return value


class MemoryCell(_Message):
    """One guest NUMA cell: so much memory, from one host node, next to these vCPUs."""

    node: NodeNumber
    memory_mib: int = Field(ge=64, le=MAX_MEMORY_MIB)
    vcpus: tuple[CpuNumber, ...] = Field(max_length=512, strict=False)


class Memory(_Message):
    """Guest memory in hugepages of one size, strictly from the named nodes."""

    page_size_kib: Literal[4, 2048, 1048576]
    cells: tuple[MemoryCell, ...] = Field(min_length=1, max_length=64, strict=False)


class Device(_Message):
    """A whole PCI function given by VFIO. Identity is slot, ids and serial, never an IOMMU group number."""

    id: GpuId
    address: Address
    vendor: PciId
    device: PciId
    #: Host NUMA node; -1 says that the host does not know, and is never taken for node 0.
    node: int = Field(ge=-1, le=MAX_NODE)
    #: What the device calls itself where it has a serial number; empty where it has none.
    serial: str = Field(default="", max_length=64, pattern=r"^[A-Za-z0-9._-]*$")


class ImageRef(_Message):
    """A tenant image by content: the host has it, or fetches it, under this digest and no other."""

    digest: Digest
    size_bytes: int = Field(ge=512, lt=2**50)
    format: Literal["raw"] = "raw"


class Volume(_Message):
    """An encrypted disk on this host. Its key is asked for by id and generation."""

    id: VolumeId
    generation: Generation
    size_gib: int = Field(ge=1, le=MAX_DISK_GIB)
    #: Written into the volume when it is created, never again.
    image: ImageRef | None = None


class PortAddress(_Message):
    """One address of a port with the prefix of its network."""

    address: str = Field(max_length=45)
    prefix_length: int = Field(ge=1, le=128)

    @model_validator(mode="after")
    def _is_host_address(self) -> Self:
        try:
            parsed = ipaddress.ip_interface(f"{self.address}/{self.prefix_length}")
        except ValueError as exc:
            raise ValueError(f"{self.address}/{self.prefix_length} is not an address with a prefix") from exc
        if "%" in self.address:
            raise ValueError("a port's address has no zone (%...)")
        if str(parsed.ip) != self.address:
            raise ValueError(f"write the address as {parsed.ip}")
        if parsed.ip.is_multicast or parsed.ip.is_unspecified or parsed.ip.is_loopback:
            raise ValueError(f"{self.address} cannot be a port's address")
        shortest = 31 if parsed.version == 4 else 127
        if parsed.network.prefixlen < shortest and parsed.ip == parsed.network.network_address:
            raise ValueError(f"{self.address} is the address of its network, not of a port")
        return self


class Port(_Message):
    """A network port: starts closed, opens last, and may speak only as its MAC and addresses."""

    id: PortId
    network: NetworkId
    #: The network's segment on this fabric; 4095 is the dead VLAN and 0 is no VLAN.
    vlan: int = Field(ge=1, le=4094)
    mac: Mac
    addresses: tuple[PortAddress, ...] = Field(min_length=1, max_length=64, strict=False)
    mtu: int = Field(default=1500, ge=1280, le=9216)

    @field_validator("mac")
    @classmethod
    def _is_unicast(cls, mac: str) -> str:
        first = int(mac[:2], 16)
        if first & 1:
            raise ValueError(f"{mac} is a multicast address")
        if not first & 2:
            raise ValueError(f"{mac} is a vendor's address; ports use locally administered ones (02:...)")
        return mac


#: JSON text of NoCloud's documents: bounded, since it is written to tmpfs for each instance.
SeedText = Annotated[str, StringConstraints(max_length=64 * 1024)]


class Seed(_Message):
    """The NoCloud seed, beyond what the agent itself writes (instance id, hostname, network)."""

    user_data: SeedText = "#cloud-config\n{}\n"


class Instance(_Message):
    """One tenant VM, decided in every detail."""

    id: InstanceId
    generation: Generation
    tenant: TenantId
    name: Name
    power: Power = Field(default=Power.RUNNING, strict=False)
    isolation: IsolationClass = Field(strict=False)
    firmware: Firmware = Field(default=Firmware.UEFI, strict=False)
    cpus: Cpus
    memory: Memory
    devices: tuple[Device, ...] = Field(default=(), max_length=64, strict=False)
    #: The first volume boots.
    volumes: tuple[Volume, ...] = Field(min_length=1, max_length=32, strict=False)
    ports: tuple[Port, ...] = Field(default=(), max_length=32, strict=False)
    seed: Seed = Seed()


class AbsentKind(StrEnum):
    """What can be ordered away."""

    INSTANCE = "instance"
    VOLUME = "volume"
    DEVICE = "device"


class Absent(_Message):
    """An order to remove one thing, up to and including this generation.

    An instance goes with its domain, ports, seed, logs and secrets; its volumes stay until they are absent
    themselves; its devices stay in the pool, on vfio, until they are absent: then the driver they had comes
    back.
    """

    kind: AbsentKind = Field(strict=False)
    id: str = Field(pattern=r"^(vm|vol|gpu)_[a-z0-9](?:[a-z0-9_]{0,38}[a-z0-9])?$", max_length=44)
    generation: Generation

    @model_validator(mode="after")
    def _id_fits_kind(self) -> Self:
        prefix = {"instance": "vm_", "volume": "vol_", "device": "gpu_"}[self.kind.value]
        if not self.id.startswith(prefix):
            raise ValueError(f"the id of an absent {self.kind.value} starts with {prefix}")
        return self


class Closed(_Message):
    """An instance that lives on another host by now: what is here of it, up to this generation, is cut off.

    Its ports close and nothing else is touched: it goes only when it is absent.
    """

    id: InstanceId
    generation: Generation


class Assignment(_Message):
    """What one host must run and what must be gone from it."""

    version: Literal[1]
    deployment: DeploymentId
    host: HostId
    epoch: int = Field(ge=1, lt=2**63)
    revision: int = Field(ge=1, lt=2**63)
    #: After a restored backup the controller only looks: the agent reports and changes nothing.
    observe_only: bool = False
    instances: tuple[Instance, ...] = Field(default=(), max_length=4096, strict=False)
    absent: tuple[Absent, ...] = Field(default=(), max_length=65536, strict=False)
    closed: tuple[Closed, ...] = Field(default=(), max_length=4096, strict=False)
