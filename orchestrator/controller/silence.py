"""Who is silent: hosts that no controller heard for too long become unreachable, and come back when heard.

Heartbeats stay in the memory of the controller that hears them. Once a minute it writes which hosts it heard,
all in one statement: that is what the others, and a controller that has just started, know about them. An
unreachable host's instances are left alone. Called by the loops.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from sqlalchemy import or_, select, update

from orchestrator.controller import doctor
from orchestrator.model.actor import CONTROLLER
from orchestrator.model.states import HostState
from orchestrator.store.clock import database_now_ms
from orchestrator.store.store import Store
from orchestrator.store.tables.fleet import HostRow
from orchestrator.store.unit_of_work import UnitOfWork, table_of

_HOSTS = table_of(HostRow)
_WRITE_S = 60.0
#: SQLite takes a bounded number of parameters.
_AT_ONCE = 500


class Heard(Protocol):
    """Who knows what this process heard."""

    def ages_s(self) -> Mapping[str, float]:
        """Seconds since each host was heard, of those that this process ever heard."""


class Watch:
    """Judges silence for one controller.

    Args:
        silent_s: so long without a word makes a host unreachable; half of it more if only others heard it.
        clock: monotonic seconds.
    """

    def __init__(
        self, store: Store, heard: Heard, silent_s: float, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = store
        self._heard = heard
        self._silent_s = silent_s
        self._write_s = min(_WRITE_S, silent_s / 2)
        self._clock = clock
        #: Nobody could be heard while no controller ran: everybody gets the time to speak.
        self._judging_from = clock() + silent_s + self._write_s
        self._written: dict[str, float] = {}

    def turn(self) -> None:
        """Write who was heard, call back who was unreachable, give up who is silent."""
        alive = {host for host, age_s in self._heard.ages_s().items() if age_s < self._silent_s}
        self._write(alive)
        with self._store.reading() as tx:
            now_ms = int(tx.scalar(select(database_now_ms())))
            rows = tx.all(
                select(_HOSTS.c.id, _HOSTS.c.state, _HOSTS.c.heard_ms).where(
                    _HOSTS.c.state.in_((HostState.READY, HostState.UNREACHABLE))
                )
            )
        long_ago_ms = now_ms - int((self._silent_s + self._write_s) * 1000)
        for row in rows:
            if row.state == HostState.UNREACHABLE:
                if row.id in alive:
                    self._call_back(row.id)
                continue
            silent = row.id not in alive and (row.heard_ms is None or row.heard_ms < long_ago_ms)
            if silent and self._clock() >= self._judging_from:
                self._give_up(row, now_ms, long_ago_ms)

    def _write(self, alive: set[str]) -> None:
        now = self._clock()
        due = sorted(each for each in alive if now - self._written.get(each, -self._write_s) >= self._write_s)
        for at in range(0, len(due), _AT_ONCE):
            some = due[at : at + _AT_ONCE]
            with self._store.unit_of_work(CONTROLLER) as tx:
                # When an agent was heard changes nothing that an auditor asks about.
                tx.note(update(_HOSTS).where(_HOSTS.c.id.in_(some)).values(heard_ms=database_now_ms()))
            self._written.update(dict.fromkeys(some, now))

    def _give_up(self, row: Any, now_ms: int, long_ago_ms: int) -> None:
        since = "ever" if row.heard_ms is None else f"for {(now_ms - row.heard_ms) // 1000} s"
        reason = f"no controller has heard it {since}; its instances are left alone"
        # Somebody may have heard it since we looked.
        still = or_(_HOSTS.c.heard_ms.is_(None), _HOSTS.c.heard_ms < long_ago_ms)
        lost = {"state": HostState.UNREACHABLE, "reason": reason}
        with self._store.unit_of_work(CONTROLLER) as tx:
            _move(tx, row.id, HostState.READY, lost, still)

    def _call_back(self, host_id: str) -> None:
        with self._store.unit_of_work(CONTROLLER) as tx:
            # Locked: what its doctor says meanwhile must not be lost between the look and the move.
            said = select(_HOSTS.c.doctor).where(_HOSTS.c.id == host_id).with_for_update()
            _move(tx, host_id, HostState.UNREACHABLE, doctor.on_arrival(tx.scalar(said), first=False))


def _move(tx: UnitOfWork, host_id: str, before: HostState, after: Mapping[str, Any], *more: Any) -> None:
    moved = tx.execute(
        update(_HOSTS)
        .where(_HOSTS.c.id == host_id, _HOSTS.c.state == before, *more)
        .values(**after, generation=_HOSTS.c.generation + 1)
    )
    if moved.rowcount == 0:
        return
    lost = after["state"] is HostState.UNREACHABLE
    tx.record(
        "host.unreachable" if lost else "host.reachable",
        ("host", host_id),
        tenant=None,
        stage="outcome",
        outcome="failed" if lost else "ok",
        details={"reason": after["reason"]} if after["reason"] else {},
    )
    tx.wake("scheduler")
