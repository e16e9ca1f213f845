"""The agents' app: what a host may read and say about itself, and nothing else.

Who asks is the certificate that TLS verified (`api.peer`), looked up in the store on every call; no header is
ever believed. Long polls hold neither a thread nor a connection while they wait. Called by `processes`.
"""

from __future__ import annotations

import json
import threading
import time
from typing import Annotated

from fastapi import FastAPI, Query, Request, Response, WebSocket
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from api import agent_streams
from api.peer import PEER
from orchestrator.controller import assignments, doctor, enrolment, host_errors, reports, user_data
from orchestrator.controller.authority import Authority
from orchestrator.controller.bell import CLOSING
from orchestrator.controller.control import Control
from orchestrator.model.actor import Actor
from orchestrator.model.assignment import Assignment
from orchestrator.model.doctor_message import MAX_DOCTOR_BYTES, parse_doctor
from orchestrator.model.errors import BulkheadError, KeysError, TooLargeError, UnauthenticatedError
from orchestrator.model.protocol import (
    MAX_REPORT_BYTES,
    MAX_SMALL_BYTES,
    MAX_WAIT_S,
    PROTOCOL_HEADER,
    PROTOCOL_VERSION,
    AssignmentAnswer,
    Heartbeat,
    HeartbeatAnswer,
    KeyAnswer,
    KeyRequest,
    RenewAnswer,
    RenewRequest,
    StreamsAnswer,
    check_version,
    parse_message,
    parse_report,
)
from orchestrator.model.wire import Message

_HEADERS = {PROTOCOL_HEADER: str(PROTOCOL_VERSION)}


class Heartbeats:
    """When each host was heard last; memory only, since a restart asks them all anew."""

    def __init__(self) -> None:
        self._heard: dict[str, float] = {}

    def heard(self, host_id: str) -> None:
        """Note that a host lives."""
        self._heard[host_id] = time.monotonic()

    def ages_s(self) -> dict[str, float]:
        """Seconds since each host was heard, of those heard since this process started."""
        now = time.monotonic()
        return {host_id: now - heard for host_id, heard in self._heard.copy().items()}


class _Doors:
    """One method for each thing that a host may do."""

    def __init__(
        self, control: Control, authority: Authority, heartbeats: Heartbeats, closing: threading.Event
    ) -> None:
        self._control = control
        self._authority = authority
        self._heartbeats = heartbeats
        self._closing = closing

    def _who(self, request: HTTPConnection) -> Actor:
        der = request.scope.get(PEER)
        if der is None:
            raise UnauthenticatedError("certificate.missing", "a client certificate is required")
        store = self._control.store
        with store.reading() as tx:
            host_id = enrolment.known_host(tx, der, store.clock())
        return Actor(kind="host", id=host_id, address=request.client.host if request.client else "")

    async def assignment(
        self,
        request: Request,
        after_epoch: Annotated[int, Query(ge=0, lt=2**63)],
        after_revision: Annotated[int, Query(ge=0, lt=2**63)],
        wait_s: Annotated[float, Query(ge=0, le=MAX_WAIT_S)],
    ) -> Response:
        """Answer as soon as there is an assignment above what the agent has, or with nothing in the end.

        It looks when it is rung, for what other controllers committed too, and once more at its end: a
        thousand polls that looked by themselves every few seconds would keep the controller busy.
        """
        actor = await run_in_threadpool(self._who, request)
        deadline = time.monotonic() + wait_s
        self._heartbeats.heard(actor.id)
        with self._control.bell.listen_async(f"host:{actor.id}", CLOSING) as ear:
            while True:
                after = (after_epoch, after_revision)
                found = await run_in_threadpool(_newer, self._control, actor, after)
                left = deadline - time.monotonic()
                if found is not None:
                    return _answer(AssignmentAnswer(assignment=found))
                if left <= 0 or self._closing.is_set():
                    return _said(b"", 204)
                await ear.wait(left)

    async def report(self, request: Request) -> Response:
        """Take in what a host says about itself."""
        raw = await _body(request, MAX_REPORT_BYTES)
        await run_in_threadpool(self._take, request, raw)
        return _said(b"", 204)

    def _take(self, request: Request, raw: bytes) -> None:
        actor = self._who(request)
        read = parse_report(raw)
        said = reports.Said(read.boot_id, read.agent_version, read.facts, read.report, read.refusal)
        with self._control.store.unit_of_work(actor) as tx:
            reports.received(tx, actor.id, said)
        self._heartbeats.heard(actor.id)

    async def heartbeat(self, request: Request) -> Response:
        """Note that a host lives; answer only when there is something to ask of it.

        Agents before the doctor read no answer here.
        """
        parse_message(Heartbeat, await _body(request))
        asked = await run_in_threadpool(self._beat, request)
        return _answer(HeartbeatAnswer(doctor=True)) if asked else _said(b"", 204)

    def _beat(self, request: Request) -> bool:
        actor = self._who(request)
        self._heartbeats.heard(actor.id)
        with self._control.store.reading() as tx:
            return doctor.is_asked(tx, actor.id)

    async def doctor(self, request: Request) -> Response:
        """Take in what a host's doctor found."""
        raw = await _body(request, MAX_DOCTOR_BYTES)
        await run_in_threadpool(self._examined, request, raw)
        return _said(b"", 204)

    def _examined(self, request: Request, raw: bytes) -> None:
        actor = self._who(request)
        found = parse_doctor(raw)
        with self._control.store.unit_of_work(actor) as tx:
            doctor.taken_in(tx, actor.id, found)
        self._heartbeats.heard(actor.id)

    async def keys(self, request: Request) -> Response:
        """Hand out the key of a volume that is assigned to the host now."""
        asked = parse_message(KeyRequest, await _body(request))
        return _answer(KeyAnswer(passphrase=await run_in_threadpool(self._hand_out, request, asked)))

    def _hand_out(self, request: Request, asked: KeyRequest) -> str:
        actor = self._who(request)
        keyring = self._control.keyring
        if keyring is None:
            raise KeysError("keys.none", "this controller has no key backend")
        return keyring.hand_out(self._control.store, actor, asked.volume, asked.generation).decode()

    async def streams(
        self, request: Request, wait_s: Annotated[float, Query(ge=0, le=MAX_WAIT_S)]
    ) -> Response:
        """Answer as soon as somebody wants a stream of this host, or with nothing in the end."""
        actor = await run_in_threadpool(self._who, request)
        self._heartbeats.heard(actor.id)
        found = await agent_streams.due(self._control, actor.id, wait_s, self._closing)
        return _answer(StreamsAnswer(streams=found)) if found else _said(b"", 204)

    async def stream(self, socket: WebSocket, stream: str) -> None:
        """Take a stream that the host dials to whoever waits for it."""
        try:
            check_version(socket.headers.get(PROTOCOL_HEADER))
            actor = await run_in_threadpool(self._who, socket)
            call = await agent_streams.taken(self._control, actor, stream)
        except BulkheadError as exc:
            await socket.send_denial_response(_problem(exc))
            return
        self._heartbeats.heard(actor.id)
        await agent_streams.carry(call, socket)

    async def certificate(self, request: Request) -> Response:
        """Sign the host's next certificate."""
        asked = parse_message(RenewRequest, await _body(request))
        return _answer(RenewAnswer(certificate_pem=await run_in_threadpool(self._renew, request, asked)))

    def _renew(self, request: Request, asked: RenewRequest) -> str:
        actor = self._who(request)
        with self._control.store.unit_of_work(actor) as tx:
            return enrolment.renew(tx, self._authority, actor.id, asked.csr_pem)


