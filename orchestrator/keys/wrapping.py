"""Wrapping: a data key under its tenant's key, bound to exactly what it is for.

AES-256-GCM with a fresh nonce for every wrap. What a wrapped key is for stands in the additional data: a row
of the database that is moved to another volume, tenant or generation opens nothing. Stores nothing; backends
call it with the key they hold. `seal` encrypts a text under a data key, bound in the same way.
"""

from __future__ import annotations

import base64
import os
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from orchestrator.model.errors import InvalidInputError, KeysError

KEY_BYTES = 32
#: 96 bits: NIST SP 800-38D §8.2.2. Random ones are good for 2^32 wraps under one key; a tenant makes one for
#: each volume.
NONCE_BYTES = 12
TAG_BYTES = 16
_DOMAIN = b"bulkhead-wrap/1"
_SEAL_DOMAIN = b"bulkhead-seal/1"
#: What a volume's key is for: its LUKS passphrase.
VOLUME = "volume"
#: What an instance's key is for: its user data.
USER_DATA = "user-data"


@dataclass(frozen=True)
class KeyUse:
    """What a data key is for; it opens under no other.

    Args:
        subject: the id of the volume or instance.
    """

    tenant: str
    subject: str
    generation: int
    purpose: str = VOLUME


@dataclass(frozen=True)
class WrappedKey:
    """A data key as the database keeps it; `key_version` says which of its tenant's keys opens it."""

    key_version: int
    nonce: bytes
    ciphertext: bytes = field(repr=False)


@dataclass(frozen=True)
class Sealed:
    """A text that only its data key opens."""

    nonce: bytes
    ciphertext: bytes = field(repr=False)


def new_key() -> bytes:
    """Draw a key: 32 bytes of the kernel's randomness."""
    return os.urandom(KEY_BYTES)


def passphrase(data_key: bytes) -> bytes:
    """The LUKS passphrase that a data key is: base64, because libvirt's secrets must be text."""
    return base64.b64encode(data_key)


def wrap_key(tenant_key: bytes, key_version: int, use: KeyUse, data_key: bytes) -> WrappedKey:
    """Encrypt a data key for one use.

    Raises:
        InvalidInputError: `keys.length`.
    """
    if len(data_key) != KEY_BYTES:
        raise InvalidInputError("keys.length", f"a data key has {KEY_BYTES} bytes, not {len(data_key)}")
    nonce = os.urandom(NONCE_BYTES)
    ciphertext = AESGCM(tenant_key).encrypt(nonce, data_key, _bound(use, key_version))
    return WrappedKey(key_version, nonce, ciphertext)


def unwrap_key(tenant_key: bytes, use: KeyUse, wrapped: WrappedKey) -> bytes:
    """Open a wrapped key for the use it was made for.

    Raises:
        KeysError: `keys.not_opened`: another key, another use or changed bytes; nobody can tell which.
    """
    if len(wrapped.nonce) == NONCE_BYTES and len(wrapped.ciphertext) == KEY_BYTES + TAG_BYTES:
        try:
            return AESGCM(tenant_key).decrypt(
                wrapped.nonce, wrapped.ciphertext, _bound(use, wrapped.key_version)
            )
        except InvalidTag:
            pass
    raise KeysError(
        "keys.not_opened",
        f"version {wrapped.key_version} of {use.tenant}'s key does not open the key of {use.subject}",
        hint="the row was changed or moved, or the keys come from another deployment: restore them",
    )


def seal(data_key: bytes, use: KeyUse, text: bytes) -> Sealed:
    """Encrypt a text under a data key that was drawn for it alone."""
    nonce = os.urandom(NONCE_BYTES)
    return Sealed(nonce, AESGCM(data_key).encrypt(nonce, text, _spelled(_SEAL_DOMAIN, use)))


def unseal(data_key: bytes, use: KeyUse, sealed: Sealed) -> bytes:
    """Open a sealed text.

    Raises:
        KeysError: `keys.not_opened`: another key, another use or changed bytes.
    """
    if len(sealed.nonce) == NONCE_BYTES and len(sealed.ciphertext) >= TAG_BYTES:
        try:
            return AESGCM(data_key).decrypt(sealed.nonce, sealed.ciphertext, _spelled(_SEAL_DOMAIN, use))
        except InvalidTag:
            pass
    raise KeysError(
        "keys.not_opened",
        f"the {use.purpose} of {use.subject} does not open",
        hint="the row was changed or moved: restore the database",
    )


def _bound(use: KeyUse, key_version: int) -> bytes:
    return _spelled(_DOMAIN, use, str(key_version))


def _spelled(domain: bytes, use: KeyUse, *more: str) -> bytes:
    """The additional data: each part with its length before it, so that parts cannot trade characters."""
    parts = (use.tenant, use.subject, str(use.generation), use.purpose, *more)
    spelled = (part.encode() for part in parts)
    return domain + b"".join(len(part).to_bytes(4, "big") + part for part in spelled)
