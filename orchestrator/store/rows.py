"""From rows to model values, and the two questions that every noun is asked: one of them, and a page of them.

A scope stands in every query: a tenant's id, or `PLATFORM` for those who may see all. Names hold no
underscore and ids hold one, so that one text means either.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import Any, Generic, TypeVar

from sqlalchemy import Column, ColumnElement, Select, and_, bindparam, or_, select
from sqlmodel import SQLModel

from orchestrator.store.unit_of_work import Reader, table_of

T = TypeVar("T")


@dataclass(frozen=True)
class Scope:
    """Whose rows a query may see; `tenant_id` None sees all tenants' and the platform's."""

    tenant_id: str | None


PLATFORM = Scope(None)


@dataclass(frozen=True)
class After:
    """Where a page goes on: behind this row, oldest first."""

    born_ms: int
    id: str


@dataclass(frozen=True)
class Part:
    """Which part of a list is wanted: up to `size` values behind `after`.

    Args:
        newest: the list begins with what was made last.
    """

    after: After | None
    size: int
    newest: bool = False

    def of(self, statement: Select[Any], born: Any, identity: Any) -> Select[Any]:
        """Order a statement by these two columns and cut it; one row more says that a page follows."""
        ordered = [born.desc(), identity.desc()] if self.newest else [born, identity]
        statement = statement.order_by(*ordered).limit(self.size + 1)
        if self.after is None:
            return statement
        at, same = self.after.born_ms, born == self.after.born_ms
        if self.newest:
            return statement.where(or_(born < at, and_(same, identity < self.after.id)))
        return statement.where(or_(born > at, and_(same, identity > self.after.id)))


@cache
def _converters(kind: Any) -> Mapping[str, Any]:
    hints = typing.get_type_hints(kind)
    found: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        if isinstance(hint, type) and issubclass(hint, Enum):
            found[field.name] = hint
        elif typing.get_origin(hint) is tuple:
            found[field.name] = tuple
        else:
            found[field.name] = None
    return found


def to_value(kind: type[T], values: Mapping[Any, Any]) -> T:
    """Make a model value of a row's mapping, whose columns are named as its fields."""
    return kind(
        **{
            name: values[name] if convert is None or values[name] is None else convert(values[name])
            for name, convert in _converters(typing.cast("Any", kind)).items()
        }
    )


def part_of(kind: type[T], row: Any, table: str) -> T:
    """Make one table's value of a row of several, whose columns are labelled `TABLE_COLUMN`."""
    prefix = f"{table}_"
    return to_value(
        kind,
        {name.removeprefix(prefix): value for name, value in row._mapping.items() if name.startswith(prefix)},
    )


class Noun(Generic[T]):
    """One kind of thing in the database.

    Args:
        row: its table class; the value's fields are columns of it.
        value: its model value.
        tenant_column: the column that says whose it is; None for what belongs to the platform.
        name_column: the column that people know it by.
        born_column: the column that says since when it is there; lists are oldest first.
        hidden_state: the state in which it is gone for everybody.
    """

    def __init__(
        self,
        row: type[SQLModel],
        value: type[T],
        *,
        tenant_column: str | None = "tenant_id",
        name_column: str | None = "name",
        born_column: str = "created_ms",
        hidden_state: str | None = "deleted",
    ) -> None:
        self.table = table_of(row)
        self.value = value
        self._tenant = tenant_column
        self._name = name_column
        self._born = born_column
        self._hidden = hidden_state if "state" in self.table.c else None

    def seen(self, scope: Scope) -> list[ColumnElement[bool]]:
        """The conditions that keep a query inside a scope and away from what is deleted."""
        conditions: list[ColumnElement[bool]] = []
        if scope.tenant_id is not None and self._tenant is not None:
            conditions.append(self.table.c[self._tenant] == scope.tenant_id)
        if self._hidden is not None:
            conditions.append(self.table.c.state != self._hidden)
        return conditions

    @property
    def tenant(self) -> Column[Any]:
        """The column that says whose it is; only of a noun that has one."""
        return typing.cast("Column[Any]", self.table.c[self._tenant])

    def key(self, reference: str) -> Column[Any]:
        """The column in which to look for what a reference means: its id, or its name."""
        name = "id" if "_" in reference or self._name is None else self._name
        return typing.cast("Column[Any]", self.table.c[name])

    def named(self, reference: str) -> ColumnElement[bool]:
        """The condition that a row is the one that an id or a name means."""
        return self.key(reference) == reference

    def get(self, tx: Reader, scope: Scope, reference: str, *, lock: bool = False) -> T | None:
        """Return the one that an id or name means, if the scope may see it."""
        scoped = scope.tenant_id is not None and self._tenant is not None
        row = tx.first(
            _getting(self, self.key(reference), scoped, lock),
            {"reference": reference, "tenant": scope.tenant_id} if scoped else {"reference": reference},
        )
        return None if row is None else to_value(self.value, row._mapping)

    def where(self, tx: Reader, scope: Scope, *conditions: ColumnElement[bool]) -> list[T]:
        """Return all that meet the conditions, oldest first."""
        return self.found(tx, self.wanting(scope, *conditions))

    def wanting(self, scope: Scope, *conditions: ColumnElement[bool]) -> Select[Any]:
        """The statement of `where`. What is asked all the time is written once, with names for its values:
        writing it anew takes longer than the database does."""
        ordered = select(self.table).order_by(self.table.c[self._born], self.table.c.id)
        return ordered.where(*self.seen(scope), *conditions)

    def found(self, tx: Reader, statement: Select[Any], values: Mapping[str, Any] | None = None) -> list[T]:
        """Return all that a statement of `wanting` finds."""
        return [to_value(self.value, row._mapping) for row in tx.all(statement, values)]

    def page(
        self,
        tx: Reader,
        scope: Scope,
        part: Part,
        conditions: Sequence[ColumnElement[bool]] = (),
    ) -> tuple[list[T], After | None]:
        """Return a part of those that meet the conditions, and where the next page starts if there is one."""
        wanted = select(self.table).where(*self.seen(scope), *conditions)
        rows = tx.all(part.of(wanted, self.table.c[self._born], self.table.c.id))
        values = [to_value(self.value, row._mapping) for row in rows[: part.size]]
        if len(rows) <= part.size:
            return values, None
        last = rows[part.size - 1]._mapping
        return values, After(last[self._born], last["id"])

    def like(self, *, name_prefix: str | None = None, **columns: object) -> list[ColumnElement[bool]]:
        """The conditions that columns have these values, and names begin like that; None takes any."""
        found = [self.table.c[name] == value for name, value in columns.items() if value is not None]
        if name_prefix is not None and self._name is not None:
            found.append(self.table.c[self._name].startswith(name_prefix, autoescape=True))
        return found


@cache
def _getting(noun: Noun[Any], key: Column[Any], scoped: bool, lock: bool) -> Select[Any]:
    """The statement of `Noun.get`; each call gives its values."""
    statement = select(noun.table).where(key == bindparam("reference"), *noun.seen(PLATFORM))
    if scoped:
        statement = statement.where(noun.tenant == bindparam("tenant"))
    return statement.with_for_update() if lock else statement
