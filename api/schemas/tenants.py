"""Tenants and their quotas, as they are sent and answered."""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field, model_validator

from api.schemas.common import Amount, In, Name, Out, RuleError, at
from orchestrator.model.quota import Quota
from orchestrator.model.tenant import Tenant


def _has_no_default(schema: dict[str, Any]) -> None:
    del schema["default"]


#: What is not named is not set to anything; the document must not say that it is.
_UNNAMED: Any = Field(default=0, json_schema_extra=_has_no_default)


class LimitsIn(In):
    """Limits by dimension; what is not named stays as it is, and is 0 for a new tenant."""

    instances: Amount = _UNNAMED
    vcpus: Amount = _UNNAMED
    memory_mib: Amount = _UNNAMED
    gpus: Amount = _UNNAMED
    volumes: Amount = _UNNAMED
    disk_gib: Amount = _UNNAMED
    networks: Amount = _UNNAMED

    def named(self) -> dict[str, int]:
        """Those that were sent."""
        return self.model_dump(exclude_unset=True)


class AmountsOut(Out):
    """A number for each dimension."""

    instances: int
    vcpus: int
    memory_mib: int
    gpus: int
    volumes: int
    disk_gib: int
    networks: int


class TenantIn(In):
    """A tenant to be made."""

    name: Name
    limits: LimitsIn = Field(default_factory=LimitsIn)


class TenantUpdateIn(In):
    """What of a tenant can be changed."""

    name: Name


class TenantOut(Out):
    """A tenant."""

    id: str
    name: str
    state: str
    generation: int
    created_at: str

    @classmethod
    def of(cls, tenant: Tenant) -> TenantOut:
        """From its value."""
        return cls(
            id=tenant.id,
            name=tenant.name,
            state=tenant.state.value,
            generation=tenant.generation,
            created_at=at(tenant.created_ms),
        )


class QuotaIn(In):
    """Limits to be set."""

    limits: LimitsIn = Field(json_schema_extra={"minProperties": 1})

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not self.limits.named():
            raise RuleError("quota.empty", "name a limit to set", field="limits")
        return self


class QuotaOut(Out):
    """What a tenant may use and does use."""

    tenant_id: str
    limits: AmountsOut
    used: AmountsOut
    generation: int

    @classmethod
    def of(cls, quota: Quota) -> QuotaOut:
        """From its value."""
        return cls(
            tenant_id=quota.tenant_id,
            limits=AmountsOut(**quota.limits),
            used=AmountsOut(**quota.used),
            generation=quota.generation,
        )
