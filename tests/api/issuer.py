"""A local identity provider: it serves keys on 127.0.0.1, over TLS or not, and signs what a test wants."""

from __future__ import annotations

import json
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.api.test_oidc import JWKS, claims, made


class LocalIssuer:
    """An issuer with an address.

    Args:
        certificate: chain and key in PEM files, for https.
    """

    def __init__(self, certificate: tuple[Path, Path] | None = None) -> None:
        self.answer: tuple[int, bytes] = (200, json.dumps({"keys": JWKS}).encode())
        self.headers: dict[str, str] = {}
        self.drip_s = 0.0
        self.asked: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append(self.path)
                status, body = outer.answer
                self.send_response(status)
                for name, value in outer.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                try:
                    if not outer.drip_s:
                        self.wfile.write(body)
                        return
                    for at in range(len(body)):
                        self.wfile.write(body[at : at + 1])
                        time.sleep(outer.drip_s)
                except OSError:
                    return  # the caller had enough

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        if certificate is not None:
            tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            tls.load_cert_chain(*certificate)
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        scheme = "http" if certificate is None else "https"
        self.url = f"{scheme}://127.0.0.1:{self._server.server_address[1]}"
        self.keys_url = f"{self.url}/keys"

    def token(self, now_s: float, **changes: object) -> str:
        """A good token, but for the changes."""
        now = int(now_s)
        whole = {"iss": self.url, "exp": now + 300, "nbf": now - 5, "iat": now - 5, **changes}
        return made(body=claims(**whole))

    def __enter__(self) -> LocalIssuer:
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _exc: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
