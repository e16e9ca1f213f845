"""How a secret may be written down, and the search for all of these ways in a stream of bytes.

Knows the secret and never shows it: answers are names of encodings. Compressed and encrypted copies are not
found. Called by `canary`.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from urllib.parse import quote_from_bytes

#: Shorter ones stand in any large file by chance.
SHORTEST_BYTES = 8
_BASE64_BLOCK = 3
#: What stays as it is: nothing, in paths, in JavaScript's encodeURIComponent.
_UNESCAPED = ("", "/", "!'()*")


def needles(secret: bytes) -> dict[bytes, str]:
    """Return every spelling that is looked for, with the name of its encoding.

    Base64 comes in three alignments: the secret may stand inside something longer that was encoded whole.

    Raises:
        ValueError: the secret is too short to be told from chance.
    """
    if len(secret) < SHORTEST_BYTES:
        raise ValueError(f"a secret of {len(secret)} bytes is too short, {SHORTEST_BYTES} are needed")
    found = {secret: "raw"}
    for offset in range(_BASE64_BLOCK):
        core = _base64_core(secret, offset)
        found.setdefault(core, "base64")
        found.setdefault(core.translate(bytes.maketrans(b"+/", b"-_")), "base64-urlsafe")
    lower = secret.hex().encode()
    found.setdefault(lower, "hex")
    found.setdefault(lower.upper(), "hex-upper")
    # Only what must be escaped is, of which there are several opinions, or every byte; digits in either case.
    escaped = [quote_from_bytes(secret, safe=safe) for safe in _UNESCAPED]
    forms = [text.replace("%20", "+") for text in escaped]
    for percent in (*escaped, *forms, "".join(f"%{byte:02X}" for byte in secret)):
        found.setdefault(percent.encode(), "percent")
        found.setdefault(_lower_escapes(percent), "percent")
    for text in list(found):
        # Little and big endian alike hold this: bytes of characters below U+0100, a zero between each two.
        found.setdefault(b"\0".join(text[i : i + 1] for i in range(len(text))), f"utf-16 of {found[text]}")
    return found


def _base64_core(secret: bytes, offset: int) -> bytes:
    """Return the digits that this secret alone decides, when `offset` bytes stand before it in its block."""
    digits = base64.b64encode(bytes(offset) + secret)
    return digits[-(-offset * 8 // 6) : (offset + len(secret)) * 8 // 6]


def _lower_escapes(percent: str) -> bytes:
    head, *escaped = percent.split("%")
    return "%".join([head, *(part[:2].lower() + part[2:] for part in escaped)]).encode()


class Search:
    """Looks for all spellings in a stream that comes in pieces."""

    def __init__(self, spellings: Mapping[bytes, str]) -> None:
        self._spellings = spellings
        #: A spelling may lie across two pieces by all of its bytes but one.
        self.overlap_bytes = max(map(len, spellings)) - 1

    def within(self, pieces: Iterable[bytes]) -> frozenset[str]:
        """Return the encodings that occur; pieces are one behind the other."""
        found: set[str] = set()
        tail = b""
        for piece in pieces:
            window = tail + piece
            found |= {name for text, name in self._spellings.items() if text in window}
            tail = window[-self.overlap_bytes :]
        return frozenset(found)
