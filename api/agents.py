"""The agents' app: what a host may read and say about itself, and nothing else.

Who asks is the certificate that TLS verified (`api.peer`), looked up in the store on every call; no header is
ever believed. Long polls hold neither a thread nor a connection while they wait. Called by `processes`.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from typing import Annotated, TypeVar

from pydantic import Field, ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket

from api import agent_streams
from api.peer import PEER
from orchestrator.controller import assignments, doctor, enrolment, host_errors, reports, user_data
from orchestrator.controller.authority import Authority, HostCertificate, host_of
from orchestrator.controller.bell import CLOSING
from orchestrator.controller.control import Control
from orchestrator.model.actor import Actor
from orchestrator.model.assignment import Assignment
from orchestrator.model.doctor_message import MAX_DOCTOR_BYTES, parse_doctor
from orchestrator.model.errors import (
    BulkheadError,
    InvalidInputError,
    KeysError,
    TooLargeError,
    UnauthenticatedError,
)
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

Q = TypeVar("Q", bound=Message)
#: The scope's key: the version of the protocol that the caller speaks.
_PEER_VERSION = "bulkhead.peer_version"
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


class _Waits(Message):
    """How long a poll may be held."""

    wait_s: Annotated[float, Field(ge=0, le=MAX_WAIT_S, allow_inf_nan=False)]


class _Poll(_Waits):
    """A poll for what comes after an assignment."""

    after_epoch: Annotated[int, Field(ge=0, lt=2**63)]
    after_revision: Annotated[int, Field(ge=0, lt=2**63)]


class _Doors:
    """One method for each thing that a host may do."""

    def __init__(
        self, control: Control, authority: Authority, heartbeats: Heartbeats, closing: threading.Event
    ) -> None:
        self._control = control
        self._authority = authority
        self._heartbeats = heartbeats
        self._closing = closing
        #: Fingerprints of the certificates whose polls wait: each ring for their host looks them up anew.
        self._waiting: Counter[str] = Counter()
        #: Hosts whose doctor is asked to look, as their polls saw it last.
        self._asked: set[str] = set()

    def _who(self, request: HTTPConnection) -> Actor:
        shown, store = _shown(request), self._control.store
        with store.reading() as tx:
            enrolment.known(tx, shown, store.clock())
        return _actor(request, shown)

    async def assignment(self, request: Request) -> Response:
        """Answer as soon as there is an assignment above what the agent has, or with nothing in the end.

        It looks at its beginning, and when it is rung, for what other controllers committed too: a thousand
        polls that looked by themselves every few seconds would keep the controller busy.
        """
        asked, shown = _query(_Poll, request), _shown(request)
        actor, after = _actor(request, shown), (asked.after_epoch, asked.after_revision)
        deadline = time.monotonic() + asked.wait_s
        with self._control.bell.listen_async(f"host:{shown.host}", CLOSING) as ear:
            found = await self._look(actor, shown, after)
            self._heartbeats.heard(shown.host)
            while found is None and not self._closing.is_set() and (left := deadline - time.monotonic()) > 0:
                with self._vouching(shown):
                    if not await ear.wait(left):
                        break
                found = await self._look(actor, shown, after)
        return _said(b"", 204) if found is None else _answer(AssignmentAnswer(assignment=found))

    async def _look(self, actor: Actor, shown: HostCertificate, after: tuple[int, int]) -> Assignment | None:
        found, asked = await run_in_threadpool(_newer, self._control, actor, shown, after)
        (self._asked.add if asked else self._asked.discard)(shown.host)
        return found

    @contextlib.contextmanager
    def _vouching(self, shown: HostCertificate) -> Iterator[None]:
        self._waiting[shown.fingerprint] += 1
        try:
            yield
        finally:
            self._waiting[shown.fingerprint] -= 1
            if not self._waiting[shown.fingerprint]:
                del self._waiting[shown.fingerprint]

    async def report(self, request: Request) -> Response:
        """Take in what a host says about itself."""
        raw = await _body(request, MAX_REPORT_BYTES)
        await run_in_threadpool(self._take, request, raw)
        return _said(b"", 204)

    def _take(self, request: Request, raw: bytes) -> None:
        actor = self._who(request)
        read = parse_report(raw, _version_of(request))
        said = reports.Said(read.boot_id, read.agent_version, read.facts, read.report, read.refusal)
        with self._control.store.unit_of_work(actor) as tx:
            reports.received(tx, actor.id, said)
        self._heartbeats.heard(actor.id)

    async def heartbeat(self, request: Request) -> Response:
        """Note that a host lives; answer only when there is something to ask of it.

        A hundred come each second of a thousand hosts. Where a poll with the same certificate waits, that one
        has looked, and looks again when its host is fenced, let in anew or to be examined; the database is
        not asked. Agents before the doctor read no answer here.
        """
        parse_message(Heartbeat, await _body(request), peer=_version_of(request))
        shown = _shown(request)
        if shown.fingerprint in self._waiting:
            asked = shown.host in self._asked
        else:
            asked = await run_in_threadpool(self._is_asked, shown)
        self._heartbeats.heard(shown.host)
        return _answer(HeartbeatAnswer(doctor=True)) if asked else _said(b"", 204)

    def _is_asked(self, shown: HostCertificate) -> bool:
        store = self._control.store
        with store.reading() as tx:
            return assignments.standing(tx, shown, store.clock()).asked

    async def doctor(self, request: Request) -> Response:
        """Take in what a host's doctor found."""
        raw = await _body(request, MAX_DOCTOR_BYTES)
        await run_in_threadpool(self._examined, request, raw)
        return _said(b"", 204)

    def _examined(self, request: Request, raw: bytes) -> None:
        actor = self._who(request)
        found = parse_doctor(raw, _version_of(request))
        with self._control.store.unit_of_work(actor) as tx:
            doctor.taken_in(tx, actor.id, found)
        self._heartbeats.heard(actor.id)

    async def keys(self, request: Request) -> Response:
        """Hand out the key of a volume that is assigned to the host now."""
        asked = parse_message(KeyRequest, await _body(request), peer=_version_of(request))
        return _answer(KeyAnswer(passphrase=await run_in_threadpool(self._hand_out, request, asked)))

    def _hand_out(self, request: Request, asked: KeyRequest) -> str:
        actor = self._who(request)
        keyring = self._control.keyring
        if keyring is None:
            raise KeysError("keys.none", "this controller has no key backend")
        return keyring.hand_out(self._control.store, actor, asked.volume, asked.generation).decode()

    async def streams(self, request: Request) -> Response:
        """Answer as soon as somebody wants a stream of this host, or with nothing in the end."""
        asked, shown = _query(_Waits, request), _shown(request)
        found = await agent_streams.due(
            self._control, shown, asked.wait_s, self._closing, self._heartbeats.heard
        )
        return _answer(StreamsAnswer(streams=found)) if found else _said(b"", 204)

    async def stream(self, socket: WebSocket) -> None:
        """Take a stream that the host dials to whoever waits for it."""
        stream = str(socket.path_params["stream"])
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
        asked = parse_message(RenewRequest, await _body(request), peer=_version_of(request))
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
                scope[_PEER_VERSION] = check_version(Headers(scope=scope).get(PROTOCOL_HEADER))
            except BulkheadError as exc:
                await _problem(exc)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def agents_app(
    control: Control, authority: Authority, heartbeats: Heartbeats, closing: threading.Event | None = None
) -> Starlette:
    """Make the app of the agents' listener.

    Plain Starlette: hosts read no document, bodies are read within bounds of their own, and what FastAPI does
    around a call took longer than the call, a hundred and more times a second.

    Args:
        closing: set when the process ends: polls that wait are answered, once `CLOSING` is rung.
    """
    doors = _Doors(control, authority, heartbeats, closing or threading.Event())
    return Starlette(
        routes=[
            # What is asked most stands first.
            Route("/agent/v1/heartbeat", doors.heartbeat, methods=["POST"]),
            Route("/agent/v1/assignment", doors.assignment, methods=["GET"]),
            Route("/agent/v1/streams", doors.streams, methods=["GET"]),
            Route("/agent/v1/report", doors.report, methods=["POST"]),
            Route("/agent/v1/doctor", doors.doctor, methods=["POST"]),
            Route("/agent/v1/keys", doors.keys, methods=["POST"]),
            Route("/agent/v1/certificate", doors.certificate, methods=["POST"]),
            WebSocketRoute("/agent/v1/streams/{stream}", doors.stream),
        ],
        middleware=[Middleware(_Speaking)],
        exception_handlers={BulkheadError: _refuse},
    )


