"""May this principal do this action to this tenant's things? Allowed, forbidden, or hidden.

Hidden is what somebody of another tenant gets, whatever their roles and whether or not the thing exists: the
answer must not depend on anything of the other tenant. Never looks anything up. The gate calls it.
"""

from __future__ import annotations

from collections.abc import Collection
from enum import StrEnum

from orchestrator.access.actions import Action
from orchestrator.access.roles import effective_roles
from orchestrator.model.principal import Principal


class Decision(StrEnum):
    """What comes of asking."""

    ALLOW = "allow"
    #: Answered 403.
    FORBIDDEN = "forbidden"
    #: Answered 404, as if there were nothing.
    HIDDEN = "hidden"


def decide(
    principal: Principal, scopes: Collection[str], action: Action | None, tenant: str | None
) -> Decision:
    """Decide.

    Args:
        scopes: of the token shown.
        action: what the route's operation id stands for; None when the table does not list it.
        tenant: id of the tenant that the path names; None where it names none, or one that does not exist.
    """
    if action is None:
        return Decision.FORBIDDEN
    stranger = principal.tenant_id is not None and principal.tenant_id != tenant
    if action.in_tenant and stranger:
        return Decision.HIDDEN
    may = action.platform_roles if principal.tenant_id is None else action.tenant_roles
    if not effective_roles(principal) & may or (action.scope is not None and action.scope not in scopes):
        return Decision.FORBIDDEN
    # No tenant, no things of a tenant: a query without one would see everybody's.
    if action.in_tenant and tenant is None:
        return Decision.HIDDEN
    return Decision.ALLOW
