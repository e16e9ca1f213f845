"""A small controller: real TLS, real messages, and a memory instead of a database."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response, WebSocket, WebSocketDisconnect

from api.peer import PEER
from orchestrator.controller.authority import (
    Authority,
    JoinSecret,
    host_of,
    make_join_token,
    parse_join_token,
)
from orchestrator.model.assignment import Assignment
from orchestrator.model.doctor_message import DoctorReport, parse_doctor
from orchestrator.model.errors import BulkheadError, ConflictError
from orchestrator.model.protocol import (
    MAX_REPORT_BYTES,
    PROTOCOL_HEADER,
    EnrolAnswer,
    EnrolRequest,
    Heartbeat,
    HeartbeatAnswer,
    KeyAnswer,
    KeyRequest,
    RenewAnswer,
    RenewRequest,
    Report,
    StreamOrder,
    StreamsAnswer,
    check_version,
    parse_message,
    parse_report,
)
from tests.unit.link.listener import NOW, Listener, agents_listener, public_listener

DEPLOYMENT = "dep_lab"
HOST = "hst_lab1"
Hook = Callable[[Request], Response | None]


def passphrase(volume: str, generation: int) -> str:
    """The key that this controller gives."""
    return base64.b64encode(hashlib.sha256(f"{volume}/{generation}".encode()).digest()).decode()


class Controller:
    """What is assigned, what was said, and faults.

    Attributes:
        answer_instead: takes a request of the agents' listener and may answer in the app's place.
    """

    def __init__(self, folder: Path, authority: Authority | None = None) -> None:
        self.folder = folder
        self.authority = authority or Authority.create(folder / "authority", NOW)
        self.reset()
        self.agents = agents_listener(self._agents_app(), self.authority, folder / "agents")
        self.public = public_listener(self._public_app(), self.authority, folder / "public")

    def reset(self) -> None:
        """Forget all, as new: listeners are slow to start, so that tests share them."""
        self.assignments: dict[str, Assignment] = {}
        self.reports: list[tuple[str, Report]] = []
        self.doctors: list[tuple[str, DoctorReport]] = []
        self.asked = False
        self.beats: list[tuple[str, str]] = []
        self.keys_given: list[tuple[str, str]] = []
        self.no_keys: set[str] = set()
        self.polls: list[tuple[str, int, int]] = []
        self.streams: dict[str, list[StreamOrder]] = {}
        self.carried: dict[str, bytes] = {}
        self.closed: dict[str, tuple[int, str]] = {}
        self.typed: dict[str, list[bytes | str]] = {}
        self.joins: dict[str, tuple[bytes, str]] = {}
        self.answer_instead: Hook = lambda _request: None
        self.issued_days = 30

    def join_token(self, host: str, *, secret: bytes = b"s" * 32) -> str:
        """Let one agent enrol once."""
        parts = JoinSecret(f"jt_{len(self.joins)}", secret, self.authority.fingerprint)
        self.joins[parts.id] = (hashlib.sha256(secret).digest(), host)
        return make_join_token(parts)

    def assign(self, assignment: Assignment) -> None:
        """Order something of its host."""
        self.assignments[assignment.host] = assignment

    def last(self, host: str = HOST) -> Report | None:
        """What a host said last."""
        return next((said for name, said in reversed(self.reports) if name == host), None)

    def followed(self, revision: int, host: str = HOST) -> Report | None:
        """The last report, when it is of this revision."""
        said = self.last(host)
        return said if said and said.report and said.report.revision == revision else None

    def _public_app(self) -> FastAPI:
        app = FastAPI()

        @app.post("/v1/enrol")
        async def enrol(request: Request) -> Response:
            check_version(request.headers.get(PROTOCOL_HEADER))
            asked = parse_message(EnrolRequest, await request.body())
            token = parse_join_token(asked.token)
            kept, host = self.joins.pop(token.id, (b"", ""))
            if kept != hashlib.sha256(token.secret).digest():
                return problem(ConflictError("join_token.used", "the token is used up, too old or unknown"))
            certificate = self.authority.sign_host(asked.csr_pem, host, NOW, days=self.issued_days)
            return answer(
                EnrolAnswer(
                    certificate_pem=certificate,
                    ca_pem=self.authority.certificate_pem,
                    host=host,
                    deployment=DEPLOYMENT,
                    agents_url=self.agents.url,
                )
            )

        return app

    def _agents_app(self) -> FastAPI:
        app = FastAPI()

        @app.middleware("http")
        async def speak(request: Request, go_on: Any) -> Response:
            instead = self.answer_instead(request)
            if instead is not None:
                return instead
            try:
                check_version(request.headers.get(PROTOCOL_HEADER))
            except BulkheadError as exc:
                return problem(exc)
            response: Response = await go_on(request)
            return response

        @app.get("/agent/v1/assignment")
        async def assignment(
            request: Request, after_epoch: int, after_revision: int, wait_s: float
        ) -> Response:
            host = who(request)
            self.polls.append((host, after_epoch, after_revision))
            for _ in range(max(1, int(wait_s / 0.02))):
                wanted = self.assignments.get(host)
                if wanted is not None and (wanted.epoch, wanted.revision) > (after_epoch, after_revision):
                    return said(b'{"assignment": ' + wanted.model_dump_json().encode() + b"}")
                await asyncio.sleep(0.02)
            return said(b"", 204)

        @app.post("/agent/v1/report")
        async def report(request: Request) -> Response:
            raw = await request.body()
            assert len(raw) <= MAX_REPORT_BYTES
            self.reports.append((who(request), parse_report(raw)))
            return said(b"", 204)

        @app.post("/agent/v1/doctor")
        async def doctor(request: Request) -> Response:
            self.doctors.append((who(request), parse_doctor(await request.body())))
            self.asked = False
            return said(b"", 204)

        @app.post("/agent/v1/heartbeat")
        async def heartbeat(request: Request) -> Response:
            self.beats.append((who(request), parse_message(Heartbeat, await request.body()).boot_id))
            return answer(HeartbeatAnswer(doctor=True)) if self.asked else said(b"", 204)

        self._add_keys_and_streams(app)
        return app

    def _add_keys_and_streams(self, app: FastAPI) -> None:
        @app.post("/agent/v1/keys")
        async def keys(request: Request) -> Response:
            asked = parse_message(KeyRequest, await request.body())
            if asked.volume in self.no_keys:
                return problem(ConflictError("key.not_assigned", "it is not assigned to this host"))
            self.keys_given.append((who(request), asked.volume))
            return answer(KeyAnswer(passphrase=passphrase(asked.volume, asked.generation)))

        @app.post("/agent/v1/certificate")
        async def certificate(request: Request) -> Response:
            asked = parse_message(RenewRequest, await request.body())
            signed = self.authority.sign_host(asked.csr_pem, who(request), NOW, days=self.issued_days)
            return answer(RenewAnswer(certificate_pem=signed))

        @app.get("/agent/v1/streams")
        async def streams(request: Request, wait_s: float) -> Response:
            host = who(request)
            for _ in range(max(1, int(wait_s / 0.02))):
                if self.streams.get(host):
                    return answer(StreamsAnswer(streams=tuple(self.streams[host])))
                await asyncio.sleep(0.02)
            return said(b"", 204)

        @app.websocket("/agent/v1/streams/{stream}")
        async def carry(socket: WebSocket, stream: str) -> None:
            host = host_of(socket.scope[PEER]).host
            orders = self.streams[host]
            self.streams[host] = [each for each in orders if each.id != stream]
            await socket.accept()
            await self._carry(socket, stream)

    async def _carry(self, socket: WebSocket, stream: str) -> None:
        self.carried[stream] = b""
        for data in self.typed.get(stream, []):
            await (socket.send_text(data) if isinstance(data, str) else socket.send_bytes(data))
        try:
            while True:
                self.carried[stream] += await socket.receive_bytes()
                if self.carried[stream].endswith(b"echo: quit\r\n"):
                    await socket.close()
                    self.closed[stream] = (0, "by us")
                    return
        except WebSocketDisconnect as exc:
            self.closed[stream] = (exc.code, exc.reason or "")


def who(request: Request) -> str:
    """The host that proved itself to TLS."""
    return host_of(request.scope[PEER]).host


def said(body: bytes, status: int = 200, version: str = "1") -> Response:
    """An answer of the protocol."""
    headers = {PROTOCOL_HEADER: version}
    return Response(body, status, headers, media_type="application/json" if body else None)


def answer(message: Any) -> Response:
    return said(message.model_dump_json().encode())


def problem(exc: BulkheadError) -> Response:
    body = {"code": exc.code, "detail": exc.message, "status": exc.http_status, "title": "refused"}
    return said(json.dumps(body).encode(), exc.http_status)


__all__ = ["Controller", "Listener", "answer", "passphrase", "problem", "said", "who"]
