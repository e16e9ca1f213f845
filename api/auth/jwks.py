"""Fetches an identity provider's public keys: over https with a deadline, or from a file."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit

import httpx2

from api.auth.oidc import MAX_KEYS_BYTES
from orchestrator.model.errors import HostError, InvalidInputError

#: For the whole fetch. Callers with a token of that provider wait for it.
DEADLINE_S = 5.0


def fetcher(ca_file: Path | None = None, *, deadline_s: float = DEADLINE_S) -> Callable[[str], bytes]:
    """Make what `OidcVerifier` gets keys with.

    Args:
        ca_file: further authorities (PEM) that a provider's certificate may come from, beside the system's.

    Raises:
        InvalidInputError: `oidc.ca_file`.
    """
    tls = ssl.create_default_context()
    if ca_file is not None:
        try:
            tls.load_verify_locations(ca_file)
        except (OSError, ssl.SSLError) as exc:
            raise InvalidInputError(
                "oidc.ca_file", f"{ca_file} cannot be read as certificates: {exc}", field="oidc_ca_file"
            ) from exc

    def fetch(url: str) -> bytes:
        """Return the content, at most one byte more than there may be.

        Raises:
            OSError: the file cannot be read.
            HostError: `oidc.fetch`: no answer in time, another than 200, or too much of it.
        """
        parts = urlsplit(url)
        if parts.scheme == "file":
            with open(unquote(parts.path), "rb") as file:
                return file.read(MAX_KEYS_BYTES + 1)
        try:
            return _got(url, tls, deadline_s)
        except (httpx2.HTTPError, httpx2.InvalidURL) as exc:
            raise HostError("oidc.fetch", f"{url} gives no keys: {exc}") from exc

    return fetch


def _got(url: str, tls: ssl.SSLContext, deadline_s: float) -> bytes:
    end = time.monotonic() + deadline_s
    raw = bytearray()
    with (
        httpx2.Client(verify=tls, timeout=deadline_s, follow_redirects=False) as client,
        client.stream("GET", url, headers={"Accept": "application/json"}) as answer,
    ):
        if answer.status_code != httpx2.codes.OK:
            raise HostError("oidc.fetch", f"{url} answers {answer.status_code}")
        for piece in answer.iter_bytes():
            raw += piece
            if len(raw) > MAX_KEYS_BYTES:
                raise HostError("oidc.fetch", f"{url} gives more than {MAX_KEYS_BYTES} bytes")
            # A timeout of the library's counts from the last byte that came.
            if time.monotonic() > end:
                raise HostError("oidc.fetch", f"{url} took more than {deadline_s} s")
    return bytes(raw)
