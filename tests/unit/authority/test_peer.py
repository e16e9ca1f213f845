"""The agents' listener over real TLS: who gets in, and that only the handshake says who it is."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import socket
import ssl
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import uvicorn
import websockets.sync.client
from uvicorn.server import ServerState
from websockets.protocol import State
from websockets.server import ServerProtocol

from api.peer import PEER, WebSockets, agents_config, agents_tls
from orchestrator.agent.link.certificates import trusting
from orchestrator.controller.authority import Authority, host_of
from tests.unit.link.listener import NOW, QUIET, Listener, agents_listener, client_pem

#: What reached the app.
HEARD: list[str] = []


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Say what the scope holds, and which headers came."""
    HEARD.append(scope["path"])
    peer = scope.get(PEER)
    body = json.dumps(
        {
            "host": None if peer is None else host_of(peer).host,
            "client": scope["client"][0],
            "headers": {name.decode(): value.decode() for name, value in scope["headers"]},
        }
    )
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": body})
        await send({"type": "websocket.close", "code": 1000})
        return
    if scope["path"] == "/slow":
        await asyncio.sleep(0.2)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body.encode()})


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.create(tmp_path / "ca", NOW)


@pytest.fixture
def listener(authority: Authority, tmp_path: Path) -> Iterator[Listener]:
    with agents_listener(app, authority, tmp_path / "server") as made:
        yield made


def tls(authority: Authority, identity: Path | None) -> ssl.SSLContext:
    context = trusting(authority.certificate_pem)
    if identity is not None:
        context.load_cert_chain(identity)
    return context


def get(listener: Listener, context: ssl.SSLContext, path: str = "/", **headers: str) -> Any:
    with httpx2.Client(verify=context, trust_env=False, timeout=60) as client:
        return client.get(listener.url + path, headers=headers).json()


def test_request_and_websocket_carry_the_certificate_of_the_handshake(
    authority: Authority, listener: Listener, tmp_path: Path
) -> None:
    context = tls(authority, client_pem(authority, "hst_one", tmp_path))

    assert get(listener, context)["host"] == "hst_one"
    url = listener.url.replace("https", "wss") + "/x"
    with websockets.sync.client.connect(url, ssl=context, proxy=None) as socket:
        assert json.loads(socket.recv())["host"] == "hst_one"


def test_header_is_a_header_and_nothing_else(
    authority: Authority, listener: Listener, tmp_path: Path
) -> None:
    context = tls(authority, client_pem(authority, "hst_one", tmp_path))
    forged = {
        "bulkhead.peer": "hst_two",
        "x-forwarded-for": "10.9.9.9",
        "x-forwarded-client-cert": "Subject=CN=hst_two",
        "x-ssl-client-cert": "hst_two",
        "forwarded": "for=10.9.9.9",
    }

    seen = get(listener, context, **forged)

    assert (seen["host"], seen["client"]) == ("hst_one", "127.0.0.1")
    assert seen["headers"]["bulkhead.peer"] == "hst_two"


def test_two_at_once_are_not_mixed_up(authority: Authority, listener: Listener, tmp_path: Path) -> None:
    contexts = {
        name: tls(authority, client_pem(authority, name, tmp_path)) for name in ("hst_one", "hst_two")
    }

    async def ask(name: str) -> list[str]:
        async with httpx2.AsyncClient(verify=contexts[name], trust_env=False, timeout=60) as client:
            answers = [await client.get(listener.url + "/slow") for _ in range(3)]
        return [each.json()["host"] for each in answers]

    async def both() -> list[list[str]]:
        return list(await asyncio.gather(ask("hst_one"), ask("hst_two")))

    assert asyncio.run(both()) == [["hst_one"] * 3, ["hst_two"] * 3]


def reason(server: ssl.SSLContext, client: ssl.SSLContext) -> str:
    """Shake hands in memory and say why the listener's side refused; its alert does not always arrive."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = server.wrap_bio(up, down, server_side=True)
    theirs = client.wrap_bio(down, up, server_hostname="127.0.0.1")
    for _ in range(4):
        with contextlib.suppress(ssl.SSLError):
            theirs.do_handshake()
        try:
            ours.do_handshake()
        except ssl.SSLWantReadError:
            continue
        except ssl.SSLError as exc:
            return str(exc).lower()
        return "welcome"
    return "never done"


def assert_shut_out(listener: Listener, server: ssl.SSLContext, client: ssl.SSLContext, why: str) -> None:
    """The handshake fails for this reason, and over the socket the app hears nothing."""
    assert why in reason(server, client)
    heard = len(HEARD)
    with pytest.raises(httpx2.TransportError):
        get(listener, client)
    assert len(HEARD) == heard


@pytest.fixture
def server(authority: Authority, listener: Listener, tmp_path: Path) -> ssl.SSLContext:
    """The listener's side of TLS, for shaking hands in memory."""
    place = tmp_path / "server"
    return agents_tls(place / "server.pem", place / "server.key", authority.certificate_path)


