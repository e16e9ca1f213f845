"""A tenant's networks, volumes and instances. Where something runs is for the platform alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from api.schemas.common import ErrorOut, In, Name, Out, Reference, Seconds, Text, Whole, at
from orchestrator.controller.attachments import MAX_ATTACHED
from orchestrator.controller.caller import Caller
from orchestrator.controller.instance_create import NewInstance
from orchestrator.controller.user_data import DEFAULT, SealedUserData
from orchestrator.model.assignment import MAX_DISK_GIB
from orchestrator.model.instance import InstanceRecord
from orchestrator.model.network import Network, NetworkPort
from orchestrator.model.volume import VolumeRecord

MAX_NETWORKS = 8
MAX_USER_DATA = 64 * 1024


def _of_platform(caller: Caller) -> bool:
    return caller.principal.tenant_id is None


_OCTET = "(?:0|[1-9][0-9]?|1[0-9]{2}|2[0-4][0-9]|25[0-5])"
#: What `controller.networks` takes, but for bits behind the prefix: those must be zero, says the format.
_PREFIX = rf"^(?:10\.{_OCTET}|172\.(?:1[6-9]|2[0-9]|3[01])|192\.168)\.{_OCTET}\.{_OCTET}/(?:1[6-9]|2[0-7])$"


class NetworkIn(In):
    """A network to be made: a private IPv4 prefix, which other tenants may use too."""

    name: Name
    cidr: Annotated[str, StringConstraints(pattern=r"^[0-9.]{7,15}/[0-9]{1,2}$")] = Field(
        json_schema_extra={"pattern": _PREFIX, "format": "ipv4network"}
    )


class NetworkOut(Out):
    """A network; the VLAN is told to the platform's people only."""

    id: str
    tenant_id: str
    name: str
    cidr: str
    vlan: int | None
    generation: int
    created_at: str

    @classmethod
    def of(cls, network: Network, caller: Caller) -> NetworkOut:
        """From its value, for one caller."""
        return cls(
            id=network.id,
            tenant_id=network.tenant_id,
            name=network.name,
            cidr=network.cidr,
            vlan=network.vlan if _of_platform(caller) else None,
            generation=network.generation,
            created_at=at(network.created_ms),
        )


class VolumeIn(In):
    """An empty volume to be made."""

    name: Name
    size_gib: Whole = Field(ge=1, le=MAX_DISK_GIB)


class VolumeOut(Out):
    """A volume; its host is told to the platform's people only."""

    id: str
    tenant_id: str
    name: str
    size_gib: int
    image_id: str | None
    state: str
    generation: int
    host_id: str | None
    instance_id: str | None
    boot: bool
    created_at: str

    @classmethod
    def of(cls, volume: VolumeRecord, caller: Caller) -> VolumeOut:
        """From its value, for one caller."""
        return cls(
            id=volume.id,
            tenant_id=volume.tenant_id,
            name=volume.name,
            size_gib=volume.size_gib,
            image_id=volume.image_id,
            state=volume.state.value,
            generation=volume.generation,
            host_id=volume.host_id if _of_platform(caller) else None,
            instance_id=volume.instance_id,
            boot=volume.boot,
            created_at=at(volume.created_ms),
        )


class AttachedOut(Out):
    """A volume as the instance that has it shows it."""

    id: str
    name: str
    size_gib: int
    boot: bool

    @classmethod
    def of(cls, volume: VolumeRecord) -> AttachedOut:
        """From its value."""
        return cls(id=volume.id, name=volume.name, size_gib=volume.size_gib, boot=volume.boot)


class AttachIn(In):
    """Which volume is meant."""

    volume: Reference


class InstanceIn(In):
    """An instance to be made; `volumes` are those it has beside its boot volume."""

    name: Name
    type: Reference
    image: Reference
    networks: list[Reference] = Field(
        default_factory=list, max_length=MAX_NETWORKS, json_schema_extra={"uniqueItems": True}
    )
    volumes: list[Reference] = Field(
        default_factory=list, max_length=MAX_ATTACHED, json_schema_extra={"uniqueItems": True}
    )
    user_data: Annotated[Text, Field(max_length=MAX_USER_DATA)] = DEFAULT
    on_no_capacity: Literal["wait", "fail"] = "wait"
    on_drain: Annotated[
        Literal["stop", "move", "refuse"],
        Field(
            description="When its host is drained: stop it; build it anew elsewhere from its image, without "
            "what is on its boot volume (with data on volumes of its own it is stopped instead); or let "
            "nobody but its tenant stop it."
        ),
    ] = "stop"
    drain_deadline_s: Annotated[
        Seconds | None,
        Field(
            description="How long it may run on in a drain before that becomes of it; one that refuses is "
            "stopped then. Without it: at once, and one that refuses never.",
        ),
    ] = None

    def wanted(self, user_data: SealedUserData | None) -> NewInstance:
        """As the controller takes it, with its user data sealed."""
        return NewInstance(
            name=self.name,
            type=self.type,
            image=self.image,
            networks=tuple(self.networks),
            volumes=tuple(self.volumes),
            user_data=user_data,
            on_no_capacity=self.on_no_capacity,
            on_drain=self.on_drain,
            drain_deadline_s=self.drain_deadline_s,
        )


