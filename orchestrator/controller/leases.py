"""Leases: who runs a loop now. Held by the database's clock; every write of a loop names its fence."""

from __future__ import annotations

import time
from dataclasses import dataclass

from sqlalchemy import or_, update
from sqlalchemy.dialects import postgresql, sqlite

from orchestrator.model.actor import CONTROLLER
from orchestrator.store.clock import database_now_ms
from orchestrator.store.store import Store
from orchestrator.store.tables.leases import LeaseRow
from orchestrator.store.unit_of_work import table_of

_TABLE = table_of(LeaseRow)
#: Longer than any pause of a healthy process, short enough to wait for when one is gone.
LEASE_S = 15.0


@dataclass(frozen=True)
class Lease:
    """A held lease.

    Args:
        fence: the number that every write of this holder demands.
        until: the end on our own monotonic clock, in seconds, counted from before it was asked for.
        length_s: how long it was given for.
    """

    name: str
    owner: str
    fence: int
    until: float
    length_s: float

    def fresh(self) -> bool:
        """Tell whether half of it is left at least; only a hint, the database judges."""
        return time.monotonic() < self.until - self.length_s / 2


def take(store: Store, name: str, owner: str, length_s: float = LEASE_S) -> Lease | None:
    """Take or keep a lease; None while another holds it. The fence grows whenever the holder changes."""
    asked = time.monotonic()
    insert = (sqlite if store.database.kind == "sqlite" else postgresql).insert
    with store.unit_of_work(CONTROLLER) as tx:
        now = database_now_ms()
        tx.execute(insert(_TABLE).values(name=name, owner="", until_ms=0, fence=0).on_conflict_do_nothing())
        fence = tx.execute(
            update(_TABLE)
            .where(_TABLE.c.name == name, or_(_TABLE.c.owner == owner, _TABLE.c.until_ms < now))
            .values(
                # One's own lease that ran out may have been somebody's meanwhile: that is a new holding too.
                fence=_TABLE.c.fence + _case_changed(owner),
                owner=owner,
                until_ms=now + int(length_s * 1000),
            )
            .returning(_TABLE.c.fence)
        ).scalar()
    return None if fence is None else Lease(name, owner, fence, asked + length_s, length_s)


def give_up(store: Store, lease: Lease) -> None:
    """Let the next one in at once, instead of when it runs out."""
    with store.unit_of_work(CONTROLLER) as tx:
        tx.execute(
            update(_TABLE)
            .where(_TABLE.c.name == lease.name, _TABLE.c.owner == lease.owner, _TABLE.c.fence == lease.fence)
            .values(until_ms=0)
        )


def _case_changed(owner: str) -> object:
    from sqlalchemy import and_, case

    kept = and_(_TABLE.c.owner == owner, _TABLE.c.until_ms >= database_now_ms())
    return case((kept, 0), else_=1)
