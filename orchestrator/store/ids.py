"""New ids: the noun's prefix and 100 random bits in base 32; never reused, sorted by nothing."""

from __future__ import annotations

import secrets

_ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"
_LENGTH = 20


def new_id(prefix: str) -> str:
    """Make an id such as `vm_7k2m...`; the prefix says the noun (DESIGN §6)."""
    # One draw for all of it, five bits a character: each draw is a call of the kernel.
    bits = secrets.randbits(5 * _LENGTH)
    return f"{prefix}_" + "".join(_ALPHABET[bits >> 5 * place & 31] for place in range(_LENGTH))


def new_mac() -> str:
    """Make a locally administered unicast MAC; the table's UNIQUE refuses the rare double."""
    raw = secrets.token_bytes(5)
    return ":".join(["02", *(f"{byte:02x}" for byte in raw)])
