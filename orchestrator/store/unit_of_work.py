"""The only way to change the database: one transaction that carries its own audit records.

Refuses to commit a change without a record. Records are written last, so that the row lock on a stream's
counter is short; they get gapless numbers there. Whoever waits is woken after the commit, never before.
"""

from __future__ import annotations

import contextlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, TypeVar

from sqlalchemy import Connection, Executable, Insert, bindparam, insert, select, update
from sqlalchemy.engine import CursorResult, Row
from sqlmodel import SQLModel

from orchestrator.audit.record import AuditEvent, commitment, event_bytes
from orchestrator.model.actor import Actor
from orchestrator.model.errors import BulkheadError, FencedError
from orchestrator.store.clock import database_now_ms
from orchestrator.store.tables.audit import AuditRecordRow, AuditStreamRow
from orchestrator.store.tables.leases import LeaseRow, RateBucketRow
from orchestrator.store.tables.operations import IdempotencyRow

PLATFORM_STREAM = "platform"
_SALT_BYTES = 32

T = TypeVar("T")


def table_of(row: type[SQLModel]) -> Any:
    """The SQLAlchemy table behind a table class."""
    return row.__table__  # type: ignore[attr-defined]


@cache
def _insert(row: type[SQLModel]) -> Insert:
    """One row's insert without its values: writing a statement anew takes longer than the database does."""
    return insert(table_of(row))


_STREAMS = table_of(AuditStreamRow)
_COUNT = (
    update(_STREAMS)
    .where(_STREAMS.c.id == bindparam("stream"))
    .values(next_seq=_STREAMS.c.next_seq + bindparam("count"))
    .returning(_STREAMS.c.next_seq)
)
#: Changing these changes nothing that an auditor asks about.
_UNAUDITED = frozenset(
    table_of(row).name for row in (LeaseRow, RateBucketRow, IdempotencyRow, AuditStreamRow, AuditRecordRow)
)


class AuditMissingError(BulkheadError):
    """A change would have been committed without an audit record: a defect of ours; nothing was changed."""


class Reader:
    """A transaction that reads."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def all(self, statement: Executable, values: Mapping[str, Any] | None = None) -> Sequence[Row[Any]]:
        """Every row; `values` are of a statement that was written once, with names for them."""
        return self._connection.execute(statement, values).all()

    def first(self, statement: Executable, values: Mapping[str, Any] | None = None) -> Row[Any] | None:
        """The first row, or None; `values` as of `all`."""
        return self._connection.execute(statement, values).first()

    def scalar(self, statement: Executable) -> Any:
        """The first column of the first row, or None."""
        return self._connection.execute(statement).scalar()


class UnitOfWork(Reader):
    """A transaction that changes things, for one asker at one time.

    Args:
        connection: an open write transaction; the store commits it.
        actor: who asks.
        now_ms: the time that rows and records carry.
    """

    def __init__(self, connection: Connection, actor: Actor, now_ms: int) -> None:
        super().__init__(connection)
        self.actor = actor
        self.now_ms = now_ms
        self.topics: set[str] = set()
        self._events: dict[str, list[AuditEvent]] = defaultdict(list)
        self._changed: set[str] = set()

    @property
    def dialect(self) -> str:
        """`sqlite` or `postgresql`."""
        return self._connection.dialect.name

    def execute(
        self, statement: Any, values: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None
    ) -> CursorResult[Any]:
        """Change something.

        Args:
            values: of a statement that was written once, with names for them; those that are columns are
                set. A list makes it many of one kind in one statement.
        """
        self._changed.add(statement.table.name)
        return self._connection.execute(statement, values)

    def note(self, statement: Any, values: Mapping[str, Any] | None = None) -> CursorResult[Any]:
        """Change what no auditor asks about: where an agent is, when a token was last seen."""
        return self._connection.execute(statement, values)

    def add(self, row: type[SQLModel], **values: Any) -> None:
        """Insert one row."""
        self.execute(_insert(row), values)

    def record(
        self,
        kind: str,
        subject: tuple[str, str],
        *,
        tenant: str | None,
        stage: str = "intent",
        outcome: str = "ok",
        details: Mapping[str, Any] | None = None,
    ) -> None:
        """Say in the audit log what this transaction does; `tenant` None is the platform's stream."""
        stream = tenant or PLATFORM_STREAM
        event = AuditEvent(
            kind=kind,
            stage=stage,
            at_ms=self.now_ms,
            actor=self.actor,
            subject_kind=subject[0],
            subject_id=subject[1],
            tenant=tenant,
            request_id=self.actor.request_id,
            outcome=outcome,
            details=dict(details or {}),
        )
        self._events[stream].append(event)
        self.topics.add(f"stream:{stream}")

    def wake(self, topic: str) -> None:
        """Ring for whoever waits for `topic` once this is committed: `scheduler`, `host:ID`."""
        self.topics.add(topic)

    def demand_fence(self, name: str, fence: int) -> None:
        """Go on only while the lease `name` is still held under this fence.

        Raises:
            FencedError: `lease.lost`.
        """
        table = table_of(LeaseRow)
        held = (
            select(table.c.fence)
            .where(table.c.name == name, table.c.fence == fence, table.c.until_ms > database_now_ms())
            .with_for_update(read=True)
        )
        if self.scalar(held) is None:
            raise FencedError("lease.lost", f"another controller holds {name} now; nothing was changed")

    def finish(self) -> None:
        """Write the records; the last statements of the transaction.

        Raises:
            AuditMissingError: `audit.missing`.
        """
        silent = self._changed - _UNAUDITED
        if silent and not self._events:
            raise AuditMissingError(
                "audit.missing", f"a change of {', '.join(sorted(silent))} came without an audit record"
            )
        # One order for all: two transactions on two streams never wait for each other in a circle.
        for stream in sorted(self._events):
            self._write(stream, self._events[stream])

    def _write(self, stream: str, events: list[AuditEvent]) -> None:
        after = self._connection.execute(_COUNT, {"stream": stream, "count": len(events)}).scalar_one()
        rows = []
        for seq, event in enumerate(events, start=after - len(events)):
            salt, body = os.urandom(_SALT_BYTES), event_bytes(event)
            rows.append(
                {
                    "stream": stream,
                    "seq": seq,
                    "at_ms": event.at_ms,
                    "kind": event.kind,
                    "subject_id": event.subject_id,
                    "salt": salt,
                    "body": body,
                    "commitment": commitment(salt, body),
                }
            )
        self._connection.execute(_insert(AuditRecordRow), rows)


@contextlib.contextmanager
def committed(connection: Connection, actor: Actor, now_ms: int) -> Iterator[UnitOfWork]:
    """A unit of work whose records are written when its block ends well."""
    work = UnitOfWork(connection, actor, now_ms)
    yield work
    work.finish()


Bell = Callable[[frozenset[str]], None]
