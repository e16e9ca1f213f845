"""The action table: one row for each operation id of the API. What is not listed, nobody may do.

Who reads it finds every right in one place. Decides nothing about one principal: `decide` does that. The
gate looks routes up here, and a test holds the table against the OpenAPI document.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.access.roles import ADMIN, AUDIT, AUDITOR, MEMBER, OPERATOR, READ, TENANT_ADMIN, WRITE


@dataclass(frozen=True)
class Action:
    """One thing that can be asked for.

    Args:
        name: noun and verb, such as `instance.create`.
        platform_roles, tenant_roles: who of the platform's, and who of the tenant's own people may.
        scope: what the token must carry; None takes any token.
        in_tenant: it is about things of the tenant that the path names.
        changes: it changes something.
        audited_read: it changes nothing, and stands in the audit log all the same.
    """

    name: str
    platform_roles: frozenset[str]
    tenant_roles: frozenset[str]
    scope: str | None
    in_tenant: bool
    changes: bool
    audited_read: bool = False

    @property
    def roles(self) -> frozenset[str]:
        """Everybody who may, wherever they belong."""
        return self.platform_roles | self.tenant_roles


_NOBODY: frozenset[str] = frozenset()
_OPERATOR = frozenset({OPERATOR})
_PLATFORM = frozenset({OPERATOR, AUDITOR})
_ADMIN = frozenset({TENANT_ADMIN})
_MEMBERS = frozenset({TENANT_ADMIN, MEMBER})
_TENANT = frozenset({TENANT_ADMIN, MEMBER, AUDITOR})
_OVERSIGHT = frozenset({TENANT_ADMIN, AUDITOR})


def _fleet_read(name: str) -> Action:
    """Read what is the platform's own."""
    return Action(name, _PLATFORM, _NOBODY, READ, in_tenant=False, changes=False)


def _fleet_change(name: str) -> Action:
    return Action(name, _OPERATOR, _NOBODY, ADMIN, in_tenant=False, changes=True)


def _shared_read(name: str, scope: str | None = READ) -> Action:
    """Read what is the platform's and meant for everybody."""
    return Action(name, _PLATFORM, _TENANT, scope, in_tenant=False, changes=False)


def _tenant_set(name: str) -> Action:
    """Change a tenant itself, which its own people may not."""
    return Action(name, _OPERATOR, _NOBODY, ADMIN, in_tenant=True, changes=True)


def _read(name: str) -> Action:
    return Action(name, _PLATFORM, _TENANT, READ, in_tenant=True, changes=False)


def _people_read(name: str) -> Action:
    return Action(name, _PLATFORM, _OVERSIGHT, READ, in_tenant=True, changes=False)


def _people_change(name: str) -> Action:
    """Manage a tenant's people; operators may, or nobody could let the first one in."""
    return Action(name, _OPERATOR, _ADMIN, ADMIN, in_tenant=True, changes=True)


def _own_token_change(name: str) -> Action:
    """Manage tokens: a member only its own, to which the controller narrows it."""
    return Action(name, _OPERATOR, _MEMBERS, ADMIN, in_tenant=True, changes=True)


def _make(name: str) -> Action:
    """Use the tenant's quota, which only its own people do."""
    return Action(name, _NOBODY, _MEMBERS, WRITE, in_tenant=True, changes=True)


def _run(name: str) -> Action:
    """Start, stop or take away; operators may too, to repair and to clear."""
    return Action(name, _OPERATOR, _MEMBERS, WRITE, in_tenant=True, changes=True)


