"""An instance's console as a program speaks to it: bytes both ways over a WebSocket, on an asyncio loop.

Decides only how a ticket is shown (as a subprotocol, never in an address) and what a refusal or an end means.
The SDK's `Client` makes the ticket; the command line joins a terminal to it.
"""

from __future__ import annotations

import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

import websockets.asyncio.client
import websockets.exceptions

from orchestrator.client.errors import UnreachableError, error_of
from orchestrator.client.http import Endpoint, check_url, trust
from orchestrator.model.errors import (
    BulkheadError,
    ConflictError,
    ForbiddenError,
    HostError,
    InvalidInputError,
    TooLargeError,
)

PATH = "/v1/console"
PROTOCOL = "bulkhead.console.v1"
#: The server waits for the instance's host before it answers.
_OPEN_S = 30.0
_MAX_MESSAGE_BYTES = 64 * 1024
#: What a terminal types at once; a pasted page is several messages.
WRITE_BYTES = 16 * 1024
_LOST = 1006


@dataclass(frozen=True)
class End:
    """How a console ended: a WebSocket's close code, and an error's code or nothing as its reason."""

    code: int
    reason: str


def check_end(end: End) -> None:
    """Say nothing of a console that ended well, and raise what another end stands for.

    Raises:
        BulkheadError: by the close code; its code is the reason that the server gave.
    """
    if end.code == 1000 and not end.reason:
        return
    kind, words = _ENDS.get(end.code, (UnreachableError, "the console broke off"))
    if end.reason == "console.busy":
        kind, words = ConflictError, "somebody has this console open already"
    elif end.reason == "console.unknown":
        kind, words = ConflictError, "the instance's host has no console of it now: does it run?"
    elif end.reason == "stream.too_long":
        words = "the console was open for as long as one may be"
    raise kind(end.reason or "api.answer_lost", words)


_ENDS: Mapping[int, tuple[type[BulkheadError], str]] = {
    1000: (HostError, "the console was ended"),
    1003: (InvalidInputError, "the console takes bytes, not text"),
    1008: (ForbiddenError, "whoever opened this console may not look at it any more"),
    1009: (TooLargeError, "more went through the console than may"),
    1011: (HostError, "the instance's host cannot carry the console on"),
}


class Console:
    """One open console.

    Attributes:
        end: how it ended; None while it is open.
    """

    def __init__(self, socket: websockets.asyncio.client.ClientConnection) -> None:
        self._socket = socket
        self.end: End | None = None

    async def read(self) -> bytes:
        """Wait for the next bytes; empty at the end."""
        try:
            data = await self._socket.recv()
        except websockets.exceptions.ConnectionClosed as exc:
            self._ended(exc)
            return b""
        return data if isinstance(data, bytes) else data.encode()

    async def write(self, data: bytes) -> None:
        """Type; what is typed after the end goes nowhere."""
        try:
            for start in range(0, len(data), WRITE_BYTES):
                await self._socket.send(data[start : start + WRITE_BYTES])
        except websockets.exceptions.ConnectionClosed as exc:
            self._ended(exc)

    def _ended(self, exc: websockets.exceptions.ConnectionClosed) -> None:
        close = exc.rcvd
        self.end = End(_LOST, "") if close is None else End(close.code, close.reason)


@contextlib.asynccontextmanager
async def open_console(endpoint: Endpoint, ticket: str) -> AsyncIterator[Console]:
    """Open the console that a ticket is for.

    Raises:
        BulkheadError: the server refuses, see `error_of`; `api.unreachable`.
    """
    url = check_url(endpoint.url)
    tls: ssl.SSLContext | None = trust(endpoint.ca) if url.startswith("https:") else None
    dialling = websockets.asyncio.client.connect(
        f"ws{url.removeprefix('http')}{PATH}",
        ssl=tls,
        subprotocols=[websockets.Subprotocol(PROTOCOL), websockets.Subprotocol(ticket)],
        additional_headers={"Authorization": f"Bearer {endpoint.token}"},
        compression=None,
        open_timeout=_OPEN_S,
        close_timeout=2.0,
        max_size=_MAX_MESSAGE_BYTES,
        max_queue=4,
    )
    try:
        socket = await dialling
    except websockets.exceptions.InvalidStatus as exc:
        raise _refusal(exc) from exc
    except (OSError, TimeoutError, websockets.exceptions.WebSocketException) as exc:
        raise UnreachableError("api.unreachable", f"the console cannot be opened: {exc}") from exc
    async with socket:
        yield Console(socket)


def _refusal(exc: websockets.exceptions.InvalidStatus) -> BulkheadError:
    response = exc.response
    try:
        body = json.loads(response.body or b"")
    except ValueError:
        body = None
    headers = {name.lower(): value for name, value in response.headers.raw_items()}
    return error_of(response.status_code, body, headers)
