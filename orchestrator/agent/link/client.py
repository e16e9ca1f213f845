"""The protocol from the agent's side: one method per message, answers bounded, foreign errors translated.

Decides what an answer means for the agent: try again (`HostError`), do not (`LinkRefused`), or read it. Holds
no state of the host and never retries by itself. Everything runs on one asyncio loop; `controller_keys` is
the bridge for the reconciler's thread. `session` and the agent's process call it.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar
from urllib.parse import urlsplit

import httpx2

from orchestrator.agent.link.certificates import ended, trusting
from orchestrator.agent.link.pin import LinkUntrusted, pinned_authority
from orchestrator.model.assignment import Assignment
from orchestrator.model.doctor_message import DoctorReport
from orchestrator.model.errors import BulkheadError, HostError, InvalidInputError
from orchestrator.model.join_token import parse_join_token
from orchestrator.model.protocol import (
    MAX_ANSWER_BYTES,
    MAX_REPORT_BYTES,
    MAX_SMALL_BYTES,
    PROTOCOL_HEADER,
    PROTOCOL_VERSION,
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
    parse_assignment_answer,
    parse_message,
    problem_of,
    unknown_key,
)
from orchestrator.model.wire import Message

M = TypeVar("M", bound=Message)
#: How long an answer may take beyond what it was asked to wait, in seconds.
ANSWER_S = 20.0
#: Below the listener's own (30 s), so that we never speak into a connection that it is closing.
_KEEP_ALIVE_S = 20.0
_TOO_BUSY = frozenset({408, 429})


#: What to do about a refusal that names these.
_WAYS_ON = {
    "certificate.revoked": "an operator makes a token (bulkhead host join-token NAME); then here: "
    "bulkhead agent enrol --again, and restart the agent"
}


class LinkRefused(HostError):
    """The controller understood and refused; saying the same again will not help.

    Args:
        status: HTTP status.
        said: the code of the controller's problem; empty when it named none.
    """

    retryable = False

    def __init__(self, status: int, said: str, detail: str) -> None:
        super().__init__(
            "link.refused",
            f"the controller refused: {said or status}: {detail}".rstrip(": "),
            hint=_WAYS_ON.get(said),
        )
        self.status = status
        self.said = said


@dataclass(frozen=True)
class _Answered:
    """A body, None for none (204), and the version that its sender speaks."""

    body: bytes | None = field(repr=False)
    peer: int

    def read(self, kind: type[M]) -> M:
        return parse_message(kind, self.body or b"", peer=self.peer)


class Link:
    """One host's link to its controller.

    Args:
        url: the agents' listener, `https://...`.
        tls: this host's side of TLS.
        not_after: when the certificate that is shown ends; None is not known.
        answer_s: how long an answer may take beyond what it was asked to wait.
    """

    def __init__(
        self,
        url: str,
        tls: ssl.SSLContext,
        *,
        not_after: dt.datetime | None = None,
        answer_s: float = ANSWER_S,
    ) -> None:
        self.url = url.rstrip("/")
        self._not_after = not_after
        self._answer_s = answer_s
        self.tls = tls
        self._client = _client(tls)

    async def use(self, tls: ssl.SSLContext, not_after: dt.datetime | None = None) -> None:
        """Go on with another certificate; what is under way ends as it may."""
        old, self._client, self.tls = self._client, _client(tls), tls
        self._not_after = not_after
        await old.aclose()

    async def close(self) -> None:
        """Let go of all connections."""
        await self._client.aclose()

    async def next_assignment(self, epoch: int, revision: int, wait_s: float) -> Assignment | None:
        """Wait for an assignment after (epoch, revision); None when there was none within `wait_s`.

        Raises:
            AssignmentRefused: one came that cannot be followed as it stands.
            InvalidInputError: `protocol.bad_message`, `protocol.version`.
            HostError: `link.*`.
        """
        asked = {"after_epoch": str(epoch), "after_revision": str(revision), "wait_s": f"{wait_s:g}"}
        found = await self._ask(
            "GET", "/agent/v1/assignment", params=asked, limit=MAX_ANSWER_BYTES, wait_s=wait_s
        )
        return None if found.body is None else parse_assignment_answer(found.body)

    async def report(self, report: Report) -> None:
        """Say what came of the assignment.

        Raises:
            HostError: `link.*`.
        """
        raw = report.encode()
        if len(raw) > MAX_REPORT_BYTES:
            raise LinkRefused(
                413, "link.report_too_large", f"{len(raw)} bytes; {MAX_REPORT_BYTES} are allowed"
            )
        await self._ask("POST", "/agent/v1/report", body=raw)

    async def heartbeat(self, boot_id: str) -> bool:
        """Say that the host lives; return whether somebody waits for its doctor.

        Raises:
            HostError: `link.*`.
        """
        body = Heartbeat(boot_id=boot_id).model_dump_json().encode()
        found = await self._ask("POST", "/agent/v1/heartbeat", body=body)
        return bool(found.body) and found.read(HeartbeatAnswer).doctor

    async def doctor(self, report: DoctorReport) -> None:
        """Say what the doctor found.

        Raises:
            LinkRefused: with status 404 a controller that does not know the doctor yet.
            HostError: `link.*`.
        """
        await self._ask("POST", "/agent/v1/doctor", body=report.encode())

    async def passphrase(self, volume: str, generation: int) -> bytes:
        """Fetch one volume's passphrase. It is in no error and no log.

        Raises:
            NotFoundError: `key.unknown`.
            HostError: `link.*`.
        """
        body = KeyRequest(volume=volume, generation=generation).model_dump_json().encode()
        try:
            found = await self._ask("POST", "/agent/v1/keys", body=body)
        except LinkRefused as exc:
            raise unknown_key(volume, generation) from exc
        return found.read(KeyAnswer).passphrase.encode()

    async def streams(self, wait_s: float) -> tuple[StreamOrder, ...]:
        """Wait for streams that somebody wants of this host.

        Raises:
            HostError: `link.*`.
        """
        asked = {"wait_s": f"{wait_s:g}"}
        found = await self._ask("GET", "/agent/v1/streams", params=asked, wait_s=wait_s)
        return () if found.body is None else found.read(StreamsAnswer).streams

    async def renew(self, csr_pem: str) -> RenewAnswer:
        """Ask for the next certificate.

        Raises:
            HostError: `link.*`.
        """
        body = RenewRequest(csr_pem=csr_pem).model_dump_json().encode()
        return (await self._ask("POST", "/agent/v1/certificate", body=body)).read(RenewAnswer)

    async def _ask(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: bytes | None = None,
        limit: int = MAX_SMALL_BYTES,
        wait_s: float = 0.0,
    ) -> _Answered:
        client = self._client
        request = client.build_request(
            method, self.url + path, params=params, content=body, headers=_headers(body)
        )
        try:
            return await _exchange(client, request, limit, wait_s + self._answer_s)
        except HostError as exc:
            # A listener that refuses a certificate hangs up, often before it is heard saying why.
            if exc.code == "link.broken" and self._not_after and self._not_after <= dt.datetime.now(dt.UTC):
                raise ended(f" at {self._not_after:%Y-%m-%d %H:%M:%SZ}") from exc
            raise


async def enrol(controller_url: str, token: str, csr_pem: str) -> tuple[EnrolAnswer, str]:
    """Hand in a join token and a request; return the answer and the authority that the token named (PEM).

    Raises:
        InvalidInputError: `join_token.malformed`, `link.url`, `protocol.bad_message`.
        LinkUntrusted: `link.untrusted`.
        HostError: `link.*`; `link.refused` when the token was used, is too old or unknown.
    """
    host, port = _place(controller_url)
    fingerprint = parse_join_token(token).ca_fingerprint
    authority_pem = await asyncio.to_thread(pinned_authority, host, port, fingerprint)
    body = EnrolRequest(token=token, csr_pem=csr_pem).model_dump_json().encode()
    async with _client(trusting(authority_pem)) as client:
        url = controller_url.rstrip("/") + "/v1/enrol"
        request = client.build_request("POST", url, content=body, headers=_headers(body))
        found = await _exchange(client, request, MAX_SMALL_BYTES, ANSWER_S)
    return found.read(EnrolAnswer), authority_pem


def _place(url: str) -> tuple[str, int]:
    with contextlib.suppress(ValueError):
        parts = urlsplit(url)
        plain = not (parts.query or parts.fragment or parts.username or parts.password)
        if parts.scheme == "https" and parts.hostname and plain:
            return parts.hostname, parts.port or 443
    raise InvalidInputError(
        "link.url", "the controller's address is https://HOST or https://HOST:PORT", field="--controller"
    )


def _client(tls: ssl.SSLContext) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(
        verify=tls,
        # Proxies of the environment are for people; the link goes straight to the controller.
        trust_env=False,
        timeout=None,
        limits=httpx2.Limits(max_connections=8, max_keepalive_connections=4, keepalive_expiry=_KEEP_ALIVE_S),
    )


def _headers(body: bytes | None) -> dict[str, str]:
    # Compressed answers could be small on the wire and without an end in memory.
    found = {PROTOCOL_HEADER: str(PROTOCOL_VERSION), "Accept-Encoding": "identity"}
    return found if body is None else {**found, "Content-Type": "application/json"}


async def _exchange(
    client: httpx2.AsyncClient, request: httpx2.Request, limit: int, deadline_s: float
) -> _Answered:
    """Send one request and return its answer."""
    try:
        async with asyncio.timeout(deadline_s):
            response = await client.send(request, stream=True)
            try:
                body = await _body(response, limit)
            finally:
                await response.aclose()
    except TimeoutError as exc:
        raise HostError("link.timeout", f"the controller did not answer within {deadline_s:g} s") from exc
    except httpx2.HTTPError as exc:
        raise _translated(exc) from exc
    except (RuntimeError, httpx2.InvalidURL) as exc:  # the client was closed under us, or a broken address
        raise HostError("link.broken", f"the link broke: {type(exc).__name__}") from exc
    return _meaning(response, body)


async def _body(response: httpx2.Response, limit: int) -> bytes:
    if response.headers.get("content-encoding", "identity") != "identity":
        raise HostError("link.bad_answer", "the controller answered in an encoding that nobody asked for")
    body = bytearray()
    async for piece in response.aiter_raw():
        body += piece
        if len(body) > limit:
            raise HostError("link.bad_answer", f"the controller answered with more than {limit} bytes")
    return bytes(body)


def _meaning(response: httpx2.Response, body: bytes) -> _Answered:
    status = response.status_code
    if status in (200, 201, 204):
        peer = check_version(response.headers.get(PROTOCOL_HEADER))
        return _Answered(None if status == 204 else body, peer)
    said, detail = problem_of(body)
    if status == 426:
        check_version(response.headers.get(PROTOCOL_HEADER, "another"))
    if status >= 500 or status in _TOO_BUSY:
        raise HostError("link.unavailable", f"the controller answers {status} {said}".rstrip())
    raise LinkRefused(status, said, detail)


def _translated(exc: httpx2.HTTPError) -> BulkheadError:
    cause: BaseException | None = exc
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return LinkUntrusted(
                "link.untrusted",
                f"whoever answers is not our controller: {cause.verify_message}",
                hint="is agents_url its address, and is that name in the listener's certificate?",
            )
        # TLS 1.3 tells it with the first answer only, as an alert; the text is OpenSSL's name of that.
        if isinstance(cause, ssl.SSLError) and "ALERT_CERTIFICATE_EXPIRED" in (cause.reason or ""):
            return ended()
        cause = cause.__cause__ or cause.__context__
    if isinstance(exc, httpx2.ConnectError | httpx2.ConnectTimeout):
        return HostError("link.unreachable", f"the controller cannot be reached: {exc}")
    return HostError("link.broken", f"the link broke: {type(exc).__name__}: {exc}".rstrip(": "))
