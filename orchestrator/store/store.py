"""The store as everyone else sees it: read, or change in one unit of work."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from sqlalchemy import select

from orchestrator.model.actor import Actor
from orchestrator.model.states import GPU_EDGES
from orchestrator.store import migrate
from orchestrator.store.engine import Database
from orchestrator.store.ids import new_id
from orchestrator.store.tables.audit import AuditStreamRow
from orchestrator.store.tables.fleet import GpuEdgeRow
from orchestrator.store.tables.tenants import DeploymentRow
from orchestrator.store.unit_of_work import PLATFORM_STREAM, Bell, Reader, UnitOfWork, committed, table_of


def wall_ms() -> int:
    """Milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


class Store:
    """An open database with its schema brought up.

    Args:
        database: where.
        bell: called after each commit with the topics that it woke.
        clock: milliseconds since the epoch; what rows and records carry.
    """

    def __init__(
        self, database: Database, *, bell: Bell | None = None, clock: Callable[[], int] = wall_ms
    ) -> None:
        self.database = database
        self.bell = bell or (lambda _topics: None)
        self.clock = clock

    def prepare(self) -> str:
        """Bring the schema up and make what every deployment has; return the deployment's id. Repeatable."""
        migrate.upgrade(self.database)
        with self.database.writing() as connection:
            deployments, streams = table_of(DeploymentRow), table_of(AuditStreamRow)
            found = connection.execute(select(deployments.c.id)).scalar()
            if found is not None:
                return str(found)
            made = new_id("dep")
            connection.execute(
                deployments.insert().values(id=made, epoch=1, observe_only=False, created_ms=self.clock())
            )
            connection.execute(streams.insert().values(id=PLATFORM_STREAM, next_seq=0))
            edges = [{"before": before, "after": after} for before, after in GPU_EDGES]
            connection.execute(table_of(GpuEdgeRow).insert(), edges)
            return made

    @contextlib.contextmanager
    def reading(self) -> Iterator[Reader]:
        """Read one state of the database."""
        with self.database.reading() as connection:
            yield Reader(connection)

    @contextlib.contextmanager
    def unit_of_work(self, actor: Actor) -> Iterator[UnitOfWork]:
        """Change something, with its audit record, in one transaction."""
        with self.database.writing() as connection:
            with committed(connection, actor, self.clock()) as work:
                yield work
        self.bell(frozenset(work.topics))
