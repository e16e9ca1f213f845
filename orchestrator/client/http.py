"""One HTTP call to the API: how it is sent, when it is sent again, and what its answer is.

Decides which calls may be repeated. A call that nobody began (no connection, 429, 503) always may; one whose
answer was lost only if it changes nothing or carries an `Idempotency-Key`: anything else could be done twice.
Follows no redirect, so that a token goes nowhere but to the server it was meant for. The collections, the
operations' wait and the event stream stand on it.
"""

from __future__ import annotations

import ipaddress
import json
import secrets
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx2

from orchestrator.client import clock
from orchestrator.client.errors import UnreachableError, error_of, retry_after_s
from orchestrator.model.errors import BulkheadError, InvalidInputError

TRIES = 4
_FIRST_PAUSE_S = 0.2
#: A server that wants us away for longer is told of, not waited for.
_MAX_PAUSE_S = 10.0
_CONNECT_S = 10.0
_READ_S = 60.0
#: A page of a thousand of the largest objects; more is no answer of ours.
MAX_ANSWER_BYTES = 256 * 1024 * 1024
MAX_LINE_BYTES = 1024 * 1024

_NOT_BEGUN = (429, 503)
_LOST = (502, 504)


@dataclass(frozen=True)
class Answer:
    """A success: status, the JSON that came (None for an empty body) and headers with lower-case names."""

    status: int
    body: Any
    headers: Mapping[str, str]

    @property
    def tag(self) -> str:
        """The version of the thing, for `If-Match`; empty if the server named none."""
        return self.headers.get("etag", "")


@dataclass(frozen=True)
class Call:
    """One call as it is sent.

    Args:
        path: from `/v1/` on, already quoted.
        repeatable: it may be sent again although the first may have been carried out.
        read_s: how long the answer may take.
    """

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    repeatable: bool = False
    read_s: float = _READ_S


@dataclass(frozen=True)
class Endpoint:
    """Where the API is and how to get in; never shows its token.

    Args:
        ca: file with the certificates that may sign the server's; None takes the system's.
    """

    url: str
    token: str = field(repr=False)
    ca: Path | None = None


def segment(text: str) -> str:
    """Return one name or id as a part of a path, which it can never leave.

    Raises:
        InvalidInputError: `api.path`.
    """
    if text in ("", ".", "..") or not text.isprintable():
        raise InvalidInputError("api.path", "a name or id is needed here, of printable characters")
    return quote(text, safe="")


def check_url(url: str) -> str:
    """Return a server's address in its one form.

    Raises:
        InvalidInputError: `api.url`: it is none, or would carry the token over a network unencrypted.
    """
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as exc:
        raise InvalidInputError("api.url", f"{url!r} is no address", hint=_URL_HINT) from exc
    extra = parts.query or parts.fragment or parts.username or parts.password or parts.path.strip("/")
    if parts.scheme not in ("http", "https") or not parts.hostname or extra or not url.isprintable():
        # An address can carry a password; it is not repeated.
        raise InvalidInputError("api.url", "the server's address is https://HOST:PORT", hint=_URL_HINT)
    if parts.scheme == "http" and not _loopback(parts.hostname):
        raise InvalidInputError(
            "api.url", "without https the token would be readable on the way", hint=_URL_HINT
        )
    return f"{parts.scheme}://{parts.netloc}"


