"""Consoles over the link: dials the WebSocket that the controller asked for and carries bytes both ways.

Decides how much and how long: one live console per instance, a few streams per host, messages and lifetimes
with an end. Never reads what it carries. The session's neighbour: the agent's process runs `Streams.run`
beside it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import structlog
import websockets.asyncio.client
import websockets.exceptions

from orchestrator.agent.link.client import Link
from orchestrator.agent.link.pace import Backoff, Pace
from orchestrator.model.errors import BulkheadError, ConflictError, HostError
from orchestrator.model.protocol import MAX_LOG_BYTES, PROTOCOL_HEADER, PROTOCOL_VERSION, StreamOrder

#: One message; the listener takes up to 64 KiB.
MESSAGE_BYTES = 16 * 1024
#: WebSocket close codes (RFC 6455 §7.4.1): done, text where bytes belong, too much, cannot.
_DONE, _WRONG_KIND, _TOO_MUCH, _CANNOT = 1000, 1003, 1009, 1011
_REASON_BYTES = 120
_log = structlog.get_logger("bulkhead.agent")


@dataclass(frozen=True)
class StreamBounds:
    """How much a host carries.

    Args:
        at_once: open streams of this host.
        longest_s: life of one stream; who still looks dials again.
        most_bytes: both ways together.
    """

    at_once: int = 16
    longest_s: float = 12 * 3600.0
    most_bytes: int = 1 << 30


class ConsoleEnd(Protocol):
    """An open console of one instance."""

    async def read(self) -> bytes:
        """Wait for the next bytes, at most `MESSAGE_BYTES`; empty at the end."""

    async def write(self, data: bytes) -> None:
        """Type."""

    async def close(self) -> None:
        """Let go of it."""


class Consoles(Protocol):
    """Where an instance's console is: a pty and a file on a real host, an echo on a simulated one."""

    async def open(self, instance: str, kind: str, last_bytes: int = MAX_LOG_BYTES) -> ConsoleEnd:
        """Open it; `console` is live, `console-log` is the end of what was kept, then an end.

        Raises:
            NotFoundError: `console.unknown`.
            HostError: `console.failed`.
        """


class Streams:
    """One host's streams.

    Args:
        link: where they are ordered, and dialled.
        consoles: what they carry.
        jitter: a number from 0 to 1 for delays.
        say: who is told, in one line, what went wrong.
    """

    def __init__(
        self,
        link: Link,
        consoles: Consoles,
        *,
        jitter: Callable[[], float],
        pace: Pace | None = None,
        bounds: StreamBounds | None = None,
        say: Callable[[str], None] = lambda _line: None,
    ) -> None:
        self._link = link
        self._consoles = consoles
        self._jitter = jitter
        self._pace = pace or Pace()
        self._bounds = bounds or StreamBounds()
        self._say = say
        self._carried: dict[str, StreamOrder] = {}

    async def run(self) -> None:
        """Wait for orders and carry each, until cancelled."""
        retry = Backoff(self._pace, self._jitter)
        async with asyncio.TaskGroup() as tasks:
            while True:
                try:
                    orders = await self._link.streams(self._pace.poll_wait_s)
                except BulkheadError as exc:
                    self._say(exc.explain())
                    await asyncio.sleep(retry.after_failure())
                    continue
                fresh = [order for order in orders if order.id not in self._carried]
                for order in fresh:
                    if len(self._carried) < self._bounds.at_once:
                        self._carried[order.id] = order
                        tasks.create_task(self._carry(order))
                if fresh:
                    retry.reset()
                elif orders:
                    # Ordered, and not to be had more of: the same answer would come at once.
                    await asyncio.sleep(retry.after_failure())

    async def _carry(self, order: StreamOrder) -> None:
        # Whoever answers there shows a certificate of our authority, or gets nothing.
        where = (order.url or self._link.url).rstrip("/").removeprefix("https")
        log = _log.bind(
            stream=order.id, kind=order.kind, instance=order.instance, request_id=order.request_id
        )
        log.info("stream.ordered")
        try:
            async with websockets.asyncio.client.connect(
                f"wss{where}/agent/v1/streams/{order.id}",
                ssl=self._link.tls,
                additional_headers={PROTOCOL_HEADER: str(PROTOCOL_VERSION)},
                compression=None,
                proxy=None,
                max_size=64 * 1024,
                max_queue=4,
                # Who has sent more than was taken does not hear that we are done.
                close_timeout=2.0,
            ) as socket:
                code, reason = await self._between(order, socket)
                await socket.close(code, reason)
                log.info("stream.ended", code=code, reason=reason)
        except (OSError, TimeoutError, websockets.exceptions.WebSocketException) as exc:
            self._say(f"link.stream: {order.id}: {type(exc).__name__}: {exc}")
        finally:
            del self._carried[order.id]

    async def _between(
        self, order: StreamOrder, socket: websockets.asyncio.client.ClientConnection
    ) -> tuple[int, str]:
        """Carry until one side ends; return why, as a close code and a reason."""
        try:
            self._refuse_second(order)
            end = await self._consoles.open(order.instance, order.kind, order.last_bytes)
        except BulkheadError as exc:
            return _CANNOT, exc.code[:_REASON_BYTES]
        meter = _Meter(self._bounds.most_bytes)
        ways = [asyncio.create_task(_up(end, socket, meter)), asyncio.create_task(_down(socket, end, meter))]
        try:
            done, _ = await asyncio.wait(
                ways, timeout=self._bounds.longest_s, return_when=asyncio.FIRST_COMPLETED
            )
            return next(iter(done)).result() if done else (_DONE, "stream.too_long")
        except HostError as exc:
            return _CANNOT, exc.code[:_REASON_BYTES]
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            with contextlib.suppress(BulkheadError):
                await end.close()

    def _refuse_second(self, order: StreamOrder) -> None:
        """Two readers of one terminal would each get half of what it says."""
        others = (each for each in self._carried.values() if each.id != order.id)
        if order.kind == "console" and any(
            (each.instance, each.kind) == (order.instance, order.kind) for each in others
        ):
            raise ConflictError("console.busy", f"the console of {order.instance} is open already")


class _Meter:
    def __init__(self, most_bytes: int) -> None:
        self._left = most_bytes

    def passed(self, count: int) -> bool:
        """Count bytes; False when there were too many."""
        self._left -= count
        return self._left >= 0


async def _up(
    end: ConsoleEnd, socket: websockets.asyncio.client.ClientConnection, meter: _Meter
) -> tuple[int, str]:
    while True:
        data = await end.read()
        if not data:
            return _DONE, ""
        if not meter.passed(len(data)):
            return _TOO_MUCH, "stream.too_much"
        try:
            await socket.send(data)
        except websockets.exceptions.ConnectionClosed:
            return _DONE, ""


async def _down(
    socket: websockets.asyncio.client.ClientConnection, end: ConsoleEnd, meter: _Meter
) -> tuple[int, str]:
    while True:
        try:
            data = await socket.recv()
        except websockets.exceptions.ConnectionClosed:
            return _DONE, ""
        if isinstance(data, str):
            return _WRONG_KIND, "stream.text"
        if not meter.passed(len(data)):
            return _TOO_MUCH, "stream.too_much"
        await end.write(data)
