"""Writes JSON values as YAML 1.2 block text. Every text that is not plainly a word is quoted.

Only what JSON holds; reads nothing. A library would bring a parser and its tags for what a page of code does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

#: Words that read as themselves in YAML 1.1 and 1.2: no number, date, sexagesimal, indicator or space.
_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_./-]*")
#: What some reader takes for a truth value or for nothing.
_NOT_TEXT = frozenset(["y", "n", "yes", "no", "on", "off", "true", "false", "null", "none", "nan", "inf"])
_SURROGATES = re.compile(r"\\u(d[89ab][0-9a-f]{2})\\u(d[c-f][0-9a-f]{2})")


def yaml_text(value: Any) -> str:
    """Return a JSON value as YAML, with a line end."""
    return "\n".join(_lines(value)) + "\n"


def _lines(value: Any) -> Iterator[str]:
    if isinstance(value, dict) and value:
        for key, each in value.items():
            yield from _entry(f"{_scalar(str(key))}:", each)
    elif isinstance(value, list) and value:
        for each in value:
            inner = list(_lines(each))
            yield f"- {inner[0]}"
            yield from (f"  {line}" for line in inner[1:])
    else:
        yield _scalar(value)


def _entry(head: str, value: Any) -> Iterator[str]:
    if isinstance(value, dict | list) and value:
        yield head
        yield from (f"  {line}" for line in _lines(value))
    else:
        yield f"{head} {_scalar(value)}"


def _scalar(value: Any) -> str:
    if isinstance(value, str) and _WORD.fullmatch(value) and value.lower() not in _NOT_TEXT:
        return value
    return _SURROGATES.sub(_joined, json.dumps(value))


def _joined(match: re.Match[str]) -> str:
    """One character beyond the first plane: YAML knows no surrogate pairs."""
    high, low = int(match[1], 16) - 0xD800, int(match[2], 16) - 0xDC00
    return f"\\U{0x10000 + (high << 10) + low:08x}"
