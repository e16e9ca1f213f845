"""Reads an event stream of the API and goes on where it broke off.

Decides when to dial again and which events were seen already: an event's id is `STREAM:SEQ`, and numbers
only grow. Never ends by itself but for a refusal, or a server that stays away.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx2

from orchestrator.client import clock
from orchestrator.client.errors import UnreachableError
from orchestrator.client.http import Call, Http
from orchestrator.model.errors import BulkheadError, InvalidInputError

#: The server sends a comment every few seconds; silence for this long is a dead connection.
_SILENCE_S = 60.0
_FIRST_PAUSE_S = 0.5
_MAX_PAUSE_S = 10.0
#: So many dials in a row without one event, and we say so.
_MAX_FAILURES = 8


@dataclass(frozen=True)
class Event:
    """One event: `id` is the position to go on after, `kind` such as `instance.create`, `data` the API's."""

    id: str
    kind: str
    data: dict[str, Any]


def check_position(after: str) -> str:
    """Return a position in a stream, `STREAM:SEQ`.

    Raises:
        InvalidInputError: `event.position`.
    """
    _number(after)
    return after


def follow(
    http: Http,
    path: str,
    query: Mapping[str, str],
    *,
    after: str | None = None,
    from_start: bool = False,
    until_end: bool = False,
) -> Iterator[Event]:
    """Return event after event for ever.

    Args:
        after: id of the last event that was seen; None begins with what happens from now on.
        query: which events are wanted; `kind` alone so far.
        from_start: without `after`, begin with the first event there ever was.
        until_end: end with the stream instead of dialling again.

    Raises:
        BulkheadError: the server refuses; `api.unreachable` or `api.answer_lost` when it stays away.
    """
    last = after
    failures, pause_s = 0, _FIRST_PAUSE_S
    while True:
        try:
            for event in _once(http, path, last, query, from_start):
                if last is not None and not _is_newer(event.id, last):
                    continue
                last, failures, pause_s = event.id or last, 0, _FIRST_PAUSE_S
                yield event
            if until_end:
                return
            failure: BulkheadError = UnreachableError("api.answer_lost", "the server ended the event stream")
        except BulkheadError as exc:
            if not exc.retryable:
                raise
            failure = exc
        failures += 1
        if failures >= _MAX_FAILURES:
            raise failure
        clock.sleep(pause_s)
        pause_s = min(pause_s * 2, _MAX_PAUSE_S)


def _once(
    http: Http, path: str, last: str | None, asked: Mapping[str, str], from_start: bool
) -> Iterator[Event]:
    headers = {"Accept": "text/event-stream", **({"Last-Event-ID": last} if last else {})}
    query = {**asked, "from_start": "true"} if from_start and not last else asked
    try:
        with http.stream(Call("GET", path, query, read_s=_SILENCE_S), headers) as response:
            for each in httpx2.EventSource(response):
                # The server's last word is why it ends; dialling again brings that as a refusal.
                if each.event == "error" and not each.id:
                    return
                # A comment alone is no event.
                if each.data:
                    yield Event(each.id, each.event, _data(each.data))
    except (httpx2.ConnectError, httpx2.ConnectTimeout) as exc:
        raise UnreachableError("api.unreachable", "the server does not answer") from exc
    except httpx2.HTTPError as exc:
        raise UnreachableError("api.answer_lost", "the event stream broke off") from exc


def _data(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {"text": text}


def _is_newer(identity: str, last: str) -> bool:
    if ":" not in identity:
        return True
    return identity.rpartition(":")[0] != last.rpartition(":")[0] or _number(identity) > _number(last)


def _number(position: str) -> int:
    stream, _, number = position.rpartition(":")
    if not stream or not stream.isprintable() or not (number.isascii() and number.isdigit()):
        raise InvalidInputError("event.position", "a position is STREAM:NUMBER, as events show it in `id`")
    return int(number)
