"""The committed document is the routes', and every route has its action, and every action its route."""

from __future__ import annotations

import functools
from typing import Any

from api import openapi
from api.app import routes_only
from api.openapi_document import operations
from orchestrator.access.actions import ACTIONS

#: What needs no action: no token is asked for, and nothing of anybody is told.
OPEN = {"/livez", "/readyz", "/metrics", "/openapi.json"}
#: What a one-time ticket opens, which an action of the table makes; no route of the document's kind.
TICKETED = {"/v1/console"}


@functools.cache
def document() -> dict[str, Any]:
    return routes_only().openapi()


def test_the_committed_document_is_fresh():
    assert openapi.FILE.read_text() == openapi.text(), "run: python -m api.openapi"


def test_every_route_has_its_action_and_every_action_its_route():
    found = [each["operationId"] for each in operations(document())]
    assert len(found) == len(set(found))
    assert set(ACTIONS) == set(found)


def test_nothing_else_is_served():
    written = document()["paths"]
    assert all(path == "/v1" or path.startswith("/v1/") for path in written)
    served: set[str] = set()

    def walk(routes: list[object]) -> None:
        for route in routes:
            inner = getattr(getattr(route, "original_router", None), "routes", None)
            if inner is not None:
                walk(inner)
            else:
                served.add(route.path)  # type: ignore[attr-defined]

    walk(routes_only().routes)
    assert served >= OPEN | TICKETED
    assert set(written) <= served
    assert served - OPEN - TICKETED - set(written) == set()


def test_tenants_actions_stand_under_a_tenant_and_no_others_do():
    for path, methods in document()["paths"].items():
        for each in methods.values():
            assert ACTIONS[each["operationId"]].in_tenant == path.startswith("/v1/tenants/{tenant}"), path


def test_what_makes_something_demands_a_key():
    for each in operations(document()):
        demanded = [p for p in each.get("parameters", ()) if p["name"] == "Idempotency-Key" and p["required"]]
        assert bool(demanded) == each["operationId"].startswith("create_"), each["operationId"]


def test_reading_is_get_and_changing_is_not():
    for path in document()["paths"].values():
        for method, each in path.items():
            assert (method != "get") == ACTIONS[each["operationId"]].changes, each["operationId"]
