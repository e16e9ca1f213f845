"""Lays out a table or an object as lines of text that fit a terminal.

Decides widths: when a table is too wide, the columns that may be cut are, the widest first, and no other
ever is, so that what is shown of an id is an id. Not rich's tables: they cut every column alike and pad
lines. `output` calls it.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len, chop_cells, set_cell_size
from rich.console import Console
from rich.text import Text

_GAP = "  "
_LEAST = 6


@dataclass(frozen=True)
class Head:
    """A column's name and behaviour; see `columns.Column`."""

    name: str
    number: bool
    flexible: bool


def stdout_console() -> Console:
    """Return what writes to stdout; colour only on a terminal, and never against `NO_COLOR`."""
    return Console(highlight=False, emoji=False, markup=False)


def width_of(console: Console) -> int | None:
    """Return how wide lines may be; None where there is neither a terminal nor `COLUMNS`: nothing is cut."""
    return console.width if console.is_terminal or os.environ.get("COLUMNS", "").isdigit() else None


def table_lines(
    heads: Sequence[Head], rows: Sequence[Sequence[Text]], *, width: int | None, show_heads: bool
) -> list[Text]:
    """Return a table's lines, without spaces at their ends."""
    titles = [Text(each.name.upper(), style="bold") for each in heads]
    shown = [titles, *rows] if show_heads else list(rows)
    widths = [max((cell_len(row[at].plain) for row in shown), default=0) for at in range(len(heads))]
    if width is not None:
        _narrow(widths, heads, width)
    return [_line(row, heads, widths) for row in shown]


def field_lines(fields: Sequence[tuple[str, Text]], *, width: int | None) -> list[Text]:
    """Return an object's lines, a field each; long values go on below themselves."""
    names = max((cell_len(name) for name, _ in fields), default=0)
    room = None if width is None else max(width - names - len(_GAP), 20)
    lines = []
    for name, value in fields:
        parts = [value.plain] if room is None else _broken(value.plain, room) or [""]
        for number, part in enumerate(parts):
            head = set_cell_size(name if number == 0 else "", names)
            line = Text.assemble((head, "bold"), _GAP, Text(part, style=value.style))
            line.rstrip()
            lines.append(line)
    return lines


def _broken(text: str, room: int) -> list[str]:
    """Break a long value: a sentence between words, anything else wherever it must."""
    if " " in text and text.isascii():
        return textwrap.wrap(text, room, break_on_hyphens=False)
    return chop_cells(text, room)


def _narrow(widths: list[int], heads: Sequence[Head], limit: int) -> None:
    """Take from the widest column that may be cut until all fits or none can give."""
    excess = sum(widths) + len(_GAP) * (len(widths) - 1) - limit
    while excess > 0:
        least = [max(_LEAST, cell_len(head.name)) for head in heads]
        able = [at for at, head in enumerate(heads) if head.flexible and widths[at] > least[at]]
        if not able:
            return
        widest = max(able, key=lambda at: (widths[at], -at))
        widths[widest] -= 1
        excess -= 1


def _line(cells: Sequence[Text], heads: Sequence[Head], widths: Sequence[int]) -> Text:
    line = Text()
    for at, (cell, head, width) in enumerate(zip(cells, heads, widths, strict=True)):
        plain = cell.plain
        if cell_len(plain) > width:
            plain = set_cell_size(plain, width - 1).rstrip() + "…"
        spaces = " " * (width - cell_len(plain))
        line.append(_GAP if at else "")
        line.append(spaces if head.number else "")
        line.append(plain, style=cell.style)
        line.append("" if head.number else spaces)
    line.rstrip()
    return line
