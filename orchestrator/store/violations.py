"""Which rule of the database a refused statement broke, by its name, on both databases."""

from __future__ import annotations

import re
from functools import cache

from sqlalchemy import UniqueConstraint
from sqlalchemy.exc import IntegrityError
from sqlmodel import SQLModel

_UNIQUE = re.compile(r"UNIQUE constraint failed: (.+)")
_INDEX = re.compile(r"UNIQUE constraint failed: index '(\w+)'")
_CHECK = re.compile(r"CHECK constraint failed: (\w+)")


def violated(error: IntegrityError) -> str:
    """Return the constraint's name (`quota_gpus`, `instance_name`), or `foreign_key`, or `unknown`.

    SQLite names checks but tells unique rules by their columns and foreign keys not at all.
    """
    name = getattr(getattr(error.orig, "diag", None), "constraint_name", None)
    if name:
        return str(name)
    text = str(error.orig)
    if found := _CHECK.search(text):
        return found[1]
    if found := _INDEX.search(text):
        return found[1]
    if found := _UNIQUE.search(text):
        return _unique_names().get(found[1], "unknown")
    return "foreign_key" if "FOREIGN KEY" in text else "unknown"


@cache
def _unique_names() -> dict[str, str]:
    names: dict[str, str] = {}
    for table in SQLModel.metadata.tables.values():
        rules = [
            (rule.name, rule.columns) for rule in table.constraints if isinstance(rule, UniqueConstraint)
        ]
        rules += [(index.name, index.columns) for index in table.indexes if index.unique]
        for name, columns in rules:
            label = str(name) if name else f"{table.name}_{'_'.join(column.name for column in columns)}"
            names[", ".join(f"{table.name}.{column.name}" for column in columns)] = label
    return names