_URL_HINT = "give https://HOST:PORT; http:// only to this machine itself"


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Http:
    """A connection to one server, as one principal. Not for several threads at once.

    Args:
        transport: what carries the calls; None is the network.
        trace: is told each call and its status, and never a header or body.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        transport: httpx2.BaseTransport | None = None,
        trace: Callable[[str], None] = lambda _line: None,
        tries: int = TRIES,
        read_s: float = _READ_S,
    ) -> None:
        if not endpoint.token.isascii() or not endpoint.token.isprintable() or " " in endpoint.token:
            raise InvalidInputError("token.malformed", "this is no token: it has spaces or odd characters")
        self.endpoint = endpoint
        self.url = check_url(endpoint.url)
        self._trace = trace
        self._tries = tries
        self._read_s = read_s
        self._inner = httpx2.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {endpoint.token}", "Accept": "application/json"},
            verify=trust(endpoint.ca) if transport is None else True,
            transport=transport,
            follow_redirects=False,
        )

    def close(self) -> None:
        """Give the connections back."""
        self._inner.close()

    def call(self, call: Call) -> Answer:
        """Send a call, again where that is safe and may help, and return its success.

        Raises:
            BulkheadError: by the answer's status, see `error_of`; `api.unreachable`, `api.answer_lost`.
        """
        pause_s = _FIRST_PAUSE_S
        for left in range(self._tries - 1, -1, -1):
            try:
                answer = self._once(call)
            except UnreachableError as exc:
                if not left or not _again_after(exc, call):
                    raise
            else:
                asked_s = retry_after_s(answer.headers)
                if not left or not _again(answer, call) or asked_s > _MAX_PAUSE_S:
                    return _success(answer)
                if "retry-after" in answer.headers:
                    pause_s = max(pause_s, asked_s)
            clock.sleep(min(pause_s, _MAX_PAUSE_S))
            pause_s *= 2
        raise AssertionError("the last try returns or raises")  # pragma: no cover

    def _once(self, call: Call) -> Answer:
        with _translated(call):
            with self._inner.stream(
                call.method,
                call.path,
                params=dict(call.query) or None,
                content=None if call.body is None else _json_bytes(call.body),
                headers=_headers(call),
                timeout=httpx2.Timeout(min(call.read_s, self._read_s), connect=min(_CONNECT_S, self._read_s)),
            ) as response:
                raw = _read(response)
        self._trace(f"{call.method} {call.path} {response.status_code}")
        headers = {name.lower(): value for name, value in response.headers.items()}
        return Answer(response.status_code, _parsed(raw), headers)

    def lines(self, path: str, query: Mapping[str, str]) -> Iterator[str]:
        """Stream an answer of JSON lines, one line after the other without their ends.

        Raises:
            BulkheadError: as `call`; `api.answer_lost` when the stream breaks off.
        """
        call = Call("GET", path, query)
        with _translated(call):
            with self.stream(call, {"Accept": "application/jsonl, application/x-ndjson, */*"}) as response:
                yield from _bounded_lines(response)

    def pieces(self, path: str, query: Mapping[str, str]) -> Iterator[bytes]:
        """Stream an answer of bytes, as they come.

        Raises:
            BulkheadError: as `lines`.
        """
        call = Call("GET", path, query)
        with _translated(call):
            with self.stream(call, {"Accept": "text/plain, */*"}) as response:
                yield from response.iter_bytes()

    @contextmanager
    def stream(self, call: Call, headers: Mapping[str, str]) -> Iterator[httpx2.Response]:
        """Open an answer that comes bit by bit; a refusal is raised as the error it stands for."""
        with self._inner.stream(
            call.method,
            call.path,
            params=dict(call.query) or None,
            headers=dict(headers),
            timeout=httpx2.Timeout(call.read_s, connect=_CONNECT_S),
        ) as response:
            self._trace(f"{call.method} {call.path} {response.status_code}")
            if response.status_code != 200:
                told = {name.lower(): value for name, value in response.headers.items()}
                raise error_of(response.status_code, _parsed(_read(response)), told)
            yield response


def new_key() -> str:
    """Return an `Idempotency-Key` for one thing that is to be made once."""
    return secrets.token_urlsafe(24)


def _headers(call: Call) -> dict[str, str]:
    found = dict(call.headers)
    if call.body is not None:
        found["Content-Type"] = "application/json"
    return found


def _json_bytes(body: Any) -> bytes:
    return json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode()


def trust(ca: Path | None) -> ssl.SSLContext:
    """Make the client's side of TLS.

    Raises:
        InvalidInputError: `api.ca`.
    """
    try:
        return ssl.create_default_context(cafile=None if ca is None else str(ca))
    except (OSError, ssl.SSLError) as exc:
        raise InvalidInputError(
            "api.ca", f"{ca} cannot be read as certificates", hint="give a PEM file of the server's authority"
        ) from exc


@contextmanager
def _translated(call: Call) -> Iterator[None]:
    """Turn the library's errors into ours: was it begun or not."""
    try:
        yield
    except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout) as exc:
        raise UnreachableError(
            "api.unreachable",
            f"the server does not answer: {_words(exc)}",
            hint="check the URL (bulkhead profile show), the network and the server",
        ) from exc
    except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError) as exc:
        changes = call.method != "GET"
        raise UnreachableError(
            "api.answer_lost",
            f"the answer to {call.method} {call.path} was lost: {_words(exc)}",
            hint="look whether it was done before trying again" if changes else None,
        ) from exc


def _words(exc: Exception) -> str:
    text = "".join(mark if mark.isprintable() else " " for mark in str(exc))[:200]
    return text or type(exc).__name__


def _again(answer: Answer, call: Call) -> bool:
    if isinstance(answer.body, dict) and answer.body.get("retryable") is False:
        return False
    return answer.status in _NOT_BEGUN or (call.repeatable and answer.status in _LOST)


def _again_after(error: UnreachableError, call: Call) -> bool:
    return error.code == "api.unreachable" or call.repeatable


def _read(response: httpx2.Response) -> bytes:
    parts, total = [], 0
    for part in response.iter_bytes():
        total += len(part)
        if total > MAX_ANSWER_BYTES:
            raise InvalidInputError("api.answer_too_large", "the server's answer is larger than any of ours")
        parts.append(part)
    return b"".join(parts)


def _bounded_lines(response: httpx2.Response) -> Iterator[str]:
    kept = b""
    for part in response.iter_bytes():
        *whole, kept = (kept + part).split(b"\n")
        for line in whole:
            yield line.decode("utf-8", "replace")
        if len(kept) > MAX_LINE_BYTES:
            raise InvalidInputError("api.answer_too_large", "a line of the answer is longer than any of ours")
    if kept:
        yield kept.decode("utf-8", "replace")


def _parsed(raw: bytes) -> Any:
    if not raw:
        return None
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        return raw.decode("utf-8", "replace")


def _success(answer: Answer) -> Answer:
    if 200 <= answer.status < 300:
        if isinstance(answer.body, str):
            raise _no_json(answer)
        return answer
    raise error_of(answer.status, answer.body, answer.headers)


def _no_json(answer: Answer) -> BulkheadError:
    return error_of(answer.status, answer.body, answer.headers)
