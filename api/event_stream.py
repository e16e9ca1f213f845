"""Events as server-sent events: the audit log's public side, number by number, from wherever a reader was.

An event's id is `STREAM:SEQ`, so that a reader who comes back with `Last-Event-ID` misses nothing and sees
nothing twice. Each batch is asked of the gate anew: a token that was stopped stops its streams. Between two
batches a stream holds neither thread nor connection, and a slow reader is waited for, not buffered for.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator

from starlette.concurrency import run_in_threadpool

from api.calls import Asking
from orchestrator.audit.record import AuditRecord, public_event
from orchestrator.controller import audit_log
from orchestrator.controller.caller import Caller
from orchestrator.model.errors import BulkheadError, ConflictError, InvalidInputError
from orchestrator.store.unit_of_work import Reader

BATCH = 200
POSITION = r"^([a-z0-9_]{1,44}):([0-9]{1,15})$"
_POSITION = re.compile(POSITION)


def position(ask: Asking, last: str | None, *, from_start: bool) -> tuple[str, int]:
    """Find the stream that the caller may follow, and the number of the next event to send. Blocks.

    Args:
        last: id of the last event that was seen; None begins at the end, or `from_start`.

    Raises:
        InvalidInputError: `event.position`: that is no position.
        ConflictError: `event.other_stream`; `event.from_the_future`: the stream is not that long.
    """

    def work(tx: Reader, caller: Caller) -> tuple[str, int]:
        stream = audit_log.stream_of(None if caller.tenant is None else caller.tenant.id)
        end = audit_log.next_seq(tx, stream)
        if last is None:
            return stream, 0 if from_start else end
        found = _POSITION.fullmatch(last)
        if found is None:
            raise InvalidInputError(
                "event.position", "a position is STREAM:NUMBER, as events show it", field="Last-Event-ID"
            )
        if found[1] != stream:
            raise ConflictError(
                "event.other_stream", "that is a position in another stream", field="Last-Event-ID"
            )
        if int(found[2]) >= end:
            raise ConflictError(
                "event.from_the_future",
                f"the stream ends before {found[2]}",
                field="Last-Event-ID",
                hint="the database was restored: read everything anew",
            )
        return stream, int(found[2]) + 1

    return ask.look(work)


async def follow(ask: Asking, stream: str, seq: int, kind: str | None = None) -> AsyncIterator[str]:
    """Send event after event for ever; ends when the caller may not look any more.

    Args:
        kind: only `instance.create`, or with a noun alone all of its kinds; None is every event.
    """
    settings = ask.control.settings
    clock = asyncio.get_running_loop().time
    with ask.control.bell.listen_async(f"stream:{stream}") as ear:
        # The first bytes tell the reader that it is connected.
        yield ": connected\n\n"
        said = clock()
        while True:
            try:
                batch = await run_in_threadpool(_batch, ask, stream, seq)
            except BulkheadError as exc:
                yield _message("error", exc.as_dict())
                return
            for record in batch:
                shown = _shown(record)
                if kind in (None, shown["kind"], str(shown["kind"]).split(".", 1)[0]):
                    yield _event(record, shown)
                    said = clock()
            if batch:
                seq = batch[-1].seq + 1
            if len(batch) == BATCH:
                continue
            await ear.wait(settings.look_again_s)
            if clock() - said >= settings.keep_alive_s:
                yield ": still here\n\n"
                said = clock()


def _batch(ask: Asking, stream: str, seq: int) -> list[AuditRecord]:
    return ask.look(lambda tx, _caller: audit_log.records(tx, stream, first=seq, end=None, most=BATCH))


def _shown(record: AuditRecord) -> dict[str, object]:
    try:
        return dict(public_event(record.body))
    except InvalidInputError:
        # Left out it would be a gap; an auditor's export shows what it is.
        return {"kind": "audit.unreadable"}


def _event(record: AuditRecord, shown: dict[str, object]) -> str:
    data = {"stream": record.stream, "seq": record.seq, **shown}
    return f"id: {record.stream}:{record.seq}\n{_message(str(shown['kind']), data)}"


def _message(event: str, data: dict[str, object]) -> str:
    # JSON has no line ends of its own, which would end the field.
    return f"event: {event}\ndata: {json.dumps(data)}\n\n"
