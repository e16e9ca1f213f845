"""The OpenAPI document: what the framework writes, and what it does not know: problems, tokens, keys."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from api.schemas.common import ProblemOut

_PROBLEM = {
    "description": "An error, as RFC 9457 says it.",
    "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/ProblemOut"}}},
}
#: The framework's own form of a validation error, which is never sent.
_UNUSED = ("HTTPValidationError", "ValidationError")


def install(app: FastAPI) -> None:
    """Let an app say our document as its own."""
    written: dict[str, Any] = {}

    def document() -> dict[str, Any]:
        if not written:
            written.update(_document(app))
        return written

    app.openapi = document  # type: ignore[method-assign]


def _document(app: FastAPI) -> dict[str, Any]:
    found = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
    components = found.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for name in _UNUSED:
        schemas.pop(name, None)
    problem = ProblemOut.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas.update(problem.pop("$defs", {}))
    schemas["ProblemOut"] = problem
    components["securitySchemes"] = {
        "token": {"type": "http", "scheme": "bearer", "description": "An API token, or an OIDC access token."}
    }
    found["security"] = [{"token": []}]
    for operation in operations(found):
        operation["responses"].pop("422", None)
        operation["responses"]["default"] = _PROBLEM
        for parameter in operation.get("parameters", ()):
            _without_null(parameter["schema"])
            if parameter["name"].lower() == "if-match":
                parameter["name"], parameter["required"] = "If-Match", True
            if parameter["name"].lower() == "idempotency-key":
                parameter["name"] = "Idempotency-Key"
                parameter["required"] = operation["operationId"].startswith("create_")
    return found


def _without_null(schema: dict[str, Any]) -> None:
    """Leaving a parameter out is the only way to send none."""
    kinds = [each for each in schema.get("anyOf", ()) if each != {"type": "null"}]
    if len(kinds) == 1:
        del schema["anyOf"]
        schema.update(kinds[0])


def operations(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every operation of a document."""
    for path in document["paths"].values():
        yield from path.values()
