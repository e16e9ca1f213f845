"""What stands around every request: its id, size, log line, the last resort, and headers of the answer.

Pure ASGI, so that streams stream. Never looks at who asks and never into a body; the order is fixed in `app`.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import structlog
from starlette.exceptions import HTTPException
from starlette.websockets import WebSocket

from api import metrics, problems

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

MAX_BODY_BYTES = 1024 * 1024
_REQUEST_ID = re.compile(rb"[A-Za-z0-9_-]{8,64}")
_HEADERS: tuple[tuple[bytes, bytes], ...] = (
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
    (b"strict-transport-security", b"max-age=31536000"),
    (b"x-content-type-options", b"nosniff"),
)
#: What an answer begins with: of a call, of a WebSocket that is refused, and of one that is let in.
_BEGINNINGS = ("http.response.start", "websocket.http.response.start", "websocket.accept")
_log = structlog.get_logger("bulkhead.api")


class Outermost:
    """Gives each request its id, logs it once, and answers what nobody foresaw.

    A caller may choose the id, so that its own log has the same; it is only a label.
    """

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        request_id = scope["bulkhead.request_id"] = _request_id(scope)
        status = 0

        async def labelled(message: Message) -> None:
            nonlocal status
            if message["type"] in _BEGINNINGS:
                # A WebSocket that is accepted was answered 101, Switching Protocols.
                status = message.get("status", 101)
                given = {name for name, _ in message.get("headers", ())}
                more = [(name, value) for name, value in _HEADERS if name not in given]
                label = (b"x-request-id", request_id.encode())
                message = {**message, "headers": [*message.get("headers", ()), *more, label]}
            await send(message)

        began = time.monotonic()
        try:
            with metrics.in_flight():
                await self._app(scope, receive, labelled)
        except Exception as exc:
            _log.exception("request.failed", request_id=request_id, kind=type(exc).__name__)
            if status:
                # The answer has begun: only cutting it tells that it is not whole.
                raise
            if scope["type"] == "http":
                await problems.unforeseen(request_id)(scope, receive, labelled)
            else:
                await WebSocket(scope, receive, labelled).send_denial_response(
                    problems.unforeseen(request_id)
                )
        finally:
            _done(scope, request_id, status, time.monotonic() - began)


class BodyLimit:
    """Counts a body's bytes as they come, whatever its headers say."""

    def __init__(self, app: App, most: int = MAX_BODY_BYTES) -> None:
        self._app = app
        self._most = most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        read = 0

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._most:
                # The one kind of error that the framework passes on from the reading of a body.
                raise HTTPException(413)
            return message

        await self._app(scope, counted, send)


def _request_id(scope: Scope) -> str:
    sent = [value for name, value in scope["headers"] if name == b"x-request-id"]
    if len(sent) == 1 and _REQUEST_ID.fullmatch(sent[0]):
        return str(sent[0].decode())
    return uuid.uuid4().hex


def _done(scope: Scope, request_id: str, status: int, took_s: float) -> None:
    route = scope.get("route")
    operation = getattr(route, "operation_id", None) or "none"
    if scope["type"] == "websocket" and route is not None:
        operation = route.name
    metrics.count(operation, status, took_s)
    # The operation id, not the address: that may hold what somebody meant to keep.
    _log.info(
        "request", request_id=request_id, operation=operation, status=status, took_ms=round(took_s * 1000, 1)
    )
