"""The action table and the decision: everything that is not said is denied, and strangers see nothing."""

from __future__ import annotations

import re

import pytest

from orchestrator.access.actions import ACTIONS, action_of
from orchestrator.access.decide import Decision, decide
from orchestrator.access.roles import (
    ADMIN,
    AUDIT,
    AUDITOR,
    HOST,
    MEMBER,
    OPERATOR,
    PLATFORM_ROLES,
    READ,
    SCOPES,
    TENANT_ADMIN,
    TENANT_ROLES,
    effective_roles,
    roles_at,
)
from orchestrator.model.principal import Principal

ALLOW, FORBIDDEN, HIDDEN = Decision.ALLOW, Decision.FORBIDDEN, Decision.HIDDEN
OWN, OTHER = "ten_a", "ten_b"
ALL_ROLES = PLATFORM_ROLES | TENANT_ROLES | {HOST}

#: Who may, told a second time and independently of the table: o operator, A platform's auditor, t tenant
#: admin, m member, a tenant's auditor.
MAY = {
    "oAtma": """
        get_api get_whoami get_tenant get_quota list_instance_types get_instance_type list_images
        get_image list_tokens list_networks get_network list_volumes get_volume list_instances
        get_instance get_instance_evidence list_operations get_operation list_tenant_requests
        tenant_events
    """,
    "oA": """
        list_tenants get_deployment list_hosts get_host get_host_evidence get_host_doctor list_gpus get_gpu
        list_requests
        list_operators list_operator_tokens list_platform_operations get_platform_operation platform_events
        export_platform_audit
    """,
    "o": """
        create_tenant update_tenant delete_tenant set_quota create_instance_type
        delete_instance_type create_image delete_image create_host remove_host cordon_host
        revoke_host create_join_token
        uncordon_host examine_host drain_host fence_host evacuate_host remove_stray
        resume_deployment quarantine_gpu release_gpu
        create_operator delete_operator create_operator_token delete_operator_token
    """,
    "oAta": "list_users get_user export_tenant_audit",
    "ot": "create_user delete_user set_user_roles",
    "otm": """
        create_token delete_token delete_network delete_volume delete_instance start_instance
        stop_instance restart_instance attach_volume detach_volume cancel_operation
    """,
    "tm": "create_network create_volume create_instance create_console_ticket",
    "tma": "get_console_log",
}
LETTERS = {
    "o": (None, OPERATOR),
    "A": (None, AUDITOR),
    "t": (OWN, TENANT_ADMIN),
    "m": (OWN, MEMBER),
    "a": (OWN, AUDITOR),
}
LISTED = {operation: letters for letters, text in MAY.items() for operation in text.split()}


def somebody(tenant: str | None, *roles: str, disabled: bool = False) -> Principal:
    return Principal("usr_a", tenant, "user", "ann", roles, "", "", disabled, 1)


def about(operation: str) -> str | None:
    return OWN if ACTIONS[operation].in_tenant else None


def test_the_table_lists_exactly_these():
    assert set(ACTIONS) == set(LISTED)


@pytest.mark.parametrize("operation", sorted(LISTED))
def test_who_may_and_nobody_else(operation):
    for letter, (tenant, role) in LETTERS.items():
        decision = decide(somebody(tenant, role), SCOPES, action_of(operation), about(operation))
        assert decision is (ALLOW if letter in LISTED[operation] else FORBIDDEN), letter


@pytest.mark.parametrize("operation", sorted(ACTIONS))
def test_a_role_counts_only_at_its_place(operation):
    for tenant in (None, OWN):
        misplaced = ALL_ROLES - roles_at(tenant)
        decision = decide(somebody(tenant, *misplaced), SCOPES, action_of(operation), about(operation))
        assert decision is FORBIDDEN


@pytest.mark.parametrize("operation", sorted(ACTIONS))
@pytest.mark.parametrize("roles", [(), (HOST,), ("root",), ("",), ("Operator",), ("operator ",)])
def test_other_roles_are_none(operation, roles):
    for tenant in (None, OWN):
        assert decide(somebody(tenant, *roles), SCOPES, action_of(operation), about(operation)) is FORBIDDEN


@pytest.mark.parametrize("operation", sorted(ACTIONS))
def test_whoever_is_shut_out_may_nothing(operation):
    for tenant in (None, OWN):
        shut_out = somebody(tenant, *ALL_ROLES, disabled=True)
        assert effective_roles(shut_out) == frozenset()
        assert decide(shut_out, SCOPES, action_of(operation), about(operation)) is FORBIDDEN


@pytest.mark.parametrize("operation", sorted(name for name, action in ACTIONS.items() if action.in_tenant))
def test_strangers_see_nothing_whatever_they_hold(operation):
    action = action_of(operation)
    for scopes in (SCOPES, frozenset()):
        for roles in ((), (TENANT_ADMIN,), tuple(ALL_ROLES)):
            stranger = somebody(OTHER, *roles)
            assert decide(stranger, scopes, action, OWN) is HIDDEN
            assert decide(stranger, scopes, action, None) is HIDDEN, (
                "a tenant that does not exist looks the same"
            )


@pytest.mark.parametrize("operation", sorted(name for name, action in ACTIONS.items() if action.in_tenant))
def test_things_of_no_tenant_are_nobodys(operation):
    """A query without a tenant would see everybody's."""
    assert decide(somebody(None, *ALL_ROLES), SCOPES, action_of(operation), None) is not ALLOW


@pytest.mark.parametrize("operation", sorted(ACTIONS))
def test_the_token_must_carry_the_scope(operation):
    action = action_of(operation)
    for tenant in (None, OWN):
        holder = somebody(tenant, *ALL_ROLES)
        if decide(holder, SCOPES, action, about(operation)) is not ALLOW:
            continue
        for scope in SCOPES:
            enough = action.scope in (None, scope)
            assert decide(holder, {scope}, action, about(operation)) is (ALLOW if enough else FORBIDDEN)
            assert decide(holder, SCOPES - {scope}, action, about(operation)) is (
                FORBIDDEN if action.scope == scope else ALLOW
            )
        assert (decide(holder, (), action, about(operation)) is ALLOW) == (action.scope is None)


@pytest.mark.parametrize(
    "operation", ["", "create_instances", "CREATE_INSTANCE", "__class__", "agent_report"]
)
def test_what_is_not_listed_is_denied(operation):
    assert action_of(operation) is None
    for holder in (somebody(None, *ALL_ROLES), somebody(OWN, *ALL_ROLES)):
        assert decide(holder, SCOPES, action_of(operation), OWN) is FORBIDDEN


def test_names_are_noun_and_verb_and_unique():
    names = [action.name for action in ACTIONS.values()]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z_]+\.[a-z_]+", name) for name in names)


def test_scopes_and_marks_follow_from_what_is_done():
    for operation, action in ACTIONS.items():
        reads = operation.startswith(("get_", "list_", "export_")) or operation.endswith("_events")
        assert action.changes is not reads, operation
        assert action.scope in ({READ, AUDIT, None} if reads else {"write", ADMIN}), operation
        assert action.roles <= ALL_ROLES - {HOST}
        assert not (action.audited_read and action.changes)
    exports = {"export_platform_audit", "export_tenant_audit"}
    assert {name for name, action in ACTIONS.items() if action.scope == AUDIT} == exports
    assert {name for name, action in ACTIONS.items() if action.audited_read} == {*exports, "get_console_log"}


def test_an_auditor_changes_nothing():
    for action in ACTIONS.values():
        assert not (action.changes and AUDITOR in action.roles)