#: In the order of the API's pages.
ACTIONS: Mapping[str, Action] = {
    # Anybody known, with any token.
    "get_api": _shared_read("api.get", scope=None),
    "get_whoami": _shared_read("whoami.get", scope=None),
    # Tenants.
    "list_tenants": _fleet_read("tenant.list"),
    "create_tenant": _fleet_change("tenant.create"),
    "get_tenant": _read("tenant.get"),
    "update_tenant": _tenant_set("tenant.update"),
    "delete_tenant": _tenant_set("tenant.delete"),
    "get_quota": _read("quota.get"),
    "set_quota": _tenant_set("quota.set"),
    # What instances are made of. Images of one tenant are narrowed by the controller.
    "list_instance_types": _shared_read("instance_type.list"),
    "create_instance_type": _fleet_change("instance_type.create"),
    "get_instance_type": _shared_read("instance_type.get"),
    "delete_instance_type": _fleet_change("instance_type.delete"),
    "list_images": _shared_read("image.list"),
    "create_image": _fleet_change("image.create"),
    "get_image": _shared_read("image.get"),
    "delete_image": _fleet_change("image.delete"),
    # The fleet.
    "get_deployment": _fleet_read("deployment.get"),
    "resume_deployment": _fleet_change("deployment.resume"),
    "list_hosts": _fleet_read("host.list"),
    "create_host": _fleet_change("host.create"),
    "get_host": _fleet_read("host.get"),
    "get_host_evidence": _fleet_read("host.evidence"),
    "get_host_doctor": _fleet_read("host.doctor"),
    "examine_host": _fleet_change("host.ask_doctor"),
    "remove_host": _fleet_change("host.remove"),
    "revoke_host": _fleet_change("host.revoke"),
    "create_join_token": _fleet_change("host.join_token"),
    "cordon_host": _fleet_change("host.cordon"),
    "uncordon_host": _fleet_change("host.uncordon"),
    "drain_host": _fleet_change("host.drain"),
    "fence_host": _fleet_change("host.fence"),
    "evacuate_host": _fleet_change("host.evacuate"),
    "remove_stray": _fleet_change("host.remove_stray"),
    "list_gpus": _fleet_read("gpu.list"),
    "get_gpu": _fleet_read("gpu.get"),
    "quarantine_gpu": _fleet_change("gpu.quarantine"),
    "release_gpu": _fleet_change("gpu.release"),
    "list_requests": _fleet_read("request.list"),
    # The platform's own people, work and log.
    "list_operators": _fleet_read("operator.list"),
    "create_operator": _fleet_change("operator.create"),
    "delete_operator": _fleet_change("operator.delete"),
    "create_operator_token": _fleet_change("operator_token.create"),
    "list_operator_tokens": _fleet_read("operator_token.list"),
    "delete_operator_token": _fleet_change("operator_token.delete"),
    "list_platform_operations": _fleet_read("platform_operation.list"),
    "get_platform_operation": _fleet_read("platform_operation.get"),
    "platform_events": _fleet_read("platform_event.watch"),
    "export_platform_audit": Action(
        "platform_audit.export", _PLATFORM, _NOBODY, AUDIT, in_tenant=False, changes=False, audited_read=True
    ),
    # A tenant's people.
    "list_users": _people_read("user.list"),
    "create_user": _people_change("user.create"),
    "get_user": _people_read("user.get"),
    "delete_user": _people_change("user.delete"),
    "set_user_roles": _people_change("user.set_roles"),
    "list_tokens": _read("token.list"),
    "create_token": _own_token_change("token.create"),
    "delete_token": _own_token_change("token.delete"),
    # A tenant's things.
    "list_networks": _read("network.list"),
    "create_network": _make("network.create"),
    "get_network": _read("network.get"),
    "delete_network": _run("network.delete"),
    "list_volumes": _read("volume.list"),
    "create_volume": _make("volume.create"),
    "get_volume": _read("volume.get"),
    "delete_volume": _run("volume.delete"),
    "list_instances": _read("instance.list"),
    "create_instance": _make("instance.create"),
    "get_instance": _read("instance.get"),
    "delete_instance": _run("instance.delete"),
    "start_instance": _run("instance.start"),
    "stop_instance": _run("instance.stop"),
    "restart_instance": _run("instance.restart"),
    "attach_volume": _run("volume.attach"),
    "detach_volume": _run("volume.detach"),
    "get_instance_evidence": _read("instance.evidence"),
    # What a guest prints and is told is the tenant's alone: nobody of the platform's looks.
    "create_console_ticket": _make("console_ticket.create"),
    "get_console_log": Action(
        "console_log.get", _NOBODY, _TENANT, READ, in_tenant=True, changes=False, audited_read=True
    ),
    # A tenant's work and log.
    "list_operations": _read("operation.list"),
    "get_operation": _read("operation.get"),
    "cancel_operation": _run("operation.cancel"),
    "list_tenant_requests": _read("tenant_request.list"),
    "tenant_events": _read("tenant_event.watch"),
    "export_tenant_audit": Action(
        "tenant_audit.export", _PLATFORM, _OVERSIGHT, AUDIT, in_tenant=True, changes=False, audited_read=True
    ),
}


def action_of(operation_id: str) -> Action | None:
    """The action that a route's operation id stands for; None when the table does not list it."""
    return ACTIONS.get(operation_id)
