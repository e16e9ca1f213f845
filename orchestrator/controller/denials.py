"""Who was turned away stands in the audit log; a flood of them is counted, not written one by one."""

from __future__ import annotations

import threading
from collections import Counter

from orchestrator.model.actor import CONTROLLER, Actor
from orchestrator.model.errors import BulkheadError
from orchestrator.store.store import Store

#: So many from one source in a minute stand in the log one by one; the rest is counted.
SINGLE_PER_MINUTE = 30
_MINUTE_MS = 60_000


class Denials:
    """Writes denials of this process."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._minute = 0
        self._seen: Counter[str] = Counter()

    def record(self, actor: Actor, action: str, tenant: str | None, error: BulkheadError) -> None:
        """Write one down in a transaction of its own, or count it."""
        source = actor.id or actor.address
        now_ms = self._store.clock()
        with self._lock:
            if now_ms // _MINUTE_MS != self._minute:
                flood, self._seen = self._flood(), Counter()
                self._minute = now_ms // _MINUTE_MS
            else:
                flood = {}
            self._seen[source] += 1
            single = self._seen[source] <= SINGLE_PER_MINUTE
        if flood:
            self._count(flood)
        if single:
            self._write(actor, action, tenant, error)

    def flush(self) -> None:
        """Write down what was only counted so far; at the end of the process."""
        with self._lock:
            flood, self._seen = self._flood(), Counter()
        if flood:
            self._count(flood)

    def _flood(self) -> dict[str, int]:
        return {
            source: count - SINGLE_PER_MINUTE
            for source, count in self._seen.items()
            if count > SINGLE_PER_MINUTE
        }

    def _write(self, actor: Actor, action: str, tenant: str | None, error: BulkheadError) -> None:
        with self._store.unit_of_work(actor) as tx:
            tx.record(
                "access.denied",
                ("action", action),
                tenant=actor.tenant,
                stage="denied",
                outcome="denied",
                details={"code": error.code, "tenant_asked": (tenant or "")[:64]},
            )

    def _count(self, flood: dict[str, int]) -> None:
        with self._store.unit_of_work(CONTROLLER) as tx:
            for source, count in sorted(flood.items())[:100]:
                tx.record(
                    "access.denied_more",
                    ("source", source[:64]),
                    tenant=None,
                    stage="denied",
                    outcome="denied",
                    details={"count": count},
                )
