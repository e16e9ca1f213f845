"""Errors as RFC 9457 problems, in our words: a stable code, one sentence, and the request's id.

Whatever went wrong, nothing that was sent comes back: an input may hold a secret. What nobody foresaw is told
with the request's id alone; the log has the rest. Decides no status: the error tree does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.routing import Match

from orchestrator.model.errors import BulkheadError, InvalidInputError, RateLimitedError

log = structlog.get_logger("bulkhead.api")
MEDIA_TYPE = "application/problem+json"
#: More field errors than this help nobody.
MAX_ERRORS = 20
_MAX_FIELD = 120
_RETRY_S = 5
_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")


class BadRequestError(InvalidInputError):
    """The request itself is not one that can be read; nothing was changed."""

    http_status = 400


#: Codes of what the framework finds before any route is asked.
_FOUND_BY_FRAMEWORK: Mapping[int, tuple[str, str]] = {
    400: ("body.unreadable", "the body is not JSON in UTF-8"),
    404: ("route.unknown", "there is nothing at this address"),
    405: ("route.method", "this address does not take this method"),
    413: ("body.too_large", "the body is larger than 1 MiB"),
}

#: Our words for the checks of the schemas; `{x}` is what the check demands, never what was sent.
_WORDS: Mapping[str, str] = {
    "missing": "this is required",
    "extra_forbidden": "there is no such field",
    "string_type": "this must be text",
    "string_unicode": "this is no text in Unicode",
    "string_too_short": "at least {min_length} characters",
    "string_too_long": "at most {max_length} characters",
    "string_pattern_mismatch": "it must match {pattern}",
    "int_type": "this must be a whole number",
    "int_parsing": "this must be a whole number",
    "int_parsing_size": "the number is too large",
    "int_from_float": "this must be a whole number",
    "bool_type": "this must be true or false",
    "bool_parsing": "this must be true or false",
    "greater_than_equal": "at least {ge}",
    "less_than_equal": "at most {le}",
    "less_than": "less than {lt}",
    "too_short": "at least {min_length} of them",
    "too_long": "at most {max_length} of them",
    "literal_error": "it must be {expected}",
    "enum": "it must be {expected}",
    "list_type": "this must be a list",
    "dict_type": "this must be an object",
    "model_type": "this must be an object",
    "model_attributes_type": "this must be an object",
}


def problem(
    status: int,
    code: str,
    detail: str,
    request_id: str,
    *,
    retryable: bool = False,
    field: str | None = None,
    hint: str | None = None,
    errors: Sequence[Mapping[str, str]] = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Write one problem."""
    body: dict[str, Any] = {
        "type": f"urn:bulkhead:problem:{code}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "code": code,
        "detail": detail,
        "retryable": retryable,
        "request_id": request_id,
    }
    if field is not None:
        body["field"] = field
    if hint is not None:
        body["hint"] = hint
    if errors:
        body["errors"] = list(errors)
    sent = dict(headers or {})
    if status == HTTPStatus.UNAUTHORIZED:
        sent["WWW-Authenticate"] = "Bearer"
    return Response(json.dumps(body), status, sent, MEDIA_TYPE)


def of_error(error: BulkheadError, request_id: str) -> Response:
    """The problem of one of our errors."""
    headers: dict[str, str] = {}
    if isinstance(error, RateLimitedError):
        headers["Retry-After"] = str(error.retry_after_s)
    elif error.retryable:
        headers["Retry-After"] = str(_RETRY_S)
    return problem(
        error.http_status,
        error.code,
        error.message,
        request_id,
        retryable=error.retryable,
        field=error.field,
        hint=error.hint,
        headers=headers,
    )


def unforeseen(request_id: str) -> Response:
    """The problem of what nobody foresaw."""
    return problem(
        500,
        "internal",
        "something went wrong here that nobody foresaw",
        request_id,
        hint="tell an operator the request's id; the log says more",
    )


def install(app: FastAPI) -> None:
    """Let an app answer all of its errors as problems."""

    @app.exception_handler(BulkheadError)
    async def ours(request: Request, error: BulkheadError) -> Response:
        return of_error(error, request_id_of(request))

    @app.exception_handler(HTTPException)
    async def framework(request: Request, error: HTTPException) -> Response:
        code, detail = _FOUND_BY_FRAMEWORK.get(error.status_code, ("request.refused", "this is refused"))
        headers = error.headers
        if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            headers = {**(headers or {}), "Allow": ", ".join(_methods(app, request))}
        return problem(error.status_code, code, detail, request_id_of(request), headers=headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return _of_validation(error, request_id_of(request))


def _methods(app: FastAPI, request: Request) -> list[str]:
    """What the address takes: the framework names only the methods of the first route that it finds there."""
    scope = {"type": "http", "path": request.url.path, "root_path": "", "headers": []}
    return [
        method
        for method in _METHODS
        if any(route.matches({**scope, "method": method})[0] is Match.FULL for route in app.router.routes)
    ]


def request_id_of(request: HTTPConnection) -> str:
    """The id that the outermost layer gave this request."""
    return str(request.scope.get("bulkhead.request_id", ""))


def _of_validation(error: RequestValidationError, request_id: str) -> Response:
    found = error.errors()
    if any(each["type"] == "json_invalid" for each in found):
        code, detail = _FOUND_BY_FRAMEWORK[400]
        return problem(400, code, detail, request_id)
    told = [_told(each) for each in found[:MAX_ERRORS]]
    first = told[0]
    return problem(
        422,
        first["code"],
        f"{first['field']}: {first['message']}" if first["field"] else first["message"],
        request_id,
        field=first["field"] or None,
        errors=told,
    )


def _told(each: Mapping[str, Any]) -> dict[str, str]:
    place, *path = each["loc"]
    cause = each.get("ctx", {}).get("error")
    if isinstance(cause, BulkheadError):
        return {"field": cause.field or _spelled(path), "code": cause.code, "message": cause.message}
    kind = each["type"]
    if place == "body" and not path:
        return {
            "field": "",
            "code": "body.invalid",
            "message": "this takes a JSON object, sent as application/json",
        }
    words = _WORDS.get(kind, "this is not valid").format(**each.get("ctx", {}))
    code = {"missing": "field.missing", "extra_forbidden": "field.unknown"}.get(kind, "field.invalid")
    return {"field": _spelled(path), "code": code, "message": words}


def _spelled(path: Sequence[str | int]) -> str:
    """`networks[0].name`; a name that somebody sent is shown only as far as it is printable and short."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    text = text.removeprefix(".")[:_MAX_FIELD]
    return text if text.isprintable() and text.isascii() else "a field with an unprintable name"
