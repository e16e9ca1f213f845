"""The agents' listener: TLS with a client certificate of our authority, or no word at all.

Puts the certificate that the other side proved in the handshake (DER bytes) into the ASGI scope, under
`bulkhead.peer`, for requests and WebSockets alike. It comes from the transport alone: no header, whoever sent
it, changes it. Never decides which host a certificate names or whether it still counts; the agents' app does.
"""

from __future__ import annotations

import asyncio
import asyncio.sslproto
import ssl
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any, cast

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.exceptions import InvalidState

#: The scope's key: DER bytes of the peer's certificate; missing only where TLS did not ask for one.
PEER = "bulkhead.peer"

#: An agent that has nothing to say says so every 10 s: its connection is kept over three of those.
KEEP_ALIVE_S = 30
#: One message of a stream; agents send less.
MAX_STREAM_MESSAGE_BYTES = 64 * 1024
#: Request line and headers of one request; an agent's take a few hundred bytes.
MAX_HEAD_BYTES = 16 * 1024

#: asyncio keeps a buffer of this size for each TLS connection, 256 KiB if nobody says less; a thousand agents
#: with two connections each would take half a GiB of it. A TLS record has 16 KiB.
_TLS_BUFFER_BYTES = 32 * 1024

_Scope = MutableMapping[str, Any]
_App = Callable[[_Scope, Any, Any], Awaitable[None]]


class PeerH11(H11Protocol):
    """HTTP/1.1 that tells the app who proved to be at the other end."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the peer's certificate while the connection is new; it cannot change later."""
        super().connection_made(transport)
        self.app = _told(self.app, transport)


class WebSockets(WebSocketsSansIOProtocol):
    """WebSockets that can be refused with an answer, and ended in any state; the base logs or raises."""

    async def send(self, message: Any) -> None:
        """Send; a whole refusal completes the handshake."""
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and not message.get("more_body", False):
            self.handshake_complete = True

    def shutdown(self) -> None:
        """End it with the server; one that its other side is ending just now must not keep the rest open."""
        try:
            super().shutdown()
        except InvalidState:
            self.transport.close()


class PeerWebSockets(WebSockets):
    """WebSockets that tell the app who proved to be at the other end."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the peer's certificate; the connection was handed over by `PeerH11`."""
        super().connection_made(transport)
        self.app = _told(self.app, transport)


def _told(app: Any, transport: asyncio.BaseTransport) -> Any:
    peer = _certificate(transport)

    async def with_peer(scope: _Scope, receive: Any, send: Any) -> None:
        if peer is not None:
            scope[PEER] = peer
        await cast(_App, app)(scope, receive, send)

    return with_peer


def _certificate(transport: asyncio.BaseTransport) -> bytes | None:
    tls = transport.get_extra_info("ssl_object")
    # The binary form is there only when the certificate was verified or not asked for to be: with
    # CERT_REQUIRED, the only way in, it was.
    return None if tls is None else tls.getpeercert(binary_form=True)


def agents_config(
    app: Any, *, host: str, port: int, certificate: Path, key: Path, authority: Path, **more: Any
) -> uvicorn.Config:
    """Make the configuration of the agents' listener.

    Args:
        app: the agents' ASGI app.
        certificate: the listener's chain, PEM.
        key: its key, PEM, mode 0600.
        authority: our authority's certificate, PEM: the only one that may have signed an agent's.
        more: further arguments of `uvicorn.Config`, none of those that are set here.

    Raises:
        OSError: a file cannot be read (`ssl.SSLError` is one).
    """
    # Of the process, since asyncio has no other place for it; nobody's correctness rests on its size.
    asyncio.sslproto.SSLProtocol.max_size = _TLS_BUFFER_BYTES
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        http=PeerH11,
        ws=PeerWebSockets,
        ws_max_size=MAX_STREAM_MESSAGE_BYTES,
        ws_per_message_deflate=False,
        # A header that says where a request comes from is a header like any other.
        proxy_headers=False,
        server_header=False,
        access_log=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
        ssl_context_factory=lambda _config, _default: agents_tls(certificate, key, authority),
        **more,
    )


def agents_tls(certificate: Path, key: Path, authority: Path) -> ssl.SSLContext:
    """Make the listener's side of TLS: 1.3 alone, and a certificate of our authority from everybody."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(certificate, key)
    context.load_verify_locations(cafile=authority)
    context.verify_mode = ssl.CERT_REQUIRED
    # Sessions are not resumed: a certificate is proved anew on each connection, so that its end counts.
    context.num_tickets = 0
    return context
