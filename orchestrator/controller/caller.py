"""Who asks, after the gate let them in."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.model.actor import Actor
from orchestrator.model.errors import NotFoundError
from orchestrator.model.principal import Principal
from orchestrator.model.tenant import Tenant
from orchestrator.store.rows import Scope


@dataclass(frozen=True)
class Caller:
    """One asker and the tenant whose things they ask about; None for the platform's."""

    principal: Principal
    scopes: frozenset[str]
    tenant: Tenant | None
    actor: Actor

    @property
    def scope(self) -> Scope:
        """What the queries of this call may see."""
        return Scope(None if self.tenant is None else self.tenant.id)

    @property
    def tenant_id(self) -> str:
        """The tenant of a call that has one.

        Raises:
            NotFoundError: `tenant.unknown`.
        """
        if self.tenant is None:
            raise NotFoundError("tenant.unknown", "there is no such tenant")
        return self.tenant.id


def unknown(noun: str, reference: str) -> NotFoundError:
    """The one answer for what does not exist and for what is another tenant's."""
    shown = reference if reference.isprintable() and len(reference) <= 64 else "that name"
    return NotFoundError(f"{noun}.unknown", f"there is no {noun.replace('_', ' ')} {shown}")
