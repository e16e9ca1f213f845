"""Roles that people hold, and scopes that narrow a token to a part of its holder's roles.

A role counts only at its place: `operator` written on a tenant's user is nothing, and so is `tenant-admin` on
one of the platform's. Decides nothing by itself; the action table and `decide` call it.
"""

from __future__ import annotations

from orchestrator.model.principal import Principal

#: Runs the platform: hosts, tenants, quotas. Does not look into tenants' consoles and makes nothing for them.
OPERATOR = "operator"
#: Reads everything that is told at its place, and exports the audit log; changes nothing.
AUDITOR = "auditor"
#: Manages a tenant's people, and may what a member may.
TENANT_ADMIN = "tenant-admin"
#: Makes and deletes a tenant's instances, volumes and networks.
MEMBER = "member"
#: An agent. It speaks to the agents' listener, where its certificate decides; here it may do nothing.
HOST = "host"

PLATFORM_ROLES = frozenset({OPERATOR, AUDITOR})
TENANT_ROLES = frozenset({TENANT_ADMIN, MEMBER, AUDITOR})

READ = "read"
WRITE = "write"
ADMIN = "admin"
AUDIT = "audit"
#: None contains another: a token that shall read and write says both.
SCOPES = frozenset({READ, WRITE, ADMIN, AUDIT})


def roles_at(tenant: str | None) -> frozenset[str]:
    """The roles that somebody of this tenant, or (None) of the platform, can hold."""
    return PLATFORM_ROLES if tenant is None else TENANT_ROLES


def effective_roles(principal: Principal) -> frozenset[str]:
    """The roles of a principal that count where it belongs; none of somebody who is shut out."""
    if principal.disabled:
        return frozenset()
    return roles_at(principal.tenant_id).intersection(principal.roles)