def test_good_certificate_is_welcome(
    authority: Authority, listener: Listener, server: ssl.SSLContext, tmp_path: Path
) -> None:
    context = tls(authority, client_pem(authority, "hst_one", tmp_path))

    assert reason(server, context) == "welcome"
    assert get(listener, context)["host"] == "hst_one"


def test_no_certificate_is_refused_in_the_handshake(
    authority: Authority, listener: Listener, server: ssl.SSLContext
) -> None:
    assert_shut_out(listener, server, tls(authority, None), "did not return a certificate")


def test_certificate_of_another_authority_is_refused_in_the_handshake(
    authority: Authority, listener: Listener, server: ssl.SSLContext, tmp_path: Path
) -> None:
    other = Authority.create(tmp_path / "other", NOW)
    theirs = tls(authority, client_pem(other, "hst_one", tmp_path))

    assert_shut_out(listener, server, theirs, "certificate verify failed")


def test_expired_certificate_is_refused_in_the_handshake(
    authority: Authority, listener: Listener, server: ssl.SSLContext, tmp_path: Path
) -> None:
    old = client_pem(authority, "hst_one", tmp_path, not_before=NOW - dt.timedelta(days=9), days=8)

    assert_shut_out(listener, server, tls(authority, old), "certificate has expired")


def test_certificate_of_tomorrow_is_refused_in_the_handshake(
    authority: Authority, listener: Listener, server: ssl.SSLContext, tmp_path: Path
) -> None:
    early = client_pem(authority, "hst_one", tmp_path, not_before=NOW + dt.timedelta(days=1))

    assert_shut_out(listener, server, tls(authority, early), "not yet valid")


def test_listeners_own_certificate_is_no_agents(
    authority: Authority, listener: Listener, server: ssl.SSLContext, tmp_path: Path
) -> None:
    context = trusting(authority.certificate_pem)
    context.load_cert_chain(tmp_path / "server" / "server.pem", tmp_path / "server" / "server.key")

    assert_shut_out(listener, server, context, "certificate purpose")


def test_tls_1_2_is_refused(
    authority: Authority, listener: Listener, server: ssl.SSLContext, tmp_path: Path
) -> None:
    context = tls(authority, client_pem(authority, "hst_one", tmp_path))
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = ssl.TLSVersion.TLSv1_2

    assert_shut_out(listener, server, context, "unsupported protocol")


def test_agents_certificate_is_no_listeners(authority: Authority, tmp_path: Path) -> None:
    """A host that was broken into cannot play the controller to other hosts."""
    stolen = client_pem(authority, "hst_bad", tmp_path)
    config = lambda: agents_config(  # noqa: E731
        app,
        host="127.0.0.1",
        port=0,
        certificate=stolen,
        key=stolen,
        authority=authority.certificate_path,
        **QUIET,
    )
    context = tls(authority, client_pem(authority, "hst_one", tmp_path))
    with Listener(config) as fake:
        with pytest.raises(httpx2.ConnectError, match="certificate verify failed"):
            get(fake, context)


def test_plain_http_gets_no_answer(listener: Listener) -> None:
    with httpx2.Client(trust_env=False) as client, pytest.raises(httpx2.TransportError):
        client.get(listener.url.replace("https", "http"))


def test_quiet_connection_costs_little_memory(
    authority: Authority, listener: Listener, tmp_path: Path
) -> None:
    context = tls(authority, client_pem(authority, "hst_one", tmp_path))

    def dial() -> ssl.SSLSocket:
        plain = socket.create_connection(("127.0.0.1", listener.port))
        made = context.wrap_socket(plain, server_hostname="127.0.0.1")
        made.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"hst_one" in made.recv(4096) + made.recv(4096)
        return made

    open_ones = [dial()]
    tracemalloc.start()
    try:
        open_ones += [dial() for _ in range(20)]
        each = tracemalloc.get_traced_memory()[0] / 20
    finally:
        tracemalloc.stop()
        for one in open_ones:
            one.close()

    print(f"one more connection: {each / 1024:.1f} KiB beside OpenSSL's own")
    assert each < 100 * 1024


def test_a_server_that_ends_closes_a_socket_that_is_closing_already() -> None:
    """Its other side said goodbye in the same moment: uvicorn's own raises, and leaves the rest open."""
    closed: list[bool] = []

    class Transport:
        def close(self) -> None:
            closed.append(True)

        def write(self, _data: bytes) -> None:
            pass

    async def work() -> None:
        config = uvicorn.Config(lambda *_: None, log_config=None)
        config.load()
        ending = WebSockets(config, ServerState(), {})
        ending.transport = Transport()  # type: ignore[assignment]
        ending.conn = ServerProtocol()
        ending.conn.state = State.CLOSING
        ending.handshake_complete = True
        ending.shutdown()

    asyncio.run(work())
    assert closed == [True]
