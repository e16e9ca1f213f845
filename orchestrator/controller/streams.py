"""Streams that a host is to dial: written down for its agent's poll, whichever controller that reaches.

With several controllers on one database the order names the listener of the controller that holds the user's
end, and the agent dials there. The host's first dial takes the order away; nobody dials it twice.
"""

from __future__ import annotations

from typing import Literal

from sqlalchemy import delete, insert, select

from orchestrator.controller.switchboard import Wanted
from orchestrator.model.protocol import MAX_STREAMS, StreamOrder
from orchestrator.store.tables.consoles import StreamOrderRow
from orchestrator.store.unit_of_work import Reader, UnitOfWork, table_of

_TABLE = table_of(StreamOrderRow)
Kind = Literal["console", "console-log"]


def topic(host_id: str) -> str:
    """What is rung when a host has something to dial; the migration spells it too, for other controllers."""
    return f"streams:{host_id}"


def order(tx: UnitOfWork, wanted: Wanted, url: str, lives_s: float) -> None:
    """Write down that a host is to dial; after `lives_s` nobody waits for it any more."""
    tx.note(
        insert(_TABLE).values(
            id=wanted.id,
            tenant_id=wanted.tenant_id,
            instance_id=wanted.instance_id,
            host_id=wanted.host_id,
            kind=wanted.kind,
            last_bytes=wanted.last_bytes,
            request_id=wanted.request_id,
            url=url,
            expires_ms=tx.now_ms + int(lives_s * 1000),
        )
    )
    tx.wake(topic(wanted.host_id))


def due(tx: Reader, host_id: str, now_ms: int) -> tuple[StreamOrder, ...]:
    """What a host is to dial now, oldest first; at most `MAX_STREAMS`."""
    rows = tx.all(
        select(_TABLE)
        .where(_TABLE.c.host_id == host_id, _TABLE.c.expires_ms > now_ms)
        .order_by(_TABLE.c.expires_ms, _TABLE.c.id)
        .limit(MAX_STREAMS)
    )
    return tuple(
        StreamOrder(
            id=row.id,
            kind=row.kind,
            instance=row.instance_id,
            last_bytes=row.last_bytes,
            request_id=row.request_id,
            url=row.url or None,
        )
        for row in rows
    )


def take(tx: UnitOfWork, stream_id: str, host_id: str) -> bool:
    """Take an order away, for its host alone; False when it is not there any more."""
    return tx.note(_one(stream_id, host_id)).rowcount == 1


def forget(tx: UnitOfWork, stream_id: str, host_id: str) -> None:
    """Take away an order for which nobody waits any more, if it is still there."""
    tx.note(_one(stream_id, host_id))


def sweep(tx: UnitOfWork) -> None:
    """Take away what a controller that ended left behind."""
    tx.note(delete(_TABLE).where(_TABLE.c.expires_ms < tx.now_ms))


def _one(stream_id: str, host_id: str) -> object:
    return delete(_TABLE).where(_TABLE.c.id == stream_id, _TABLE.c.host_id == host_id)
