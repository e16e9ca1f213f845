"""Hears what other controllers committed to the same PostgreSQL, and rings for it here.

The database tells by triggers (`_tell_the_others` in the migration), on commit and never before. A ring says
only that it is worth looking, so what is lost while the connection is gone is made good by one ring for
everybody once it is back. Holds one connection of its own, which must reach PostgreSQL itself: a pool that
shares connections between transactions passes no notifications on. `processes` starts one.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import psycopg

from orchestrator.store.engine import Database

CHANNEL = "bulkhead"
#: So often it looks whether it is to end; notifications themselves come at once.
_LOOK_S = 0.5
_RETRY_FIRST_S, _RETRY_LONGEST_S = 0.2, 10.0
#: A server that vanished without a word is noticed after half a minute.
_KEEPALIVE = {"keepalives_idle": 15, "keepalives_interval": 5, "keepalives_count": 3, "connect_timeout": 10}
_LOG = logging.getLogger("bulkhead.listener")


class Listener:
    """One thread on one connection.

    Args:
        database: a PostgreSQL; what its own connections committed has been rung for already.
        ring: called with the topics that others committed.
        ring_all: called each time a connection begins to listen.
    """

    def __init__(
        self,
        database: Database,
        ring: Callable[[frozenset[str]], None],
        ring_all: Callable[[], None],
    ) -> None:
        self._database = database
        self._ring = ring
        self._ring_all = ring_all
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="listener", daemon=True)

    def start(self) -> None:
        """Begin; returns at once, whether or not the database answers now."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread and its connection."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        retry_s = _RETRY_FIRST_S
        while not self._stop.is_set():
            try:
                with self._connected() as link:
                    retry_s = _RETRY_FIRST_S
                    self._hear(link)
            except (psycopg.Error, OSError) as exc:
                # Its message may name the server; never the password.
                _LOG.warning("listening ended (%s), again in %.1f s", type(exc).__name__, retry_s)
                self._stop.wait(retry_s)
                retry_s = min(retry_s * 2, _RETRY_LONGEST_S)

    def _connected(self) -> psycopg.Connection[tuple[object, ...]]:
        return psycopg.connect(**{**self._database.connect_arguments, **_KEEPALIVE}, autocommit=True)

    def _hear(self, link: psycopg.Connection[tuple[object, ...]]) -> None:
        link.execute(f"LISTEN {CHANNEL}")
        # From here on nothing is missed; what came before may have been.
        self._ring_all()
        while not self._stop.is_set():
            for told in link.notifies(timeout=_LOOK_S, stop_after=1):
                if told.pid not in self._database.backends:
                    self._ring(frozenset({told.payload}))