class PortOut(Out):
    """An instance's place on a network."""

    id: str
    network_id: str
    mac: str
    address: str
    prefix_length: int

    @classmethod
    def of(cls, port: NetworkPort) -> PortOut:
        """From its value."""
        return cls(
            id=port.id,
            network_id=port.network_id,
            mac=port.mac,
            address=port.address,
            prefix_length=port.prefix_length,
        )


class LostVolumeOut(Out):
    """A volume as it was lost; of a boot volume that is the former one, which was made anew."""

    id: str
    name: str
    boot: bool


class RebuiltOut(Out):
    """When and why an instance was built anew from its image, and what it lost with its former host."""

    at: str
    reason: str
    lost_volumes: list[LostVolumeOut]

    @classmethod
    def of(cls, rebuilt: Mapping[str, Any] | None) -> RebuiltOut | None:
        """From what its instance keeps; None if it never was."""
        if rebuilt is None:
            return None
        lost = [LostVolumeOut(**each) for each in rebuilt["lost_volumes"]]
        return cls(at=at(rebuilt["at_ms"]), reason=rebuilt["reason"], lost_volumes=lost)


class InstanceOut(Out):
    """An instance; host and placement are told to the platform's people only."""

    id: str
    tenant_id: str
    name: str
    generation: int
    state: str
    desired: str
    type_name: str
    image_id: str
    vcpus: int
    memory_mib: int
    gpus: int
    gpu_model: str | None
    disk_gib: int
    isolation: str
    firmware: str
    user_data_bytes: int
    ports: list[PortOut]
    volumes: list[AttachedOut]
    host_id: str | None
    placement: dict[str, Any] | None
    error: ErrorOut | None
    rebuilt: RebuiltOut | None
    on_drain: str
    drain_deadline_s: int | None
    failures: int
    operation_id: str | None
    created_at: str
    updated_at: str

    @classmethod
    def of(
        cls,
        instance: InstanceRecord,
        ports: Sequence[NetworkPort],
        volumes: Sequence[VolumeRecord],
        caller: Caller,
    ) -> InstanceOut:
        """From its value, for one caller."""
        inside = _of_platform(caller)
        return cls(
            id=instance.id,
            tenant_id=instance.tenant_id,
            name=instance.name,
            generation=instance.generation,
            state=instance.state.value,
            desired=instance.desired.value,
            type_name=instance.type_name,
            image_id=instance.image_id,
            vcpus=instance.vcpus,
            memory_mib=instance.memory_mib,
            gpus=instance.gpus,
            gpu_model=instance.gpu_model,
            disk_gib=instance.disk_gib,
            isolation=instance.isolation,
            firmware=instance.firmware,
            user_data_bytes=instance.user_data_bytes,
            ports=[PortOut.of(port) for port in ports],
            volumes=[AttachedOut.of(volume) for volume in volumes],
            host_id=instance.host_id if inside else None,
            placement=dict(instance.placement) if inside and instance.placement is not None else None,
            error=ErrorOut.of(instance.error),
            rebuilt=RebuiltOut.of(instance.rebuilt),
            on_drain=instance.on_drain,
            drain_deadline_s=instance.drain_deadline_s,
            failures=instance.failures,
            operation_id=instance.operation_id,
            created_at=at(instance.created_ms),
            updated_at=at(instance.updated_ms),
        )


class EvidenceOut(Out):
    """What its host checked of an instance last; nulls until it ran."""

    instance_id: str
    generation: int
    state: str
    verdicts: list[dict[str, Any]] | None
    resets: list[dict[str, Any]] | None

    @classmethod
    def of(cls, instance: InstanceRecord) -> EvidenceOut:
        """From the instance's value; ids of processes on the host are not among it."""
        found: Mapping[str, Any] = instance.evidence or {}
        return cls(
            instance_id=instance.id,
            generation=instance.generation,
            state=instance.state.value,
            verdicts=found.get("verdicts"),
            resets=found.get("resets"),
        )
