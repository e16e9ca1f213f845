"""Columns of a table: what of an object they show, and how wide a table is.

Decides nothing about any noun: each noun names its columns. Cells hold what servers and guests said, so no
control character ever leaves here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.model.errors import InvalidInputError

NOTHING = "-"


@dataclass(frozen=True)
class Column:
    """One column.

    Args:
        name: as `--columns` knows it; the head of the column is its capitals.
        read: a path into the object (`error.code`; the first of `a|b` that is there), or a function of it.
        wide: only `-o wide` and `--columns` show it.
        number: it stands on the right.
        flexible: it may be cut when the terminal is narrow; nothing else ever is.
    """

    name: str
    read: str | Callable[[Mapping[str, Any]], Any]
    wide: bool = False
    number: bool = False
    flexible: bool = False

    def value(self, item: Mapping[str, Any]) -> Any:
        """Return what it shows of an object, None for nothing."""
        if callable(self.read):
            return self.read(item)
        for path in self.read.split("|"):
            found = at(item, path)
            if found is not None:
                return found
        return None


def at(item: Any, path: str) -> Any:
    """Return what stands at a dotted path of a JSON object, or None."""
    for part in path.split("."):
        if not isinstance(item, Mapping):
            return None
        item = item.get(part)
    return item


def chosen(columns: Sequence[Column], wanted: str | None, *, wide: bool) -> tuple[Column, ...]:
    """Return the columns to show.

    Args:
        wanted: `--columns`, names with commas between; None takes the usual ones.

    Raises:
        InvalidInputError: `output.column`.
    """
    if wanted is None:
        return tuple(each for each in columns if wide or not each.wide)
    by_name = {each.name: each for each in columns}
    names = [name.strip().lower().replace("-", "_") for name in wanted.split(",")]
    for name in names:
        if name not in by_name:
            shown = name if name.isprintable() and name else "a column without a name"
            raise InvalidInputError(
                "output.column",
                f"there is no column {shown}",
                field="--columns",
                hint=f"there are {','.join(by_name)}",
            )
    return tuple(by_name[name] for name in names)


def text_of(value: Any) -> str:
    """Return a cell: one line, without control characters."""
    if value is None or value == "" or value == [] or value == {}:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ",".join(text_of(each) for each in value)
    return clean(str(value))


def clean(text: str, *, keep: str = "") -> str:
    """Return a text without what could steer a terminal: each such character as its escape."""
    return "".join(
        mark if mark.isprintable() or mark in keep else mark.encode("unicode_escape").decode()
        for mark in text
    )


def time(path: str) -> Callable[[Mapping[str, Any]], str | None]:
    """Return a reader of a time, to the minute, in UTC as the API says it."""

    def read(item: Mapping[str, Any]) -> str | None:
        found = at(item, path)
        if not isinstance(found, str) or len(found) < 16:
            return None
        return f"{found[:10]} {found[11:16]}Z"

    return read
