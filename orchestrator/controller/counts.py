"""How many things there are in each state, over all tenants: for graphs, never for a tenant."""

from __future__ import annotations

from sqlalchemy import func, select

from orchestrator.controller import expiry
from orchestrator.store.clock import database_now_ms
from orchestrator.store.tables.fleet import GpuRow, HostRow
from orchestrator.store.tables.instances import InstanceRow, RequestRow
from orchestrator.store.unit_of_work import Reader, table_of

_KINDS = (("instance", InstanceRow), ("request", RequestRow), ("host", HostRow), ("gpu", GpuRow))


def by_state(tx: Reader) -> dict[tuple[str, str], int]:
    """Count by kind and state; one statement for each kind."""
    found: dict[tuple[str, str], int] = {}
    for kind, rows in _KINDS:
        table = table_of(rows)
        for row in tx.all(select(table.c.state, func.count().label("number")).group_by(table.c.state)):
            found[kind, row.state] = row.number
    now_ms = int(tx.scalar(select(database_now_ms())))
    for state, number in expiry.standing(tx, now_ms).items():
        found["host_certificate", state] = number
    return found
