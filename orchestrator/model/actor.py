"""Who asked for a change, as the audit log names them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Actor:
    """One asker.

    Args:
        kind: `user`, `service`, `host`, `controller` or `anonymous`.
        id: principal, host or controller id; empty for nobody.
        tenant: the tenant the asker belongs to; None for the platform's own.
        token: key id of the token shown, never the token.
        address: network address the request came from; empty inside the controller.
        request_id: the request's id, which the agent's log carries too.
    """

    kind: str
    id: str
    tenant: str | None = None
    token: str = ""
    address: str = ""
    request_id: str = ""


CONTROLLER = Actor(kind="controller", id="controller")
