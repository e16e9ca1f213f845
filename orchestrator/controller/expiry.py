"""Hosts' certificates that end: said in time, and once; a host whose certificate ended is heard no more.

An agent renews its certificate when a third of its life is left; one that has not with a sixth left needs a
look. Called by the loops, `hosts.show` and the metrics.
"""

from __future__ import annotations

import datetime as dt
import logging
from collections import Counter
from collections.abc import Iterator
from typing import Any

from sqlalchemy import func, select, update

from orchestrator.controller import host_errors
from orchestrator.model.errors import HostError
from orchestrator.model.states import HostState
from orchestrator.store.nouns import HOSTS
from orchestrator.store.rows import PLATFORM
from orchestrator.store.tables.fleet import HostRow
from orchestrator.store.tables.keys import HostCertificateRow
from orchestrator.store.unit_of_work import Reader, UnitOfWork, table_of

_HOSTS, _CERTIFICATES = table_of(HostRow), table_of(HostCertificateRow)
_LOG = logging.getLogger("bulkhead.certificates")
GOOD, ENDING, ENDED = "good", "ending", "ended"
#: Renewal is due with a third of a certificate's life left; with half of that left it has failed for days.
_ENDING_PART = 6


def of_host(tx: Reader, host_id: str) -> int | None:
    """When the newest certificate of a host that counts ends (ms); None when it has none."""
    counts = (_CERTIFICATES.c.host_id == host_id, _CERTIFICATES.c.revoked_ms.is_(None))
    found: int | None = tx.scalar(select(func.max(_CERTIFICATES.c.not_after_ms)).where(*counts))
    return found


def standing(tx: Reader, now_ms: int) -> dict[str, int]:
    """How many hosts have a certificate that is good, ending or ended."""
    found = Counter(_state(row, now_ms) for row in _newest(tx))
    return {state: found[state] for state in (GOOD, ENDING, ENDED)}


def turn(tx: UnitOfWork) -> int:
    """Say of each certificate that ends soon, or ended, that it does; return how many were news."""
    news = 0
    for row in _newest(tx):
        state = _state(row, tx.now_ms)
        if state == GOOD or row.told == state:
            continue
        news += 1
        _tell(tx, row, state)
    return news


def _tell(tx: UnitOfWork, row: Any, state: str) -> None:
    ends = dt.datetime.fromtimestamp(row.not_after_ms / 1000, dt.UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    tx.execute(update(_CERTIFICATES).where(_CERTIFICATES.c.fingerprint == row.fingerprint).values(told=state))
    tx.record(
        f"host.certificate_{state}",
        ("host", row.host_id),
        tenant=None,
        stage="outcome",
        outcome="failed",
        details={"ends": ends},
    )
    host = HOSTS.get(tx, PLATFORM, row.host_id, lock=True)
    if host is None or state != ENDED:
        _LOG.warning("the certificate of %s ends at %s, and its agent has not renewed it", row.name, ends)
        return
    error = HostError(
        "certificate.ended",
        f"its certificate ended at {ends}: its agent is not let in, its instances run on",
        hint=f"bulkhead host join-token {host.name}; then on it: bulkhead agent enrol --again",
    )
    _LOG.error("%s: %s", row.name, error.explain())
    host_errors.tell(tx, host, error.as_dict())


def _newest(tx: Reader) -> Iterator[Any]:
    """The newest certificate that counts of each host that may be let in. Cost: one row per certificate."""
    rows = tx.all(
        select(_CERTIFICATES, _HOSTS.c.name)
        .join(_HOSTS, _HOSTS.c.id == _CERTIFICATES.c.host_id)
        .where(
            _CERTIFICATES.c.revoked_ms.is_(None),
            _HOSTS.c.state.not_in((HostState.FENCED, HostState.REMOVED)),
        )
        .order_by(_CERTIFICATES.c.host_id, _CERTIFICATES.c.not_after_ms.desc())
    )
    before = None
    for row in rows:
        if row.host_id != before:
            yield row
        before = row.host_id


def _state(row: Any, now_ms: int) -> str:
    left = row.not_after_ms - now_ms
    if left <= 0:
        return ENDED
    return ENDING if left * _ENDING_PART <= row.not_after_ms - row.issued_ms else GOOD
