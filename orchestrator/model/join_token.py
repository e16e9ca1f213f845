"""Join tokens: what lets one agent enrol once, and tells it which authority it may believe.

`bhj_<id>_<secret>_<fingerprint>`: the id names the kept hash, the secret (32 bytes, base64url) proves the
right, the fingerprint (SHA-256 of the authority's certificate, hex) lets the agent notice anybody who stands
between it and its controller. Draws no bytes, knows no store, and no error repeats a token. The controller
makes them, the agent reads the fingerprint. Pure.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass, field

from orchestrator.model.errors import InvalidInputError

SECRET_BYTES = 32
MAX_CHARACTERS = 200
_FINGERPRINT = re.compile(r"sha256:([0-9a-f]{64})")
_ID = re.compile(r"[a-z0-9](?:[a-z0-9_]{0,42}[a-z0-9])?")
#: Where the secret ends is found by its length alone: base64url has the separator in its alphabet.
_TOKEN = re.compile(r"bhj_([a-z0-9_]{1,44})_([A-Za-z0-9_-]{43})_([0-9a-f]{64})")


@dataclass(frozen=True)
class JoinSecret:
    """A join token in its parts.

    Args:
        id: under which the store keeps the secret's hash.
        secret: 32 random bytes.
        ca_fingerprint: `sha256:` and 64 hex digits.
    """

    id: str
    secret: bytes = field(repr=False)
    ca_fingerprint: str


def make_join_token(parts: JoinSecret) -> str:
    """Write the token.

    Raises:
        InvalidInputError: `join_token.parts`.
    """
    fingerprint = _FINGERPRINT.fullmatch(parts.ca_fingerprint)
    if not _ID.fullmatch(parts.id) or len(parts.secret) != SECRET_BYTES or fingerprint is None:
        raise InvalidInputError(
            "join_token.parts",
            f"a join token is made of an id, {SECRET_BYTES} bytes and a fingerprint (sha256:...)",
        )
    secret = base64.urlsafe_b64encode(parts.secret).decode().rstrip("=")
    return f"bhj_{parts.id}_{secret}_{fingerprint[1]}"


def parse_join_token(text: str) -> JoinSecret:
    """Read a token as it was shown.

    Raises:
        InvalidInputError: `join_token.malformed`.
    """
    match = _TOKEN.fullmatch(text) if len(text) <= MAX_CHARACTERS else None
    if match is None or not _ID.fullmatch(match[1]):
        raise InvalidInputError(
            "join_token.malformed",
            "that is no join token",
            hint="ask an operator: bulkhead host join-token NAME",
        )
    secret = base64.urlsafe_b64decode(match[2] + "=")
    # The last of 43 characters has two bits that mean nothing: only one of its spellings is the token's.
    if base64.urlsafe_b64encode(secret).decode().rstrip("=") != match[2]:
        raise InvalidInputError("join_token.malformed", "that is no join token")
    return JoinSecret(match[1], secret, f"sha256:{match[3]}")
