"""Waits for an operation by long polls; a wait that ends early ends nothing but itself.

Decides when to stop waiting and what an operation that is over means. The client and the CLI call it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from orchestrator.client import clock
from orchestrator.client.collection import JsonObject
from orchestrator.client.errors import OperationFailedError, ServerError, WaitTimeoutError, error_from
from orchestrator.client.http import Answer, Call, Http, segment
from orchestrator.model.states import OperationState

#: One long poll: what is shown of the way there is never older. Well under the idle minute after which
#: proxies cut a silent connection.
POLL_S = 5
_SPARE_S = 15.0
#: Between two polls that both came back at once: a server that does not hold them is not hammered.
_PAUSE_S = 0.5
_OVER = frozenset(state.value for state in OperationState if state.over)


def is_over(operation: Mapping[str, Any]) -> bool:
    """Nothing more comes of it."""
    return operation.get("state") in _OVER


def path_of(answer: Answer, fallback: str) -> str:
    """Return where the operation of a 202 stands.

    Args:
        fallback: path of the operations' collection, for an answer without a `Location`.

    Raises:
        ServerError: `api.unexpected`: the answer names no operation of this API.
    """
    path = urlsplit(answer.headers.get("location", "")).path
    if path.startswith("/v1/"):
        return path
    identity = answer.body.get("id") if isinstance(answer.body, dict) else None
    if not isinstance(identity, str) or not identity:
        raise ServerError("api.unexpected", "the server took the work and named no operation")
    return f"{fallback}/{segment(identity)}"


def resume(operation: Mapping[str, Any]) -> str:
    """Return the command that goes on waiting for an operation."""
    tenant = operation.get("tenant_id")
    return f"bulkhead operation wait {operation.get('id')} {f'--tenant {tenant}' if tenant else '--platform'}"


def wait(
    http: Http,
    path: str,
    timeout_s: float,
    *,
    told: Callable[[JsonObject], None] = lambda _operation: None,
) -> JsonObject:
    """Wait until an operation is over and return it, if it succeeded.

    Args:
        told: gets the operation after each look.

    Raises:
        WaitTimeoutError: `operation.still_running`.
        OperationFailedError: with the operation's own code, or `operation.cancelled`.
    """
    end = clock.now() + timeout_s
    while True:
        begun = clock.now()
        left_s = max(0, int(end - begun))
        query = {"wait": f"{min(POLL_S, left_s)}s"} if left_s else {}
        answer = http.call(Call("GET", path, query, repeatable=True, read_s=POLL_S + _SPARE_S))
        operation = answer.body
        if not isinstance(operation, dict):
            raise ServerError("api.unexpected", f"{path} is no operation")
        told(operation)
        if is_over(operation):
            return _success(operation)
        if clock.now() >= end or not left_s:
            raise WaitTimeoutError(
                "operation.still_running",
                f"{_named(operation)} is not over after {timeout_s:g} s; it goes on",
                hint=resume(operation),
            )
        if clock.now() - begun < _PAUSE_S:
            clock.sleep(_PAUSE_S)


def _success(operation: JsonObject) -> JsonObject:
    state = operation["state"]
    if state == OperationState.SUCCEEDED.value:
        return operation
    if state == OperationState.CANCELLED.value and not operation.get("error"):
        raise OperationFailedError("operation.cancelled", f"{_named(operation)} was cancelled")
    raise error_from(operation.get("error"), _named(operation))


def _named(operation: Mapping[str, Any]) -> str:
    return f"{operation.get('kind', 'operation')} of {operation.get('subject_id') or operation.get('id')}"
