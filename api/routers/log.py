"""Events to follow and the audit log to export, of a tenant and of the platform."""

from __future__ import annotations

import datetime as dt
import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from api import event_stream
from api.calls import IN_TENANT, Asking, Looking
from orchestrator.audit.export import AuditFilter, export_lines
from orchestrator.audit.record import AuditRecord
from orchestrator.controller import audit_log
from orchestrator.controller.caller import Caller
from orchestrator.model.errors import InvalidInputError
from orchestrator.store.unit_of_work import UnitOfWork

router = APIRouter(prefix="/v1", tags=["log"])
of_tenant = APIRouter(prefix="/v1/tenants/{tenant}", tags=["log"], dependencies=[IN_TENANT])

_RECORDS_AT_ONCE = 500
_LINES_AT_ONCE = 100
_EVENT = {
    "type": "object",
    "required": ["event", "data"],
    "properties": {
        "id": {"type": "string", "pattern": event_stream.POSITION},
        "event": {"type": "string"},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
}
#: `schema` is the whole answer, which is never looked at whole; `itemSchema` is one of its parts.
_EVENTS: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {"itemSchema": _EVENT}}}}
_LINES: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/jsonl": {"itemSchema": {"type": "object"}}}}
}
_LastEventId = Annotated[
    str | None,
    Header(
        max_length=80,
        description="Go on after this event.",
        json_schema_extra={"pattern": event_stream.POSITION},
    ),
]
_FromStart = Annotated[bool, Query(description="Begin with the first event there ever was.")]
_Time = Annotated[
    str | None,
    Query(max_length=40, description="RFC 3339 with a time zone.", json_schema_extra={"format": "date-time"}),
]
_Word = Query(max_length=63, pattern=r"^[a-z0-9][a-z0-9_.-]*$")
_Kind = Annotated[
    str | None,
    Query(
        max_length=63,
        pattern=r"^[a-z][a-z_]*([.][a-z][a-z_]*)?$",
        description="Such as instance.create; a noun alone is all of its kinds.",
    ),
]


@dataclass(frozen=True)
class _Export:
    stream: str
    end: int


def _filter(
    since: Annotated[_Time, Query(alias="from")] = None,
    until: _Time = None,
    actor: Annotated[str | None, _Word] = None,
    kind: Annotated[str | None, _Word] = None,
    subject: Annotated[str | None, _Word] = None,
    outcome: Annotated[str | None, Query(pattern="^(ok|failed|denied)$")] = None,
) -> AuditFilter:
    return AuditFilter(_ms(since, "from"), _ms(until, "until"), actor, kind, subject, outcome)


_Wanted = Annotated[AuditFilter, Depends(_filter)]


@router.get("/events", operation_id="platform_events", response_class=StreamingResponse, responses=_EVENTS)
async def platform_events(
    ask: Looking, last_event_id: _LastEventId = None, from_start: _FromStart = False, kind: _Kind = None
) -> StreamingResponse:
    """Follow the platform's events."""
    return await _followed(ask, last_event_id, from_start, kind)


@of_tenant.get("/events", operation_id="tenant_events", response_class=StreamingResponse, responses=_EVENTS)
async def tenant_events(
    ask: Looking, last_event_id: _LastEventId = None, from_start: _FromStart = False, kind: _Kind = None
) -> StreamingResponse:
    """Follow a tenant's events."""
    return await _followed(ask, last_event_id, from_start, kind)


@router.get(
    "/audit", operation_id="export_platform_audit", response_class=StreamingResponse, responses=_LINES
)
def export_platform_audit(ask: Looking, wanted: _Wanted) -> StreamingResponse:
    """Export the platform's audit log as JSON lines that can be verified offline."""
    return _exported(ask, wanted)


@of_tenant.get(
    "/audit", operation_id="export_tenant_audit", response_class=StreamingResponse, responses=_LINES
)
def export_tenant_audit(ask: Looking, wanted: _Wanted) -> StreamingResponse:
    """Export a tenant's audit log as JSON lines that can be verified offline."""
    return _exported(ask, wanted)


async def _followed(ask: Asking, last: str | None, from_start: bool, kind: str | None) -> StreamingResponse:
    stream, seq = await run_in_threadpool(event_stream.position, ask, last, from_start=from_start)
    return StreamingResponse(event_stream.follow(ask, stream, seq, kind), media_type="text/event-stream")


def _exported(ask: Asking, wanted: AuditFilter) -> StreamingResponse:
    """That it was asked for is written down first; then it streams, a batch and a connection at a time."""

    def work(tx: UnitOfWork, caller: Caller) -> _Export:
        tenant = None if caller.tenant is None else caller.tenant.id
        named = {name: value for name, value in asdict(wanted).items() if value is not None}
        return _Export(audit_log.stream_of(tenant), audit_log.begin_export(tx, tenant, named))

    export = ask.change(work)
    lines = export_lines(export.stream, export.end, _records(ask, export), wanted)
    return StreamingResponse(_blocks(lines), media_type="application/jsonl")


def _records(ask: Asking, export: _Export) -> Iterator[AuditRecord]:
    first = 0
    while first < export.end:
        with ask.control.store.reading() as tx:
            batch = audit_log.records(tx, export.stream, first=first, end=export.end, most=_RECORDS_AT_ONCE)
        if not batch:
            return
        yield from batch
        first = batch[-1].seq + 1


def _blocks(lines: Iterator[str]) -> Iterator[str]:
    while block := list(itertools.islice(lines, _LINES_AT_ONCE)):
        yield "\n".join(block) + "\n"


def _ms(text: str | None, field: str) -> int | None:
    if text is None:
        return None
    try:
        moment = dt.datetime.fromisoformat(text)
        if moment.tzinfo is None:
            raise ValueError("no time zone")
        since = moment - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
    except (ValueError, OverflowError) as exc:
        raise InvalidInputError(
            "audit.time", "a time with its zone is needed, such as 2027-01-31T12:00:00Z", field=field
        ) from exc
    return since // dt.timedelta(milliseconds=1)
