"""Consoles and kept logs from the users' side: take a ticket, wait for the host, carry bytes.

A console is a WebSocket; its ticket comes as a subprotocol beside `PROTOCOL`, so that it stands in no address
and no access log. Refusals before the stream is open are problems like any other; later the close code and
reason say why. While a stream is open it holds neither thread nor connection to the database.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import structlog
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from api import problems
from api.calls import Asking
from api.peer import MAX_STREAM_MESSAGE_BYTES
from orchestrator.access.tokens import parse_token
from orchestrator.controller import consoles, streams
from orchestrator.controller.caller import Caller
from orchestrator.controller.consoles import Looker
from orchestrator.controller.control import Control
from orchestrator.controller.switchboard import CANNOT, DONE, GOING, TOO_MUCH, Ended, Line, Wanted
from orchestrator.model.actor import CONTROLLER, Actor
from orchestrator.model.errors import BulkheadError, HostError, UnauthenticatedError
from orchestrator.model.instance import InstanceRecord
from orchestrator.store.ids import new_id
from orchestrator.store.unit_of_work import UnitOfWork

PROTOCOL = "bulkhead.console.v1"
_TICKET = "bh_"
#: Text where bytes belong, and whoever looks may not any more (RFC 6455 §7.4.1).
_WRONG_KIND, _NOT_ALLOWED = 1003, 1008
_log = structlog.get_logger("bulkhead.api")


@contextlib.asynccontextmanager
async def dialled(control: Control, wanted: Wanted) -> AsyncIterator[Line]:
    """Let a host dial, and speak to it until the block ends.

    Raises:
        RateLimitedError: `console.too_many`.
        HostError: `console.no_answer`.
    """
    board = control.switchboard

    def order() -> None:
        with control.store.unit_of_work(CONTROLLER) as tx:
            streams.order(tx, wanted, board.url, board.limits.dial_s)

    def forget() -> None:
        with control.store.unit_of_work(CONTROLLER) as tx:
            streams.forget(tx, wanted.id, wanted.host_id)

    with board.expect(wanted) as call:
        try:
            await run_in_threadpool(order)
            line = await call.dialled()
        except BaseException:
            await asyncio.shield(run_in_threadpool(forget))
            raise
        yield line


async def console(socket: WebSocket, control: Control, asking: Asking) -> None:
    """Carry one console from accepting its WebSocket to closing it.

    Args:
        asking: who else shows a token with it, if anybody; its action needs no tenant.
    """
    request_id = problems.request_id_of(socket)
    ended = Ended(CANNOT, "internal")
    try:
        looker = await run_in_threadpool(_redeem, socket, control, asking)
    except BulkheadError as exc:
        await socket.send_denial_response(problems.of_error(exc, request_id))
        return
    line: Line | None = None
    try:
        async with dialled(control, _console_of(looker, request_id)) as line:
            await socket.accept(subprotocol=PROTOCOL)
            ended = await _between(socket, line, control, looker)
            with contextlib.suppress(RuntimeError, WebSocketDisconnect, OSError):
                await socket.close(ended.code, ended.reason)
    except BulkheadError as exc:
        ended = Ended(CANNOT, exc.code)
        await socket.send_denial_response(problems.of_error(exc, request_id))
    except (WebSocketDisconnect, OSError):
        # The user left while the host was waited for.
        ended = Ended(GOING, "console.left")
    finally:
        await asyncio.shield(run_in_threadpool(_closed, control, looker, ended, line))


def _redeem(socket: WebSocket, control: Control, asking: Asking) -> Looker:
    offered = socket.scope["subprotocols"]
    tickets = [each for each in offered if each.startswith(_TICKET)]
    who = Actor(kind="anonymous", id="", address=asking.address, request_id=asking.request_id)
    try:
        if PROTOCOL not in offered or len(tickets) != 1:
            raise UnauthenticatedError(
                "console_ticket.missing",
                f"offer the subprotocols {PROTOCOL} and one ticket",
                hint="make a ticket: POST .../actions/console",
            )
        beside = asking.look(lambda _tx, caller: caller.principal.id) if asking.authorization else None
        with control.store.unit_of_work(who) as tx:
            return consoles.redeem(tx, control.pepper, parse_token(tickets[0]), who, beside)
    except UnauthenticatedError as exc:
        control.denials.record(who, consoles.ACTION, None, exc)
        raise


def _closed(control: Control, looker: Looker, ended: Ended, line: Line | None) -> None:
    sent, received = (0, 0) if line is None else (line.sent, line.received)
    well = ended.code in (DONE, GOING)
    with control.store.unit_of_work(looker.actor) as tx:
        consoles.closed(tx, looker, ended.reason or "done", ok=well, sent=sent, received=received)
    _log.info(
        "console.closed",
        request_id=looker.actor.request_id,
        instance=looker.instance_id,
        code=ended.code,
        reason=ended.reason,
        typed_bytes=sent,
        shown_bytes=received,
    )


def _console_of(looker: Looker, request_id: str) -> Wanted:
    return Wanted(
        id=new_id("str"),
        kind="console",
        tenant_id=looker.tenant_id,
        instance_id=looker.instance_id,
        host_id=looker.host_id,
        request_id=request_id,
    )


async def _between(socket: WebSocket, line: Line, control: Control, looker: Looker) -> Ended:
    """Carry both ways until one side ends, time is up, or who looks may not any more."""
    limits = control.switchboard.limits
    ways = [
        asyncio.create_task(_to_user(line, socket)),
        asyncio.create_task(_to_host(socket, line)),
        asyncio.create_task(_while_allowed(control, looker, limits.look_again_s)),
    ]
    try:
        done, _ = await asyncio.wait(ways, timeout=limits.longest_s, return_when=asyncio.FIRST_COMPLETED)
        return next(iter(done)).result() if done else Ended(DONE, "stream.too_long")
    finally:
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)


async def _to_user(line: Line, socket: WebSocket) -> Ended:
    while True:
        found = await line.receive()
        if isinstance(found, Ended):
            return _from_host(found)
        try:
            await socket.send_bytes(found)
        except (RuntimeError, WebSocketDisconnect, OSError):
            return Ended(GOING, "console.left")


async def _to_host(socket: WebSocket, line: Line) -> Ended:
    while True:
        message = await socket.receive()
        if message["type"] == "websocket.disconnect":
            return Ended(GOING, "console.left")
        data = message.get("bytes")
        if data is None:
            return Ended(_WRONG_KIND, "stream.text")
        if len(data) > MAX_STREAM_MESSAGE_BYTES:
            return Ended(TOO_MUCH, "stream.too_much")
        ended = await line.send(data)
        if ended is not None:
            return ended


async def _while_allowed(control: Control, looker: Looker, look_again_s: float) -> Ended:
    def look() -> None:
        with control.store.reading() as tx:
            consoles.demand_still(tx, looker, control.store.clock())

    while True:
        await asyncio.sleep(look_again_s)
        try:
            await run_in_threadpool(look)
        except BulkheadError as exc:
            if not exc.retryable or exc.code == "console.host_unreachable":
                return Ended(_NOT_ALLOWED, exc.code)
            # The database does not answer now; what was allowed stays so until it says otherwise.


def _from_host(ended: Ended) -> Ended:
    """Say in our words how a host's stream ended: codes such as 1006 must not be sent on."""
    known = ended.code in (DONE, TOO_MUCH, _WRONG_KIND)
    # An agent that is stopped meanwhile says that it cannot, and not why.
    if known or (ended.code == CANNOT and ended.reason):
        return ended
    return Ended(CANNOT, "stream.broken")


