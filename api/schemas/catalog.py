"""Instance types and images."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, StringConstraints, model_validator

from api.schemas.common import PCI_MODEL, In, Name, Out, Reference, RuleError, Whole, at
from orchestrator.model.assignment import MAX_DISK_GIB, MAX_MEMORY_MIB
from orchestrator.model.capacity import MAX_GPUS, MAX_VCPUS, MIN_CELL_MIB
from orchestrator.model.catalog import Image, InstanceType


def _where(field: str, shown: dict[str, Any], then: dict[str, Any]) -> dict[str, Any]:
    """Where `field` is sent and is so, then this holds of the others."""
    return {"if": {"properties": {field: shown}, "required": [field]}, "then": then}


#: What `_can_run` demands, as the document says it. 2 MiB pages are what an unnamed size means.
_RULES: dict[str, Any] = {
    "allOf": [
        _where("threads_per_core", {"const": 2}, {"properties": {"vcpus": {"multipleOf": 2}}}),
        _where("page_size_kib", {"const": 1048576}, {"properties": {"memory_mib": {"multipleOf": 1024}}}),
        _where("page_size_kib", {"const": 4}, {})
        | {"else": {"properties": {"memory_mib": {"multipleOf": 2}}}},
        _where(
            "gpu_model", {"type": "string"}, {"properties": {"gpus": {"minimum": 1}}, "required": ["gpus"]}
        ),
    ]
}


class InstanceTypeIn(In):
    """A shape to be offered."""

    model_config = ConfigDict(json_schema_extra=_RULES)

    name: Name
    vcpus: Whole = Field(ge=1, le=MAX_VCPUS)
    memory_mib: Whole = Field(ge=MIN_CELL_MIB, le=MAX_MEMORY_MIB)
    page_size_kib: Literal[4, 2048, 1048576] = 2048
    threads_per_core: Literal[1, 2] = 1
    gpus: Whole = Field(default=0, ge=0, le=MAX_GPUS)
    #: PCI ids `vendor:device`.
    gpu_model: Annotated[str, StringConstraints(pattern=PCI_MODEL)] | None = None
    disk_gib: Whole = Field(ge=1, le=MAX_DISK_GIB)
    isolation: Literal["dedicated", "mig-vgpu", "fabric"] = "dedicated"

    @model_validator(mode="after")
    def _can_run(self) -> Self:
        if self.vcpus % self.threads_per_core:
            raise RuleError("instance_type.half_core", "vCPUs must fill whole cores", field="vcpus")
        if self.memory_mib * 1024 % self.page_size_kib:
            raise RuleError("instance_type.broken_page", "memory must fill whole pages", field="memory_mib")
        if self.gpu_model is not None and not self.gpus:
            raise RuleError("instance_type.no_gpu", "a GPU model needs a GPU", field="gpu_model")
        return self

    def shape(self) -> dict[str, Any]:
        """The fields of its value."""
        return self.model_dump()


class InstanceTypeOut(Out):
    """A shape that instances can have."""

    id: str
    name: str
    vcpus: int
    memory_mib: int
    page_size_kib: int
    threads_per_core: int
    gpus: int
    gpu_model: str | None
    disk_gib: int
    isolation: str
    created_at: str

    @classmethod
    def of(cls, kind: InstanceType) -> InstanceTypeOut:
        """From its value."""
        return cls(
            id=kind.id,
            name=kind.name,
            vcpus=kind.vcpus,
            memory_mib=kind.memory_mib,
            page_size_kib=kind.page_size_kib,
            threads_per_core=kind.threads_per_core,
            gpus=kind.gpus,
            gpu_model=kind.gpu_model,
            disk_gib=kind.disk_gib,
            isolation=kind.isolation,
            created_at=at(kind.created_ms),
        )


class ImageIn(In):
    """An image to be registered by content; without a tenant it is for everybody."""

    name: Name
    digest: Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
    size_bytes: Whole = Field(ge=512, lt=2**50)
    firmware: Literal["uefi", "bios"] = "uefi"
    tenant: Reference | None = None


class ImageOut(Out):
    """An image."""

    id: str
    name: str
    tenant_id: str | None
    digest: str
    size_bytes: int
    firmware: str
    created_at: str

    @classmethod
    def of(cls, image: Image) -> ImageOut:
        """From its value."""
        return cls(
            id=image.id,
            name=image.name,
            tenant_id=image.tenant_id,
            digest=image.digest,
            size_bytes=image.size_bytes,
            firmware=image.firmware,
            created_at=at(image.created_ms),
        )
