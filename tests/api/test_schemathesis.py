"""Schemathesis over the committed document: all its checks, on both databases, as operator and tenant admin.

The quick run takes the same few examples each time, and asks as a tenant admin what a tenant admin may, as an
operator the rest. `test_schemathesis_soak` takes many examples, new ones each time, of all either may ask.
Who asks what they may not is `test_tenants_apart`.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings
from schemathesis.core.failures import FailureGroup
from schemathesis.schemas import BaseSchema

from orchestrator.access.actions import ACTIONS
from orchestrator.access.roles import OPERATOR, TENANT_ADMIN
from orchestrator.store.engine import Database
from orchestrator.store.store import Store
from tests.api import fuzzing
from tests.api.fuzzing import FRONT, Bearer, World
from tests.databases import KINDS, fresh_database

FEW = 10
QUICK = fuzzing.schema(FEW, deterministic=True)
#: What lies in the database is put right before each operation, not before each example of it.
FIXTURE = [HealthCheck.function_scoped_fixture]
# The number stands here too: what a profile of hypothesis says would count for more than the schema's.
_QUICK = settings(max_examples=FEW, suppress_health_check=FIXTURE)


@pytest.fixture(scope="module", params=KINDS)
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("schemathesis")
    with fresh_database(request.param, request, folder) as url:
        database = Database(url)
        made = fuzzing.world(Store(database), folder)
        FRONT.app = made.deployed.app
        yield made
        database.dispose()


@pytest.fixture
def restored(world: World) -> World:
    """Whatever an earlier test deleted is there again."""
    world.restore()
    return world


@pytest.fixture
def as_operator(restored: World) -> World:
    Bearer.token = restored.deployed.people["operator"].text
    return restored


@pytest.fixture
def as_admin(restored: World) -> World:
    Bearer.token = restored.deployed.people["admin"].text
    return restored


def part_of(schema: BaseSchema, role: str, but: str | None = None) -> BaseSchema:
    """The part of the document that one role may ask for, and another may not."""
    mine = [name for name, action in ACTIONS.items() if role in action.roles and but not in action.roles]
    return schema.include(operation_id=mine)


@part_of(QUICK, OPERATOR, but=TENANT_ADMIN).parametrize()
@_QUICK
def test_what_an_operator_is_answered_is_as_documented(case, as_operator: World):
    as_operator.send(case)


@part_of(QUICK, TENANT_ADMIN).parametrize()
@_QUICK
def test_what_a_tenant_admin_is_answered_is_as_documented(case, as_admin: World):
    as_admin.send(case)


def test_every_operation_is_asked():
    asked = {
        result.ok().definition.raw["operationId"]
        for part in (part_of(QUICK, OPERATOR, but=TENANT_ADMIN), part_of(QUICK, TENANT_ADMIN))
        for result in part.get_all_operations()
    }
    there = {result.ok().definition.raw["operationId"] for result in QUICK.get_all_operations()}
    assert asked == there


def test_an_answer_that_is_not_documented_is_noticed(as_admin: World, monkeypatch: pytest.MonkeyPatch):
    """The checks can fail: a status, a field and a server error that no document promises."""

    class Other:
        def __init__(self, status: int, body: bytes) -> None:
            self.status, self.body = status, body

        async def __call__(self, _scope, _receive, send) -> None:
            headers = [(b"content-type", b"application/json")]
            await send({"type": "http.response.start", "status": self.status, "headers": headers})
            await send({"type": "http.response.body", "body": self.body})

    operation = QUICK.find_operation_by_label("GET /v1/whoami")
    as_admin.send(operation.Case())
    for status, body in ((200, b'{"name": 7}'), (500, b"{}"), (200, b"nothing")):
        monkeypatch.setattr(FRONT, "app", Other(status, body))
        with pytest.raises(FailureGroup):
            as_admin.send(operation.Case())
