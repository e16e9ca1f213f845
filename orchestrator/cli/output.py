"""How data is written to stdout: tables for people, everything else for programs.

Decides the form, never the content: JSON and YAML are exactly the API's object. CSV escapes what a
spreadsheet would run as a formula. Every noun's commands write through it.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from rich.console import Console
from rich.text import Text

from orchestrator.cli.columns import NOTHING, Column, chosen, text_of
from orchestrator.cli.layout import Head, field_lines, stdout_console, table_lines, width_of
from orchestrator.cli.yaml_text import yaml_text
from orchestrator.model.errors import InvalidInputError

#: OWASP's list of how a cell begins that a spreadsheet takes for a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")

_GOOD = frozenset({"running", "ready", "active", "available", "succeeded", "clean", "placed", "done", "pass"})
_BAD = frozenset(
    {"error", "needs_attention", "failed", "lost", "fenced", "unreachable", "quarantined", "missing", "fail"}
)
_STATE = {**dict.fromkeys(_GOOD, "green"), **dict.fromkeys(_BAD, "red")}


class Output(StrEnum):
    """The forms of data."""

    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    YAML = "yaml"
    CSV = "csv"
    NAME = "name"


@dataclass(frozen=True)
class Form:
    """What a command was asked to write.

    Args:
        columns: `--columns`, None for the usual ones.
        heads: tables and CSV have a first line of names.
    """

    output: Output = Output.TABLE
    columns: str | None = None
    heads: bool = True


def parse_output(text: str, where: str) -> Output:
    """Return an output form by its name.

    Raises:
        InvalidInputError: `output.unknown`.
    """
    try:
        return Output(text.strip().lower())
    except ValueError as exc:
        raise InvalidInputError(
            "output.unknown",
            "there is no such output form",
            field=where,
            hint=f"there are {', '.join(Output)}",
        ) from exc


def show_list(body: Mapping[str, Any], columns: Sequence[Column], form: Form) -> None:
    """Write a list of the API, `items` and `next_page_token`."""
    if form.output in (Output.JSON, Output.YAML):
        write_value(body, form.output)
    else:
        show_rows(body["items"], columns, form)


def show_rows(items: Sequence[Mapping[str, Any]], columns: Sequence[Column], form: Form) -> None:
    """Write objects as lines: a table, CSV, or one name a line."""
    if form.output is Output.NAME:
        for item in items:
            print(name_of(item))
        return
    shown = chosen(columns, form.columns, wide=form.output is Output.WIDE)
    if form.output is Output.CSV:
        _csv(
            [[each.value(item) for each in shown] for item in items],
            [each.name for each in shown],
            form.heads,
        )
    else:
        # Who asks for everything scrolls sideways rather than reads parts of it.
        _table(items, shown, heads=form.heads, cut=form.output is not Output.WIDE)


def show_object(
    item: Any,
    columns: Sequence[Column],
    form: Form,
    summary: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None,
) -> None:
    """Write one object: in tables a line per field, with `--columns` and in CSV the noun's columns.

    Args:
        summary: makes of it what people see, where all of it is too much.
    """
    if form.output in (Output.JSON, Output.YAML):
        write_value(item, form.output)
    elif not isinstance(item, Mapping):
        print(text_of(item))
    elif form.output in (Output.NAME, Output.CSV) or form.columns is not None:
        show_rows([item], columns, form)
    else:
        _fields(item if summary is None else summary(item))


def write_value(value: Any, output: Output) -> None:
    """Write a JSON value as it came. ASCII only: what is escaped steers no terminal."""
    if output is Output.YAML:
        sys.stdout.write(yaml_text(value))
    else:
        sys.stdout.write(json.dumps(value, indent=2) + "\n")


def name_of(item: Mapping[str, Any]) -> str:
    """Return what the next command can call it."""
    return text_of(item.get("name") or item.get("id") or item.get("key_id") or item.get("tenant_id"))


def check_columns(columns: Sequence[Column], form: Form) -> None:
    """Refuse a wrong `--columns` before anything is asked of a server."""
    chosen(columns, form.columns, wide=True)


def _table(items: Sequence[Mapping[str, Any]], columns: Sequence[Column], *, heads: bool, cut: bool) -> None:
    console = stdout_console()
    lines = table_lines(
        [Head(each.name, each.number, each.flexible) for each in columns],
        [[_cell(each.name, text_of(each.value(item))) for each in columns] for item in items],
        width=width_of(console) if cut else None,
        show_heads=heads,
    )
    _print(console, lines)


def _fields(item: Mapping[str, Any]) -> None:
    console = stdout_console()
    fields = [(name, _cell(name, value)) for name, value in _flat("", item)]
    _print(console, field_lines(fields, width=width_of(console)))


def _cell(name: str, text: str) -> Text:
    return Text(text, style=_STATE.get(text, "") if name == "state" else "")


def _print(console: Console, lines: Sequence[Text]) -> None:
    for line in lines:
        console.print(line, soft_wrap=True)


def _flat(prefix: str, value: Any) -> list[tuple[str, str]]:
    """Every leaf with its path; lists of objects by number."""
    if isinstance(value, Mapping) and value:
        inner = [(f"{prefix}.{key}" if prefix else str(key), each) for key, each in value.items()]
    elif isinstance(value, list) and any(isinstance(each, Mapping | list) for each in value):
        inner = [(f"{prefix}[{number}]", each) for number, each in enumerate(value)]
    else:
        return [(text_of(prefix), text_of(value))]
    return [row for name, each in inner for row in _flat(name, each)]


def _csv(rows: Sequence[Sequence[Any]], names: Sequence[str], heads: bool) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    if heads:
        writer.writerow(names)
    writer.writerows([[_csv_cell(value) for value in row] for row in rows])


def _csv_cell(value: Any) -> str:
    text = text_of(value)
    if text == NOTHING:
        return ""
    if isinstance(value, str) and text.startswith(_FORMULA):
        return f"'{text}"
    return text
