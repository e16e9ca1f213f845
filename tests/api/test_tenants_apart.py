"""The cross-tenant matrix, made of the OpenAPI document: every route, asked by everybody who may not.

Another tenant's people get 404, whoever shows an expired token or none 401, and whoever has the wrong role or
scope 403. No answer holds anything of the other tenant's, no row changes, and each stands in the log once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from api.app import routes_only
from orchestrator.access.actions import ACTIONS, Action
from orchestrator.access.roles import AUDITOR, MEMBER, OPERATOR, TENANT_ADMIN
from orchestrator.store.engine import Database
from orchestrator.store.store import Store
from tests.api.deployment import DAY_MS, Deployment, deploy, key
from tests.api.rows import heads, records, rows

#: A body for each route that takes one, such as its owner could send; a matching version for what has one.
BODIES: dict[str, dict[str, Any]] = {
    "create_tenant": {"name": "new"},
    "update_tenant": {"name": "new"},
    "set_quota": {"limits": {"gpus": 40}},
    "create_instance_type": {"name": "new", "vcpus": 1, "memory_mib": 64, "disk_gib": 1},
    "create_image": {"name": "new", "digest": "sha256:" + "3" * 64, "size_bytes": 4096},
    "create_host": {"name": "new", "disk_gib": 1},
    "cordon_host": {"reason": "why not"},
    "uncordon_host": {"reason": "why not"},
    "fence_host": {"reason": "why not", "powered_off": True},
    "evacuate_host": {"reason": "why not"},
    "remove_host": {"reason": "why not"},
    "revoke_host": {"reason": "why not"},
    "drain_host": {"reason": "why not"},
    "remove_stray": {"kind": "volume", "id": "vol_a", "reason": "why not"},
    "resume_deployment": {"reason": "why not"},
    "quarantine_gpu": {"reason": "why not"},
    "release_gpu": {"reason": "why not"},
    "create_operator": {"name": "new", "roles": ["operator"]},
    "create_operator_token": {"name": "new", "scopes": ["read"]},
    "create_user": {"name": "new", "roles": ["member"]},
    "set_user_roles": {"roles": ["auditor"]},
    "create_token": {"name": "new", "scopes": ["read"]},
    "create_network": {"name": "new", "cidr": "10.1.0.0/24"},
    "create_volume": {"name": "new", "size_gib": 1},
    "create_instance": {"name": "new", "type": "small", "image": "debian"},
    "attach_volume": {"volume": "teal"},
    "detach_volume": {"volume": "teal"},
}


@dataclass(frozen=True)
class Route:
    path: str
    method: str
    operation: str

    @property
    def action(self) -> Action:
        return ACTIONS[self.operation]

    @property
    def named(self) -> list[str]:
        """The parts of its path that name something below the tenant."""
        return [part for part in re.findall(r"{(\w+)}", self.path) if part != "tenant"]


def routes() -> Iterator[Route]:
    for path, methods in routes_only().openapi()["paths"].items():
        for method, each in methods.items():
            yield Route(path, method.upper(), each["operationId"])


ROUTES = list(routes())
IN_TENANT = [route for route in ROUTES if route.action.in_tenant]
WITH_ID = [route for route in IN_TENANT if route.named]


@dataclass
class World:
    deployed: Deployment
    #: Ids and names of acme's things, by the word that stands in paths.
    things: dict[str, list[str]]

    def ask(self, route: Route, who: str | None, **named: str) -> Any:
        path = route.path
        for part in re.findall(r"{(\w+)}", path):
            path = path.replace("{" + part + "}", named.get(part) or self.things[part][0])
        # Far apart, so that no denial is only counted.
        self.deployed.clock.now_ms += 60_000
        headers = {**key(), "If-Match": "*"}
        body = BODIES.get(route.operation)
        return self.deployed.client(who).request(route.method, path, json=body, headers=headers)


@pytest.fixture(scope="module")
def world(sqlite_template, tmp_path_factory) -> Iterator[World]:
    """One for all: no refused call may change it, which each test checks."""
    path = tmp_path_factory.mktemp("apart") / "bulkhead.db"
    path.write_bytes(sqlite_template.read_bytes())
    database = Database(f"sqlite:///{path}")
    deployed = deploy(Store(database))
    member, tenant = deployed.client("acme-member"), "/v1/tenants/acme"
    network = member.post(
        f"{tenant}/networks", json={"name": "blue", "cidr": "10.7.0.0/24"}, headers=key()
    ).json()
    volume = member.post(f"{tenant}/volumes", json={"name": "teal", "size_gib": 1}, headers=key()).json()
    wanted = {"name": "cyan", "type": "small", "image": "debian", "networks": ["blue"]}
    operation = member.post(f"{tenant}/instances", json=wanted, headers=key()).json()
    people = deployed.people
    deployed.second_token("expired", "acme-admin", days=1)
    deployed.second_token("platform-expired", "operator", days=1)
    deployed.second_token("no-read", "acme-admin", scopes=("write", "audit", "admin"))
    deployed.second_token("only-read", "acme-admin", scopes=("read",))
    deployed.second_token("platform-no-read", "operator", scopes=("write", "audit", "admin"))
    deployed.clock.now_ms += 2 * DAY_MS
    things = {
        "tenant": [deployed.tenants["acme"], "acme"],
        "network": [network["id"], "blue"],
        "volume": [volume["id"], "teal"],
        "instance": [operation["subject_id"], "cyan"],
        "operation": [operation["id"]],
        "user": [people["acme-member"].who.id, "acme-member"],
        "token": [people["acme-member"].key_id],
        "host": ["node1"],
        "gpu": ["gpu_1"],
        "instance_type": ["small"],
        "image": ["debian"],
        "operator": ["operator"],
    }
    yield World(deployed, things)
    database.dispose()


def refused(world: World, answer_of: Any, status: int, code: str | None = None) -> dict[str, Any]:
    """Ask, and hold the answer, the rows and the log against what a refusal must be."""
    before, told = rows(world.deployed.store), heads(world.deployed.store)
    answer = answer_of()
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert code is None or problem["code"] == code
    assert rows(world.deployed.store) == before
    new = records(world.deployed.store, after=told)
    assert len(new) == 1, "one record for each refusal"
    denied = [
        each
        for each in new
        if each["stage"] == "denied" and each["request_id"] == answer.headers["x-request-id"]
    ]
    assert len(denied) == 1
    assert denied[0]["details"]["code"] == problem["code"]
    return denied[0]


def shows_nothing(world: World, text: str, *sent: str) -> None:
    """Nothing of acme's stands in an answer but what the asker has sent itself."""
    for word in sent:
        text = text.replace(word, "")
    for kind in ("tenant", "network", "volume", "instance", "operation", "user", "token"):
        for word in world.things[kind]:
            assert word not in text, (kind, word)