class _Speaking:
    """Refuses calls in a version that we do not speak; of a stream that is asked when it is dialled."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        if scope["type"] == "http":
            try:
                check_version(Headers(scope=scope).get(PROTOCOL_HEADER))
            except BulkheadError as exc:
                await _problem(exc)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def agents_app(
    control: Control, authority: Authority, heartbeats: Heartbeats, closing: threading.Event | None = None
) -> FastAPI:
    """Make the app of the agents' listener.

    Args:
        closing: set when the process ends: polls that wait are answered, once `CLOSING` is rung.
    """
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    doors = _Doors(control, authority, heartbeats, closing or threading.Event())

    app.add_middleware(_Speaking)

    @app.exception_handler(BulkheadError)
    async def refuse(_request: Request, exc: BulkheadError) -> Response:
        return _problem(exc)

    app.add_api_route("/agent/v1/assignment", doors.assignment, methods=["GET"])
    app.add_api_route("/agent/v1/streams", doors.streams, methods=["GET"])
    app.add_api_websocket_route("/agent/v1/streams/{stream}", doors.stream)
    for path, door in (
        ("report", doors.report),
        ("heartbeat", doors.heartbeat),
        ("doctor", doors.doctor),
        ("keys", doors.keys),
        ("certificate", doors.certificate),
    ):
        app.add_api_route(f"/agent/v1/{path}", door, methods=["POST"])
    return app


def _newer(control: Control, actor: Actor, after: tuple[int, int]) -> Assignment | None:
    """Return the host's assignment if its agent has an older one; hand out what waits for it first."""
    with control.store.reading() as tx:
        due, ours = assignments.is_due(tx, actor.id), assignments.version(tx, actor.id)
    if after > ours:
        host_errors.note_ahead(control.store, actor, after, ours)
    if not due and ours <= after:
        return None
    if due:
        with control.store.unit_of_work(actor) as tx:
            assignments.hand_out(tx, actor.id)
    with control.store.reading() as tx:
        found = assignments.compiled(tx, actor.id)
        sealed = user_data.of_host(tx, actor.id)
    if found is None or (found.epoch, found.revision) <= after:
        return None
    told, failed = user_data.opened(control.keyring, found, sealed)
    if failed:
        with control.store.unit_of_work(actor) as tx:
            reports.left_out(tx, actor.id, failed)
    return told


async def _body(request: Request, limit: int = MAX_SMALL_BYTES) -> bytes:
    """Read a body up to a limit, counted in bytes, whatever its length header says."""
    raw = bytearray()
    async for piece in request.stream():
        raw += piece
        if len(raw) > limit:
            raise TooLargeError("protocol.too_large", f"more than {limit} bytes")
    return bytes(raw)


def _said(body: bytes, status: int = 200) -> Response:
    return Response(body, status, _HEADERS, media_type="application/json" if body else None)


def _answer(message: Message) -> Response:
    return _said(message.model_dump_json().encode())


def _problem(exc: BulkheadError) -> Response:
    body = {"title": "refused", "status": exc.http_status, "code": exc.code, "detail": exc.message}
    return Response(
        json.dumps(body).encode(), exc.http_status, _HEADERS, media_type="application/problem+json"
    )
