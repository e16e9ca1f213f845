"""Rate limits: token buckets in this process, written behind once a second and read back.

So they survive a restart and several controllers share them within a second, while no call waits for the
database. A bucket that is full again is forgotten.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from sqlalchemy import delete, func, select
from sqlalchemy.dialects import postgresql, sqlite

from orchestrator.model.actor import CONTROLLER
from orchestrator.model.errors import RateLimitedError
from orchestrator.store.store import Store
from orchestrator.store.tables.leases import RateBucketRow
from orchestrator.store.unit_of_work import Reader, table_of

_TABLE = table_of(RateBucketRow)
_MILLI = 1000


@dataclass(frozen=True)
class Rate:
    """So many calls a second in the long run, and so many at once."""

    per_s: int
    burst: int


@dataclass
class _Bucket:
    rate: Rate
    #: Thousandths of a call that are left.
    level: int
    at_ms: int
    #: Thousandths taken since the last write.
    taken: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def refill(self, now_ms: int) -> None:
        gained = max(0, now_ms - self.at_ms) * self.rate.per_s
        self.level = min(self.rate.burst * _MILLI, self.level + gained)
        self.at_ms = max(self.at_ms, now_ms)


class RateLimits:
    """The buckets of this process.

    Args:
        clock: milliseconds since the epoch.
    """

    def __init__(self, store: Store, *, clock: Callable[[], int] | None = None) -> None:
        self._store = store
        self._clock = clock or (lambda: time.time_ns() // 1_000_000)
        self._buckets: dict[str, _Bucket] = {}
        self._lock = threading.Lock()

    def take(self, name: str, rate: Rate, tx: Reader | None = None) -> None:
        """Count one call against a bucket.

        Args:
            tx: the call's own transaction, if it has one: a second connection for each could use them all up,
                with everybody waiting for one more.

        Raises:
            RateLimitedError: `rate.limited`; its `retry_after_s` says when one call is there again.
        """
        with self._lock:
            bucket = self._buckets.get(name)
            if bucket is None or bucket.rate != rate:
                bucket = self._buckets[name] = self._remembered(name, rate, tx)
            now_ms = self._clock()
            bucket.refill(now_ms)
            if bucket.level >= _MILLI:
                bucket.level -= _MILLI
                bucket.taken += _MILLI
                return
            wait_s = math.ceil((_MILLI - bucket.level) / (rate.per_s * _MILLI))
        raise RateLimitedError(
            "rate.limited",
            f"more than {rate.per_s} calls a second",
            hint=f"wait {wait_s} s",
            retry_after_s=wait_s,
        )

    def _remembered(self, name: str, rate: Rate, tx: Reader | None) -> _Bucket:
        with contextlib.nullcontext(tx) if tx is not None else self._store.reading() as reader:
            row = reader.first(select(_TABLE).where(_TABLE.c.id == name))
        if row is None:
            return _Bucket(rate, rate.burst * _MILLI, self._clock())
        return _Bucket(rate, min(row.level_milli, rate.burst * _MILLI), row.at_ms)

    def write_behind(self) -> None:
        """Add what was taken here to what the database knows, and take over what others took."""
        with self._lock:
            dirty = {name: bucket for name, bucket in self._buckets.items() if bucket.taken}
            taken = {name: bucket.taken for name, bucket in dirty.items()}
            for bucket in dirty.values():
                bucket.taken = 0
        now_ms = self._clock()
        if taken:
            self._write(dirty, taken, now_ms)
        self._forget(now_ms)

    def _write(self, dirty: dict[str, _Bucket], taken: dict[str, int], now_ms: int) -> None:
        insert = (sqlite if self._store.database.kind == "sqlite" else postgresql).insert
        # SQLite's two-argument min and max are PostgreSQL's least and greatest.
        least = func.min if self._store.database.kind == "sqlite" else func.least
        greatest = func.max if self._store.database.kind == "sqlite" else func.greatest
        with self._store.unit_of_work(CONTROLLER) as tx:
            for name in sorted(taken):
                full = dirty[name].rate.burst * _MILLI
                gained = greatest(now_ms - _TABLE.c.at_ms, 0) * dirty[name].rate.per_s
                known = insert(_TABLE).values(id=name, level_milli=full - taken[name], at_ms=now_ms)
                level = tx.execute(
                    known.on_conflict_do_update(
                        index_elements=[_TABLE.c.id],
                        set_={
                            "level_milli": greatest(
                                least(_TABLE.c.level_milli + gained, full) - taken[name], 0
                            ),
                            "at_ms": greatest(_TABLE.c.at_ms, now_ms),
                        },
                    ).returning(_TABLE.c.level_milli)
                ).scalar_one()
                with self._lock:
                    # What was taken here meanwhile is not in the database's number yet.
                    dirty[name].level = max(0, level - dirty[name].taken)
                    dirty[name].at_ms = now_ms

    def _forget(self, now_ms: int) -> None:
        with self._lock:
            for name, bucket in list(self._buckets.items()):
                bucket.refill(now_ms)
                if not bucket.taken and bucket.level >= bucket.rate.burst * _MILLI:
                    del self._buckets[name]


def sweep(store: Store, now_ms: int, age_ms: int = 3_600_000) -> None:
    """Delete buckets that nobody used for an hour: they are full."""
    with store.unit_of_work(CONTROLLER) as tx:
        tx.execute(delete(_TABLE).where(_TABLE.c.at_ms < now_ms - age_ms))
