"""Opens the database: SQLite on one machine, PostgreSQL for more than one controller.

SQLite: WAL, full sync, foreign keys, and one writer at a time in a fair line of our own, since SQLite's busy
waiting starves. PostgreSQL: read committed; every rule rests on constraints and conditional updates.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, InternalError, OperationalError, TimeoutError

from orchestrator.model.errors import HostError, InvalidInputError

#: Seconds that a writer of another process may hold SQLite before we give up.
BUSY_S = 30
#: Milliseconds that a transaction may stand still. Ours wait for nothing: a controller that was stopped
#: in the middle of one must not hold its rows until somebody lets it go on.
IDLE_MS = 10_000
#: Pages that one connection to SQLite keeps: the kernel has them all, and any commit makes kept ones old.
#: SQLite's own 2 MiB, for every connection of a busy moment, is memory for little.
_CACHE_KIB = 128
#: Statements that a connection keeps prepared: some 6 KiB each, which the driver would have 128 of.
_STATEMENTS = 64
#: PostgreSQL's SQLSTATE for it: idle_in_transaction_session_timeout.
_STOOD_STILL = "25P03"


class Database:
    """An open database.

    Args:
        url: `sqlite:///FILE` or `postgresql://...`.
        pool_size: connections kept; each running request or loop holds one at most.

    Raises:
        InvalidInputError: `store.url`.
    """

    def __init__(self, url: str, *, pool_size: int = 20) -> None:
        try:
            parsed = make_url(url)
        except ArgumentError:
            # The cause would show the URL, and that may hold a password.
            raise InvalidInputError(
                "store.url", "the database's URL cannot be read", field="database"
            ) from None
        self.kind = parsed.get_backend_name()
        #: Process ids of PostgreSQL's backends behind this process's own connections.
        self.backends: set[int] = set()
        if self.kind == "sqlite":
            if not parsed.database or parsed.database == ":memory:":
                raise InvalidInputError("store.url", "SQLite needs a file: sqlite:///PATH", field="database")
            self._reading = _sqlite_engine(url, "BEGIN", pool_size)
            self._writing = _sqlite_engine(url, "BEGIN IMMEDIATE", pool_size)
            self._line: contextlib.AbstractContextManager[Any] = threading.Lock()
        elif self.kind == "postgresql":
            self._writing = create_engine(
                parsed.set(drivername="postgresql+psycopg").update_query_dict({"options": _options(parsed)}),
                pool_size=pool_size,
                pool_pre_ping=True,
                # Errors end in logs, and parameters hold what no log may.
                hide_parameters=True,
            )
            self._reading = self._writing
            self._line = contextlib.nullcontext()
            self._remember_backends()
        else:
            raise InvalidInputError(
                "store.url", f"{self.kind} is no database of ours: use sqlite or postgresql", field="database"
            )

    @property
    def engine(self) -> Engine:
        """The writing engine, for migrations and tests."""
        return self._writing

    @property
    def connect_arguments(self) -> dict[str, Any]:
        """What the driver needs for a connection outside the pool."""
        return dict(self._writing.dialect.create_connect_args(self._writing.url)[1])

    def _remember_backends(self) -> None:
        @event.listens_for(self._writing, "connect")
        def connect(connection: Any, record: Any) -> None:
            record.info["backend"] = connection.info.backend_pid
            self.backends.add(connection.info.backend_pid)

        @event.listens_for(self._writing, "close")
        def close(_connection: Any, record: Any) -> None:
            self.backends.discard(record.info.get("backend"))

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that only reads; it sees one state of the database.

        Raises:
            HostError: `store.unavailable`.
        """
        with _translated(), self._reading.connect() as connection:
            yield connection

    @contextlib.contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that commits when the block ends well, and leaves nothing when it does not.

        Raises:
            HostError: `store.unavailable`.
        """
        with _translated(), self._line, self._writing.begin() as connection:
            yield connection

    def dispose(self) -> None:
        """Close all connections."""
        self._reading.dispose()
        self._writing.dispose()


def _options(url: URL) -> str:
    """PostgreSQL's settings for our connections; what the URL sets stands behind ours, and wins."""
    given = url.query.get("options", "")
    more = given if isinstance(given, str) else " ".join(given)
    return f"-c idle_in_transaction_session_timeout={IDLE_MS} {more}".rstrip()


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Gone, locked, or two transactions in each other's way: the same call may work a little later."""
    try:
        yield
    except (OperationalError, InternalError, TimeoutError) as exc:
        # Having stood still too long comes as an internal error, or as a connection that is gone.
        if isinstance(exc, InternalError) and getattr(exc.orig, "sqlstate", None) != _STOOD_STILL:
            raise
        raise HostError(
            "store.unavailable", "the database does not answer now", hint="try again, with the same key"
        ) from exc


def _sqlite_engine(url: str, begin: str, pool_size: int) -> Engine:
    engine = create_engine(
        url,
        pool_size=pool_size,
        # The connections of a busy moment rest afterwards, and their statements and pages with them.
        pool_use_lifo=True,
        connect_args={"timeout": BUSY_S, "cached_statements": _STATEMENTS},
        hide_parameters=True,
    )

    @event.listens_for(engine, "connect")
    def connect(connection: Any, _record: Any) -> None:
        # The driver's own idea of when a transaction begins would make writers start as readers.
        connection.isolation_level = None
        pragmas = ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", f"cache_size=-{_CACHE_KIB}")
        for pragma in pragmas:
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def start(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine
