"""The audit log as it is read: a stream's records by their numbers, for exports and for the event stream.

Writing is the unit of work's alone. Never decides who may read; the gate does.
"""

from __future__ import annotations

from sqlalchemy import select

from orchestrator.audit.record import AuditRecord
from orchestrator.store.tables.audit import AuditRecordRow, AuditStreamRow
from orchestrator.store.unit_of_work import PLATFORM_STREAM, Reader, UnitOfWork, table_of

_RECORDS, _STREAMS = table_of(AuditRecordRow), table_of(AuditStreamRow)


def stream_of(tenant_id: str | None) -> str:
    """The stream of a tenant, or (None) the platform's."""
    return tenant_id or PLATFORM_STREAM


def next_seq(tx: Reader, stream: str) -> int:
    """The number that the stream's next record gets."""
    return int(tx.scalar(select(_STREAMS.c.next_seq).where(_STREAMS.c.id == stream)) or 0)


def records(tx: Reader, stream: str, *, first: int, end: int | None, most: int) -> list[AuditRecord]:
    """Up to `most` records from number `first` on, in order.

    Args:
        end: the first number that is not wanted; None goes to the end.
    """
    wanted = [_RECORDS.c.stream == stream, _RECORDS.c.seq >= first]
    if end is not None:
        wanted.append(_RECORDS.c.seq < end)
    rows = tx.all(select(_RECORDS).where(*wanted).order_by(_RECORDS.c.seq).limit(most))
    return [AuditRecord(row.stream, row.seq, row.salt, row.body, row.commitment) for row in rows]


def begin_export(tx: UnitOfWork, tenant_id: str | None, wanted: dict[str, str | int]) -> int:
    """Write down that somebody exports; return the number before which the export ends.

    Args:
        wanted: the filter, as far as there is one.
    """
    stream = stream_of(tenant_id)
    end = next_seq(tx, stream)
    tx.record("audit.export", ("stream", stream), tenant=tenant_id, stage="read", details={"filter": wanted})
    return end
