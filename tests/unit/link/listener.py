"""Real listeners on 127.0.0.1 in a thread, certificates for them, and waiting for what must come to be."""

from __future__ import annotations

import datetime as dt
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import uvicorn

from api.peer import agents_config
from orchestrator.agent.link.certificates import FreshKey
from orchestrator.agent.link.client import Link
from orchestrator.controller.authority import Authority

NOW = dt.datetime.now(dt.UTC).replace(microsecond=0)
LOCAL = ("127.0.0.1", "localhost")


def eventually(holds: Callable[[], Any], *, within_s: float = 120.0, every_s: float = 0.005) -> Any:
    """Wait until something holds; the limit is there for what never comes, not for what is slow.

    Args:
        every_s: the pause between two looks; longer where a look takes work from what is waited for.
    """
    deadline = time.monotonic() + within_s
    while True:
        found = holds()
        if found:
            return found
        assert time.monotonic() < deadline, "it never came to be"
        time.sleep(every_s)


def client_pem(authority: Authority, host: str, folder: Path, **options: Any) -> Path:
    """Make a host's key and certificate in one file."""
    from cryptography import x509

    key = FreshKey.make()
    pem = authority.sign_host(key.csr_pem, host, options.pop("not_before", NOW), **options)
    path = folder / f"{host}-{time.monotonic_ns()}.pem"
    path.write_bytes(key.with_certificate(x509.load_pem_x509_certificate(pem.encode())))
    return path


class Listener:
    """A uvicorn server in a thread; it can die and come back on the same port."""

    def __init__(self, make_config: Callable[[], uvicorn.Config], port: int = 0) -> None:
        self._make_config = make_config
        self.port = port
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def start(self) -> None:
        bound = socket.socket()
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(("127.0.0.1", self.port))
        self.port = bound.getsockname()[1]
        server = uvicorn.Server(self._make_config())
        self._server = server
        self._thread = threading.Thread(target=server.run, args=([bound],), daemon=True)
        self._thread.start()
        eventually(lambda: server.started)

    def die(self) -> None:
        """End at once, whatever is open."""
        assert self._server is not None
        assert self._thread is not None
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(20.0)
        assert not self._thread.is_alive()

    def __enter__(self) -> Listener:
        self.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _exc: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.die()


QUIET: dict[str, Any] = {"log_config": None, "lifespan": "off", "timeout_graceful_shutdown": 1}


def agents_listener(app: Any, authority: Authority, folder: Path, names: tuple[str, ...] = LOCAL) -> Listener:
    """The agents' listener over an app."""
    chain, key = authority.server_certificate(names, NOW).write(folder)
    return Listener(
        lambda: agents_config(
            app,
            host="127.0.0.1",
            port=0,
            certificate=chain,
            key=key,
            authority=authority.certificate_path,
            **QUIET,
        )
    )


def public_listener(app: Any, authority: Authority, folder: Path) -> Listener:
    """The public listener: TLS, and certificates of nobody."""
    chain, key = authority.server_certificate(LOCAL, NOW).write(folder)
    return Listener(lambda: uvicorn.Config(app, ssl_certfile=chain, ssl_keyfile=key, **QUIET))


def link_of(authority: Authority, host: str, url: str, folder: Path, **options: Any) -> Link:
    """One host's link, without enrolment."""
    from orchestrator.agent.link.certificates import trusting

    tls = trusting(authority.certificate_pem)
    tls.load_cert_chain(client_pem(authority, host, folder))
    return Link(url, tls, **options)