@pytest.mark.parametrize("route", IN_TENANT, ids=lambda route: route.operation)
@pytest.mark.parametrize("who", ["globex-admin", "globex-auditor"])
def test_another_tenants_people_find_nothing(world: World, route: Route, who: str):
    answers = []

    def ask():
        answers.append(world.ask(route, who))
        return answers[0]

    denied = refused(world, ask, 404, "tenant.unknown")
    # It stands in the asker's log, not in the log of those who must not be troubled.
    assert denied["stream"] == world.deployed.tenants["globex"]
    assert denied["actor"]["id"] == world.deployed.people[who].who.id
    shows_nothing(world, answers[0].text, world.deployed.tenants["acme"])


@pytest.mark.parametrize("route", WITH_ID, ids=lambda route: route.operation)
def test_another_tenants_ids_are_unknown_under_ones_own_name(world: World, route: Route):
    for reference in range(2):
        named = {
            part: world.things[part][min(reference, len(world.things[part]) - 1)] for part in route.named
        }
        answers = []

        def ask(named=named, answers=answers):
            answers.append(world.ask(route, "globex-admin", tenant="globex", **named))
            return answers[0]

        refused(world, ask, 404)
        shows_nothing(world, answers[0].text, *named.values())


@pytest.mark.parametrize("route", WITH_ID, ids=lambda route: route.operation)
def test_what_is_anothers_and_what_is_not_there_look_the_same(world: World, route: Route):
    theirs = world.ask(route, "globex-admin", tenant="globex").json()
    named = {part: re.sub(r"_.*", "_" + "z" * 20, world.things[part][0]) for part in route.named}
    nothing = world.ask(route, "globex-admin", tenant="globex", **named).json()
    shown = json.dumps(theirs)
    for part in route.named:
        shown = shown.replace(world.things[part][0], named[part])
    again = {**json.loads(shown), "request_id": ""}
    assert again == {**nothing, "request_id": ""}


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.operation)
def test_nobody_is_let_in(world: World, route: Route):
    answers = []

    def ask():
        answers.append(world.ask(route, None))
        return answers[0]

    denied = refused(world, ask, 401, "token.missing")
    assert denied["stream"] == "platform"
    assert answers[0].headers["www-authenticate"] == "Bearer"
    shows_nothing(world, answers[0].text)


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.operation)
def test_an_expired_token_lets_nobody_in(world: World, route: Route):
    who = "expired" if route.action.in_tenant else "platform-expired"
    refused(world, lambda: world.ask(route, who), 401, "token.expired")


