"""The switchboard: joins who waits for a host's bytes with the host that dials, within one process.

The two ends are served by two event loops (the public listener's and the agents'); each call hops to the loop
of the other end. Nothing is buffered here: one message is on its way each way, so that a slow reader slows
the sender. Counts what is open for each tenant and host, and bounds bytes; the front doors bound time.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

from orchestrator.model.errors import HostError, NotFoundError, RateLimitedError
from orchestrator.model.protocol import MAX_LOG_BYTES

T = TypeVar("T")
#: Close codes of a WebSocket (RFC 6455 §7.4.1): done, going away, too much, cannot.
DONE, GOING, TOO_MUCH, CANNOT = 1000, 1001, 1009, 1011
_RETRY_S = 5


@dataclass(frozen=True)
class StreamLimits:
    """How much one controller carries.

    Args:
        per_tenant, per_host: open streams; an agent has a bound of its own over all controllers.
        dial_s: how long a host may take to dial.
        longest_s: life of one stream; who still looks opens another.
        most_bytes: of one stream, both ways together.
        look_again_s: how often it is asked whether who looks still may.
    """

    per_tenant: int = 16
    per_host: int = 16
    dial_s: float = 15.0
    longest_s: float = 12 * 3600.0
    most_bytes: int = 1 << 30
    look_again_s: float = 15.0


@dataclass(frozen=True)
class Wanted:
    """A stream that somebody wants.

    Args:
        last_bytes: of a kept log, this much of its end.
        request_id: of the call that wants it; the agent's log names it.
    """

    id: str
    kind: Literal["console", "console-log"]
    tenant_id: str
    instance_id: str
    host_id: str
    request_id: str
    last_bytes: int = MAX_LOG_BYTES


@dataclass(frozen=True)
class Ended:
    """Why nothing more comes: a close code, and a reason in the form of an error's code or nothing."""

    code: int
    reason: str = ""


class FarEnd(Protocol):
    """A host's end, used on the loop that serves it alone."""

    async def send(self, data: bytes) -> bool:
        """Send one message; False when nobody is there any more."""

    async def receive(self) -> bytes | Ended:
        """Wait for the next message, or the end."""


class Line:
    """A host that has dialled, as the asker speaks to it. Used on the asker's loop alone.

    Attributes:
        sent, received: bytes so far.
    """

    def __init__(self, end: FarEnd, loop: asyncio.AbstractEventLoop, most_bytes: int) -> None:
        self._end = end
        self._loop = loop
        self._most_bytes = most_bytes
        self.sent = 0
        self.received = 0

    async def send(self, data: bytes) -> Ended | None:
        """Send one message; the end, when there is none to send to."""
        self.sent += len(data)
        if self.sent + self.received > self._most_bytes:
            return Ended(TOO_MUCH, "stream.too_much")
        return None if await self._there(self._end.send(data)) is True else _BROKEN

    async def receive(self) -> bytes | Ended:
        """Wait for the next message, or the end."""
        found = await self._there(self._end.receive())
        if isinstance(found, bytes):
            self.received += len(found)
            if self.sent + self.received > self._most_bytes:
                return Ended(TOO_MUCH, "stream.too_much")
        return found

    async def _there(self, work: Coroutine[Any, Any, T]) -> T | Ended:
        try:
            waiting = asyncio.run_coroutine_threadsafe(work, self._loop)
        except RuntimeError:
            # Its loop has ended: this process is going away.
            work.close()
            return Ended(GOING, "stream.closing")
        try:
            return await asyncio.wrap_future(waiting)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            return Ended(GOING, "stream.closing")


_BROKEN = Ended(CANNOT, "stream.broken")


class Call:
    """One wait for a host; made on the asker's loop."""

    def __init__(self, wanted: Wanted, limits: StreamLimits) -> None:
        self.wanted = wanted
        self._limits = limits
        self._asker = asyncio.get_running_loop()
        self._line: asyncio.Future[Line] = self._asker.create_future()
        self._lock = threading.Lock()
        #: Set on the host's loop when the asker is done; None until a host dials.
        self._over: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None
        self._ended = False

    async def dialled(self) -> Line:
        """Wait until the host dials.

        Raises:
            HostError: `console.no_answer`.
        """
        try:
            async with asyncio.timeout(self._limits.dial_s):
                return await self._line
        except TimeoutError as exc:
            raise HostError(
                "console.no_answer",
                f"the instance's host did not answer within {self._limits.dial_s:g} s",
                hint="try again later",
            ) from exc

    async def carry(self, end: FarEnd) -> None:
        """Hand a host's end to the asker, on the host's loop; returns when the asker is done with it."""
        loop, over = asyncio.get_running_loop(), asyncio.Event()
        with self._lock:
            if self._ended or self._over is not None:
                return
            self._over = (loop, over)
        line = Line(end, loop, self._limits.most_bytes)
        try:
            self._asker.call_soon_threadsafe(self._connect, line)
        except RuntimeError:
            # The asker's loop has ended, and the asker with it.
            return
        await over.wait()

    def _connect(self, line: Line) -> None:
        if not self._line.done():
            self._line.set_result(line)

    def end(self) -> None:
        """Let the host go."""
        self._line.cancel()
        with self._lock:
            self._ended = True
            there = self._over
        if there is not None:
            loop, over = there
            # A loop that has ended has nobody left to let go.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(over.set)


class Switchboard:
    """The open and awaited streams of this process.

    Attributes:
        url: where this controller listens for agents; empty where there is no other controller.
    """

    def __init__(self, limits: StreamLimits) -> None:
        self.limits = limits
        self.url = ""
        self._lock = threading.Lock()
        self._calls: dict[str, Call] = {}

    @contextlib.contextmanager
    def expect(self, wanted: Wanted) -> Iterator[Call]:
        """Wait for a host, and count as open until the block ends. On the asker's loop.

        Raises:
            RateLimitedError: `console.too_many`.
        """
        call = Call(wanted, self.limits)
        with self._lock:
            open_ = [each.wanted for each in self._calls.values()]
            of_tenant = sum(each.tenant_id == wanted.tenant_id for each in open_)
            of_host = sum(each.host_id == wanted.host_id for each in open_)
            if of_tenant >= self.limits.per_tenant or of_host >= self.limits.per_host:
                raise RateLimitedError(
                    "console.too_many",
                    "too many consoles and logs are open at once",
                    hint="close one",
                    retry_after_s=_RETRY_S,
                )
            self._calls[wanted.id] = call
        try:
            yield call
        finally:
            with self._lock:
                del self._calls[wanted.id]
            call.end()

    def waiting(self, stream_id: str, host_id: str) -> Call:
        """Find who waits here for a host's stream.

        Raises:
            NotFoundError: `stream.unknown`: nobody does, or for another host.
        """
        with self._lock:
            found = self._calls.get(stream_id)
        if found is None or found.wanted.host_id != host_id:
            raise NotFoundError("stream.unknown", "nobody waits here for that stream of this host")
        return found

    @property
    def open(self) -> int:
        """How many are open or awaited."""
        with self._lock:
            return len(self._calls)
