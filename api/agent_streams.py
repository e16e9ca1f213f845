"""Streams from the hosts' side of the controller: what a host is to dial, and who gets its bytes.

Holds neither thread nor connection while a host waits or a stream is open. Who the host is, `agents` found
out; who waits for it, the switchboard knows.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable

from starlette.concurrency import run_in_threadpool
from starlette.websockets import WebSocket, WebSocketDisconnect

from orchestrator.controller import enrolment, streams
from orchestrator.controller.authority import HostCertificate
from orchestrator.controller.bell import CLOSING
from orchestrator.controller.control import Control
from orchestrator.controller.switchboard import DONE, Call, Ended
from orchestrator.model.actor import Actor
from orchestrator.model.errors import NotFoundError
from orchestrator.model.protocol import StreamOrder

#: Text where bytes belong (RFC 6455 §7.4.1).
_WRONG_KIND = 1003


async def due(
    control: Control,
    shown: HostCertificate,
    wait_s: float,
    closing: threading.Event,
    heard: Callable[[str], None],
) -> tuple[StreamOrder, ...]:
    """What a host is to dial, as soon as there is something; nothing after `wait_s`, or when we end.

    It looks once and then only when it is rung, for what other controllers ordered too.

    Args:
        heard: told the host's id once its certificate was found to count.

    Raises:
        UnauthenticatedError: `certificate.revoked`.
    """
    deadline = time.monotonic() + wait_s
    with control.bell.listen_async(streams.topic(shown.host), CLOSING) as ear:
        found = await run_in_threadpool(_due, control, shown)
        heard(shown.host)
        while not found and not closing.is_set() and (left := deadline - time.monotonic()) > 0:
            if not await ear.wait(left):
                break
            found = await run_in_threadpool(_due, control, shown)
    return found


def _due(control: Control, shown: HostCertificate) -> tuple[StreamOrder, ...]:
    now_ms = control.store.clock()
    with control.store.reading() as tx:
        enrolment.known(tx, shown, now_ms)
        return streams.due(tx, shown.host, now_ms)


async def taken(control: Control, actor: Actor, stream_id: str) -> Call:
    """Take a stream's order away for the host that dials it.

    Raises:
        NotFoundError: `stream.unknown`: nobody waits here for it, it is another's, or was dialled before.
    """
    call = control.switchboard.waiting(stream_id, actor.id)

    def work() -> bool:
        with control.store.unit_of_work(actor) as tx:
            return streams.take(tx, stream_id, actor.id)

    if not await run_in_threadpool(work):
        raise NotFoundError("stream.unknown", "that stream was dialled before, or nobody waits any more")
    return call


async def carry(call: Call, socket: WebSocket) -> None:
    """Hand a host's socket to whoever waits, until they are done with it."""
    await socket.accept()
    try:
        await call.carry(_HostEnd(socket))
    finally:
        # Closed already when it was the host that ended it.
        with contextlib.suppress(RuntimeError, WebSocketDisconnect, OSError):
            await socket.close(DONE)


class _HostEnd:
    """A host's socket as the switchboard knows it."""

    def __init__(self, socket: WebSocket) -> None:
        self._socket = socket

    async def send(self, data: bytes) -> bool:
        """Send one message; False when the host is gone."""
        try:
            await self._socket.send_bytes(data)
        except (RuntimeError, WebSocketDisconnect, OSError):
            return False
        return True

    async def receive(self) -> bytes | Ended:
        """Wait for the next message."""
        message = await self._socket.receive()
        if message["type"] == "websocket.disconnect":
            return Ended(int(message.get("code") or DONE), str(message.get("reason") or ""))
        data = message.get("bytes")
        return data if data is not None else Ended(_WRONG_KIND, "stream.text")