def _wrong(action: Action) -> str | None:
    """Somebody of the right place whose role or scope does not suffice; None where everybody's does."""
    if action.scope is None:
        return None
    if not action.in_tenant:
        return "platform-auditor" if action.changes else "platform-no-read"
    if OPERATOR in action.platform_roles and not action.tenant_roles:
        return "acme-admin"
    if action.scope == "read":
        return "no-read"
    return "acme-auditor" if AUDITOR not in action.tenant_roles else "only-read"


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.operation)
def test_the_wrong_role_or_scope_is_forbidden(world: World, route: Route):
    who = _wrong(route.action)
    if who is None:
        assert route.operation in ("get_api", "get_whoami")
        return
    if route.operation == "export_platform_audit":
        who = "platform-only-read"
        if who not in world.deployed.people:
            world.deployed.second_token(who, "operator", scopes=("read",))
    refused(world, lambda: world.ask(route, who), 403, "access.forbidden")


@pytest.mark.parametrize(
    "route", [each for each in ROUTES if not each.action.in_tenant], ids=lambda route: route.operation
)
def test_the_platforms_things_are_not_for_tenants(world: World, route: Route):
    if route.action.tenant_roles:
        assert {TENANT_ADMIN, MEMBER, AUDITOR} <= route.action.tenant_roles
        assert route.method == "GET"
        return
    refused(world, lambda: world.ask(route, "acme-admin"), 403, "access.forbidden")


@pytest.mark.parametrize("role", ["operator", "platform-auditor"])
def test_the_platform_makes_nothing_for_a_tenant_and_sees_no_console(world: World, role: str):
    made = [each for each in IN_TENANT if not each.action.platform_roles]
    things = {"create_instance", "create_network", "create_volume"}
    assert {each.operation for each in made} == {*things, "create_console_ticket", "get_console_log"}
    for route in made:
        refused(world, lambda route=route: world.ask(route, role), 403, "access.forbidden")


def test_the_matrix_would_notice_a_leak(world: World):
    """The owner's own answers hold what no stranger's may: the check above can fail."""
    route = next(each for each in ROUTES if each.operation == "get_instance")
    answer = world.ask(route, "acme-member")
    assert answer.status_code == 200
    with pytest.raises(AssertionError):
        shows_nothing(world, answer.text)
    with pytest.raises(AssertionError):
        refused(world, lambda: world.ask(route, "acme-member"), 200)
