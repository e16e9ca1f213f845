"""Every row of a database, to see that nothing changed."""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import and_, false, func, not_, or_, select
from sqlmodel import SQLModel

from orchestrator.store.store import Store
from orchestrator.store.tables.audit import AuditRecordRow
from orchestrator.store.unit_of_work import table_of

#: What a refused call may add to.
_AUDIT = {"audit_record", "audit_stream", "rate_bucket"}


def rows(store: Store) -> dict[str, list[tuple[Any, ...]]]:
    """All rows but those of the audit log, by table."""
    found = {}
    with store.reading() as tx:
        for name, table in SQLModel.metadata.tables.items():
            if name not in _AUDIT:
                found[name] = sorted((tuple(row) for row in tx.all(select(table))), key=repr)
    return found


def heads(store: Store) -> dict[str, int]:
    """The number of each stream's last audit record: what `records` tells after it is new."""
    table = table_of(AuditRecordRow)
    with store.reading() as tx:
        found = tx.all(select(table.c.stream, func.max(table.c.seq).label("seq")).group_by(table.c.stream))
    return {row.stream: row.seq for row in found}


def records(store: Store, after: dict[str, int] | None = None) -> list[dict[str, Any]]:
    """All audit records, or those after these heads, as what they say, with their stream and number."""
    table = table_of(AuditRecordRow)
    wanted = select(table).order_by(table.c.stream, table.c.seq)
    if after is not None:
        older = [and_(table.c.stream == stream, table.c.seq <= last) for stream, last in after.items()]
        wanted = wanted.where(not_(or_(false(), *older)))
    with store.reading() as tx:
        found = tx.all(wanted)
    return [{**json.loads(row.body), "stream": row.stream, "seq": row.seq} for row in found]
