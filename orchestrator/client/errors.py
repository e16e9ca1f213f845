"""What an answer of the API that is no success means: an error of the one tree, by HTTP status.

Decides the class (and so the exit status and whether trying again makes sense), never the words: those are
the server's. The answer itself stays the error's cause, for whoever wants the request id or every problem of
a bad input. `http` calls it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from orchestrator.model.errors import (
    BulkheadError,
    CapacityError,
    ConflictError,
    ForbiddenError,
    HostError,
    InvalidInputError,
    NotFoundError,
    PreconditionError,
    QuotaError,
    RateLimitedError,
    StaleError,
    TooLargeError,
    UnauthenticatedError,
)

#: What is said of an answer that is no problem document: a proxy's page can be long and hostile.
_MAX_SHOWN_CHARACTERS = 200


class ServerError(BulkheadError):
    """The server failed in a way that it does not explain."""


class UnreachableError(HostError):
    """No answer came; the call may have been carried out or not, as its code says."""

    http_status: ClassVar[int] = 503


class WaitTimeoutError(BulkheadError):
    """We stopped waiting; the work goes on."""

    http_status: ClassVar[int] = 504
    exit_code: ClassVar[int] = 7


class OperationFailedError(BulkheadError):
    """The work that was waited for failed or was cancelled."""

    exit_code: ClassVar[int] = 8


class ProblemAnswer(Exception):
    """The answer behind an error.

    Args:
        status: HTTP status.
        document: the RFC 9457 problem document; empty if the answer was none.
        request_id: what the server's log calls the request; empty if it said none.
    """

    def __init__(self, status: int, document: Mapping[str, Any], request_id: str) -> None:
        super().__init__(f"HTTP {status}")
        self.status = status
        self.document = document
        self.request_id = request_id

    @property
    def problems(self) -> tuple[Mapping[str, Any], ...]:
        """Every single problem of a bad input, when the server found several."""
        found = self.document.get("errors")
        return tuple(each for each in found if isinstance(each, dict)) if isinstance(found, list) else ()


_BY_STATUS: Mapping[int, type[BulkheadError]] = {
    400: InvalidInputError,
    401: UnauthenticatedError,
    403: ForbiddenError,
    404: NotFoundError,
    405: InvalidInputError,
    409: ConflictError,
    410: NotFoundError,
    412: StaleError,
    413: TooLargeError,
    415: InvalidInputError,
    422: InvalidInputError,
    426: ConflictError,
    428: PreconditionError,
    429: RateLimitedError,
    502: UnreachableError,
    503: HostError,
    504: UnreachableError,
    507: CapacityError,
}


def error_of(status: int, body: Any, headers: Mapping[str, str]) -> BulkheadError:
    """Return the error that an answer stands for; its cause is a `ProblemAnswer`.

    Args:
        body: the parsed problem document, or whatever else came.
        headers: with lower-case names; `retry-after` and `x-request-id` count.
    """
    document = body if isinstance(body, dict) and isinstance(body.get("code"), str) else {}
    request_id = str(document.get("request_id") or headers.get("x-request-id", ""))
    code, message = _said(status, document, body)
    field, hint = _text(document, "field"), _text(document, "hint")
    kind = _class_of(status, code)
    error: BulkheadError
    if issubclass(kind, RateLimitedError):
        error = kind(code, message, field=field, hint=hint, retry_after_s=retry_after_s(headers))
    else:
        error = kind(code, message, field=field, hint=hint)
    error.__cause__ = ProblemAnswer(status, document, request_id)
    return error


def retry_after_s(headers: Mapping[str, str]) -> int:
    """Return the seconds that `Retry-After` asks for, 1 when it asks for nothing that we understand."""
    text = headers.get("retry-after", "")
    return max(1, int(text)) if text.isascii() and text.isdigit() and len(text) < 6 else 1


def error_from(found: Mapping[str, Any] | None, what: str) -> BulkheadError:
    """Return what an operation failed of.

    Args:
        found: the operation's `error`; None when it names none.
        what: kind and subject of the operation, for people.
    """
    told = found or {}
    return OperationFailedError(
        _text(told, "code") or "operation.failed",
        f"{what}: {_text(told, 'message') or _text(told, 'detail') or 'it does not say why'}",
        field=_text(told, "field"),
        hint=_text(told, "hint"),
    )


def _class_of(status: int, code: str) -> type[BulkheadError]:
    # Quota and conflict share a status, and differ in what to do: only the code tells them apart.
    if status == QuotaError.http_status and code == "quota.exceeded":
        return QuotaError
    if status in _BY_STATUS:
        return _BY_STATUS[status]
    return InvalidInputError if 400 <= status < 500 else ServerError


def _said(status: int, document: Mapping[str, Any], body: Any) -> tuple[str, str]:
    if document:
        words = _text(document, "detail") or _text(document, "title") or f"HTTP {status}"
        return str(document["code"]), words
    if 300 <= status < 400:
        return "api.redirected", f"the server answered {status}: redirects are not followed, check the URL"
    shown = body[:_MAX_SHOWN_CHARACTERS] if isinstance(body, str) else ""
    printable = "".join(mark if mark.isprintable() else " " for mark in shown).strip()
    said = f": {printable}" if printable else ""
    return "api.unexpected", f"the server answered {status} without a problem document{said}"


def _text(document: Mapping[str, Any], name: str) -> str | None:
    found = document.get(name)
    return found if isinstance(found, str) and found else None
