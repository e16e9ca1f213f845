"""Draws the secrets that leave once: tokens and join tokens. Only their hashes are kept, and not here."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import Self

from orchestrator.access.tokens import SECRET_BYTES, make_token, token_hash
from orchestrator.model.join_token import SECRET_BYTES as JOIN_SECRET_BYTES
from orchestrator.model.join_token import JoinSecret, make_join_token
from orchestrator.store.ids import new_id


@dataclass(frozen=True)
class FreshToken:
    """A token that was just drawn.

    Args:
        text: what its owner gets to see, once.
        secret_hash: what is kept.
    """

    key_id: str
    secret_hash: bytes
    text: str = field(repr=False)

    @classmethod
    def draw(cls, pepper: bytes, prefix: str = "tok") -> Self:
        """Draw one; the prefix says of what noun."""
        key_id, secret = new_id(prefix), secrets.token_bytes(SECRET_BYTES)
        return cls(key_id, token_hash(pepper, secret), make_token(key_id, secret))


def draw_join_secret() -> bytes:
    """Draw the secret of a join token."""
    return secrets.token_bytes(JOIN_SECRET_BYTES)


def join_token_text(identity: str, secret: bytes, ca_fingerprint: str) -> str:
    """What an operator carries to a host."""
    return make_join_token(JoinSecret(identity, secret, ca_fingerprint))
