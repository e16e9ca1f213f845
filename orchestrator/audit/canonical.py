"""Canonical JSON: one value has exactly one spelling in bytes (RFC 8785, for the values that we record).

Strings, whole numbers that an IEEE double holds exactly, true, false, null, lists, and objects with string
keys. Everything else is refused rather than guessed: fractions have many spellings, and a larger number
belongs into a string. Audit records and their exports are made of these bytes.
"""

from __future__ import annotations

import json
from typing import Any

from orchestrator.model.errors import InvalidInputError, TooLargeError

MAX_BYTES = 32 * 1024
#: RFC 8785 §3.2.2.3 by way of IEEE 754: beyond this, two whole numbers share a double.
MAX_INTEGER = 2**53
MAX_DEPTH = 16


def canonical_bytes(value: object, *, limit_bytes: int = MAX_BYTES) -> bytes:
    """Spell a value.

    Raises:
        InvalidInputError: `audit.value`: what cannot be spelled, with its place.
        TooLargeError: `audit.too_large`.
    """
    text = json.dumps(_plain(value, "", 0), ensure_ascii=False, separators=(",", ":"))
    spelled = text.encode()
    if len(spelled) > limit_bytes:
        raise TooLargeError(
            "audit.too_large",
            f"{len(spelled)} bytes are more than the {limit_bytes} of a record",
            hint="record a digest in place of what is long",
        )
    return spelled


def _plain(value: object, place: str, depth: int) -> object:
    """The same value with its keys in order, nothing but plain types inside."""
    if depth > MAX_DEPTH:
        raise _refused(place, f"nested deeper than {MAX_DEPTH}")
    if value is None or value is True or value is False:
        return value
    if isinstance(value, str):
        return _text(value, place)
    if isinstance(value, int):
        if not -MAX_INTEGER <= value <= MAX_INTEGER:
            raise _refused(place, "a number beyond 2^53, which belongs into a string")
        return int(value)
    if isinstance(value, list | tuple):
        return [_plain(item, f"{place}[{index}]", depth + 1) for index, item in enumerate(value)]
    if isinstance(value, dict):
        return _object(value, place, depth)
    raise _refused(place, f"a {type(value).__name__}")


def _object(value: dict[Any, Any], place: str, depth: int) -> dict[str, object]:
    for key in value:
        if not isinstance(key, str):
            raise _refused(place, f"a key that is a {type(key).__name__}")
    # RFC 8785 §3.2.3 sorts by UTF-16 code units, which differs from Python's order beyond U+FFFF.
    keys = sorted((_text(key, place) for key in value), key=lambda key: key.encode("utf-16-be"))
    return {key: _plain(value[key], f"{place}.{key}" if place else key, depth + 1) for key in keys}


def _text(value: str, place: str) -> str:
    """The plain string, also of an enum member; half a surrogate pair is no text."""
    try:
        value.encode()
    except UnicodeEncodeError as exc:
        raise _refused(place, "text that is not Unicode") from exc
    return str.__str__(value)


def _refused(place: str, what: str) -> InvalidInputError:
    # The place may hold what could not be spelled.
    shown = place.encode("ascii", "backslashreplace").decode()[:200] or None
    return InvalidInputError("audit.value", f"{what} has no one spelling in bytes", field=shown)
