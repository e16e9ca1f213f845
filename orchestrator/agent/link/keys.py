"""Volume keys from an inherited descriptor: a pipe or a sealed memory file, read once, kept in memory only.

Content: a JSON object, volume id to passphrase, where a passphrase is the base64 text of 32 random bytes.
The controller's key requests will stand behind the same port. Neither keys nor the content ever appear in
an error.
"""

from __future__ import annotations

import base64
import binascii
import json
import os

from orchestrator.model.errors import InvalidInputError, NotFoundError

#: 4,096 volumes of an id and a passphrase stay well below this.
MAX_BYTES = 1 << 20
KEY_BYTES = 32


class DescriptorKeys:
    """Answers key requests from what a descriptor held.

    Raises:
        InvalidInputError: `keys.unreadable`, `keys.bad_format`.
    """

    def __init__(self, descriptor: int) -> None:
        self._passphrases = _read(descriptor)

    def passphrase(self, volume: str, generation: int) -> bytes:
        """Return a volume's passphrase; every generation of a volume id has its own file of keys."""
        found = self._passphrases.get(volume)
        if found is None:
            raise NotFoundError(
                "key.unknown",
                f"no key for {volume} generation {generation} was handed over",
                hint="pass it with --keys-fd",
            )
        return found


class NoKeys:
    """For applying what needs no key: removals, and instances that run already."""

    def passphrase(self, volume: str, generation: int) -> bytes:
        """Refuse."""
        raise NotFoundError(
            "key.unknown",
            f"no key for {volume} generation {generation}: none were handed over",
            hint="pass them with --keys-fd",
        )


def _read(descriptor: int) -> dict[str, bytes]:
    raw = bytearray()
    try:
        while len(raw) <= MAX_BYTES:
            piece = os.read(descriptor, 65536)
            if not piece:
                break
            raw += piece
    except OSError as exc:
        raise InvalidInputError(
            "keys.unreadable", f"descriptor {descriptor} cannot be read: {exc.strerror}", field="--keys-fd"
        ) from exc
    if len(raw) > MAX_BYTES:
        raise InvalidInputError("keys.bad_format", f"more than {MAX_BYTES} bytes of keys", field="--keys-fd")
    try:
        body = json.loads(bytes(raw))
        if not isinstance(body, dict):
            raise ValueError
        return {str(volume): _passphrase(text) for volume, text in body.items()}
    except (ValueError, TypeError):
        # The cause is left out on purpose: a decoder's message quotes what it read.
        raise InvalidInputError(
            "keys.bad_format",
            f"keys are a JSON object of volume id to base64 text of {KEY_BYTES} bytes",
            field="--keys-fd",
        ) from None


def _passphrase(text: object) -> bytes:
    if not isinstance(text, str):
        raise TypeError
    try:
        raw = base64.b64decode(text, validate=True)
    except binascii.Error as exc:
        raise ValueError from exc
    if len(raw) != KEY_BYTES:
        raise ValueError
    return text.encode()
