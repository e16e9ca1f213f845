"""API tokens: `bh_KEYID_SECRET_CHECK`, and the only form in which one is kept.

The secret is 32 random bytes in base64url (43 characters), so its kept form needs no slow hash. The check is
a CRC-32 over everything before it: it tells a mistyped token from a wrong one without a look in the database,
and lets scanners find leaked ones. Draws no bytes itself, and no error ever repeats a token. The gate and
whoever makes tokens call it.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import zlib
from dataclasses import dataclass, field

from orchestrator.model.errors import InvalidInputError, UnauthenticatedError

SECRET_BYTES = 32
#: `bh_` + 44 characters of key id + 43 of secret + 8 of check + 2 separators.
MAX_CHARACTERS = 100
_KEY_ID = re.compile(r"[a-z0-9]+(?:_[a-z0-9]+)*")
_MAX_KEY_ID = 44
#: Both ends of the secret are found by its length alone: base64url has the separator in its alphabet.
_TOKEN = re.compile(r"bh_([a-z0-9_]{1,44})_([A-Za-z0-9_-]{43})_([0-9a-f]{8})")


@dataclass(frozen=True)
class ParsedToken:
    """A token as it was shown: which one it says it is, and the secret that has to prove it."""

    key_id: str
    secret: bytes = field(repr=False)


def make_token(key_id: str, secret: bytes) -> str:
    """Write the token of a key id and its 32 secret bytes.

    Raises:
        InvalidInputError: `token.key_id`, `token.secret`.
    """
    if len(key_id) > _MAX_KEY_ID or not _KEY_ID.fullmatch(key_id):
        raise InvalidInputError("token.key_id", f"a key id is 1 to {_MAX_KEY_ID} of a-z, 0-9 and inner _")
    if len(secret) != SECRET_BYTES:
        raise InvalidInputError("token.secret", f"a secret has {SECRET_BYTES} bytes, not {len(secret)}")
    head = f"bh_{key_id}_{base64.urlsafe_b64encode(secret).decode().rstrip('=')}"
    return f"{head}_{zlib.crc32(head.encode()):08x}"


def parse_token(text: str) -> ParsedToken:
    """Read a token as it was shown.

    Raises:
        UnauthenticatedError: `token.malformed`.
    """
    match = _TOKEN.fullmatch(text) if len(text) <= MAX_CHARACTERS else None
    if match is None or not _KEY_ID.fullmatch(match[1]):
        raise _malformed()
    secret = base64.urlsafe_b64decode(match[2] + "=")
    # Writing it again checks the CRC, and that the last character carries no bits of its own: one secret has
    # one spelling.
    if make_token(match[1], secret) != text:
        raise _malformed()
    return ParsedToken(match[1], secret)


def token_hash(pepper: bytes, secret: bytes) -> bytes:
    """The kept form of a secret: HMAC-SHA-256 under a key that is not in the database.

    Raises:
        InvalidInputError: `token.pepper`: without a key it would be a plain hash.
    """
    if not pepper:
        raise InvalidInputError("token.pepper", "the key of the tokens' hashes is empty")
    return hmac.new(pepper, secret, hashlib.sha256).digest()


def secret_matches(pepper: bytes, secret: bytes, kept_hash: bytes) -> bool:
    """Tell whether a secret is the one that was kept, in a time that says nothing about where they differ."""
    return hmac.compare_digest(token_hash(pepper, secret), kept_hash)


def _malformed() -> UnauthenticatedError:
    return UnauthenticatedError(
        "token.malformed",
        "this is not a token, or a part of it is missing or mistyped",
        hint="copy it whole: bh_..., about 80 characters",
    )