async def _refuse(_request: Request, exc: Exception) -> Response:
    assert isinstance(exc, BulkheadError)  # noqa: S101 - registered for nothing else
    return _problem(exc)


#: A connection shows its certificate again with each call; what it says never changes.
_read = lru_cache(maxsize=4096)(host_of)


def _shown(request: HTTPConnection) -> HostCertificate:
    """Return what TLS proved; whether it still counts, the store says.

    Raises:
        UnauthenticatedError: `certificate.missing`, `certificate.no_host`.
    """
    der = request.scope.get(PEER)
    if der is None:
        raise UnauthenticatedError("certificate.missing", "a client certificate is required")
    return _read(der)


def _actor(request: HTTPConnection, shown: HostCertificate) -> Actor:
    return Actor(kind="host", id=shown.host, address=request.client.host if request.client else "")


def _query(kind: type[Q], request: Request) -> Q:
    """Read a query: each name once, none that is unknown.

    Raises:
        InvalidInputError: `protocol.bad_message`.
    """
    pairs = request.query_params.multi_items()
    try:
        if len(dict(pairs)) == len(pairs):
            return kind.model_validate_strings(dict(pairs))
    except ValidationError as exc:
        raise _bad_query() from exc
    raise _bad_query()


def _bad_query() -> InvalidInputError:
    return InvalidInputError("protocol.bad_message", "the query is not one of this version")


def _newer(
    control: Control, actor: Actor, shown: HostCertificate, after: tuple[int, int]
) -> tuple[Assignment | None, bool]:
    """Return the host's assignment if its agent has an older one; hand out what waits for it first.

    Returns:
        It, or None when there is nothing new, and whether somebody waits for the host's doctor.

    Raises:
        UnauthenticatedError: `certificate.revoked`: perhaps since the poll began.
    """
    with control.store.reading() as tx:
        now = assignments.standing(tx, shown, control.store.clock())
    if after > now.version:
        host_errors.note_ahead(control.store, actor, after, now.version)
    if not now.due and now.version <= after:
        return None, now.asked
    if now.due:
        with control.store.unit_of_work(actor) as tx:
            assignments.hand_out(tx, actor.id)
    with control.store.reading() as tx:
        found = assignments.compiled(tx, actor.id)
        sealed = user_data.of_host(tx, actor.id)
    if found is None or (found.epoch, found.revision) <= after:
        return None, now.asked
    told, failed = user_data.opened(control.keyring, found, sealed)
    if failed:
        with control.store.unit_of_work(actor) as tx:
            reports.left_out(tx, actor.id, failed)
    return told, now.asked


def _version_of(request: Request) -> int:
    return int(request.scope[_PEER_VERSION])


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
