"""How an agent believes its controller the first time: by the fingerprint in its join token.

Decides whether the chain that a listener shows holds the authority that the token names. Sends nothing over
that first connection: whoever answered is believed only on the next one, which is verified with the authority
found here. Called once, at enrolment.
"""

from __future__ import annotations

import hashlib
import socket
import ssl
from typing import Any

from orchestrator.model.errors import HostError

#: A chain of ours has two certificates.
_MAX_CHAIN = 10


class LinkUntrusted(HostError):
    """Somebody answers who is not our controller; asking again will not change that."""

    retryable = False


def pinned_authority(host: str, port: int, fingerprint: str, timeout_s: float = 20.0) -> str:
    """Fetch the authority's certificate (PEM) from a listener's chain.

    Args:
        fingerprint: `sha256:` and the hash of its DER form.

    Raises:
        HostError: `link.unreachable`.
        LinkUntrusted: `link.untrusted`: no certificate of the chain has this fingerprint.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # Nothing is verified here and nothing is said: the pin decides, then all is verified.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with socket.create_connection((host, port), timeout=timeout_s) as plain:
            with context.wrap_socket(plain, server_hostname=host) as tls:
                chain = _chain(tls)
    except (OSError, ValueError) as exc:
        raise HostError(
            "link.unreachable",
            f"no TLS with {host} port {port}: {exc}",
            hint="is the controller running, and is this its public address?",
        ) from exc
    for der in chain:
        if f"sha256:{hashlib.sha256(der).hexdigest()}" == fingerprint:
            return ssl.DER_cert_to_PEM_cert(der)
    raise LinkUntrusted(
        "link.untrusted",
        f"{host} port {port} does not show the authority that the join token names",
        hint="use the address of the controller that made the token; if it is, somebody stands between",
    )


def _chain(tls: ssl.SSLSocket) -> list[bytes]:
    """Return the certificates that the other side sent, as DER."""
    if hasattr(tls, "get_unverified_chain"):  # Python 3.13
        return [bytes(each) for each in tls.get_unverified_chain()[:_MAX_CHAIN]]
    # Until 3.13 the same function had no public name.
    inner: Any = tls._sslobj  # type: ignore[attr-defined]
    encoding_der = 2
    return [each.public_bytes(encoding_der) for each in (inner.get_unverified_chain() or [])[:_MAX_CHAIN]]