class LogResponse(StreamingResponse):
    """The bytes of a kept log as they come from its host; lets the host go whatever becomes of it."""

    def __init__(self, first: bytes, line: Line, open_: contextlib.AsyncExitStack) -> None:
        super().__init__(_pieces(first, line), media_type="text/plain")
        self._open = open_

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer; an answer that breaks off is left without its end, which cuts the connection."""
        async with self._open:
            try:
                await super().__call__(scope, receive, send)
            except HostError as exc:
                _log.warning("console_log.broken", request_id=scope.get("bulkhead.request_id"), code=exc.code)


async def kept_log(ask: Asking, instance: str, last_bytes: int) -> LogResponse:
    """Open what is kept of an instance's console on its host.

    Raises:
        NotFoundError: `instance.unknown`, `console_log.none`.
        HostError: `console.*`: the host cannot be reached, does not answer, or failed.
        RateLimitedError: `console.too_many`.
    """

    def work(tx: UnitOfWork, caller: Caller) -> InstanceRecord:
        return consoles.read_log(tx, caller, instance, last_bytes)

    found = await run_in_threadpool(ask.change, work)
    wanted = Wanted(
        id=new_id("str"),
        kind="console-log",
        tenant_id=found.tenant_id,
        instance_id=found.id,
        host_id=str(found.host_id),
        request_id=ask.request_id,
        last_bytes=last_bytes,
    )
    async with contextlib.AsyncExitStack() as stack:
        line = await stack.enter_async_context(dialled(ask.control, wanted))
        limits = ask.control.switchboard.limits
        try:
            first = await asyncio.wait_for(line.receive(), limits.dial_s)
        except TimeoutError as exc:
            raise HostError("console.no_answer", "the instance's host does not go on") from exc
        if isinstance(first, Ended):
            if first.reason == "console.unknown":
                raise consoles.no_log(found.name)
            if first.code != DONE:
                raise _broke_off(first)
            first = b""
        # From here on the answer holds the line.
        return LogResponse(first, line, stack.pop_all())
    raise AssertionError("the block returns or raises")  # pragma: no cover


async def _pieces(first: bytes, line: Line) -> AsyncIterator[bytes]:
    """What the host sends until its end; cut short when it breaks off, so that nobody takes it for whole."""
    if first:
        yield first
        while isinstance(piece := await line.receive(), bytes):
            yield piece
        if piece.code != DONE:
            raise _broke_off(piece)


def _broke_off(ended: Ended) -> HostError:
    return HostError("console.failed", f"the host broke off: {ended.reason or ended.code}")
