"""Tickets of instances' consoles."""

from __future__ import annotations

from api.schemas.common import Out, at
from orchestrator.controller.consoles import Ticket


class ConsoleTicketOut(Out):
    """A ticket. `ticket` is shown this once; null when the same call was answered before."""

    id: str
    instance_id: str
    ticket: str | None
    expires_at: str

    @classmethod
    def made(cls, ticket: Ticket, shown: str | None) -> ConsoleTicketOut:
        """From its value and its text."""
        return cls(
            id=ticket.id, instance_id=ticket.instance_id, ticket=shown, expires_at=at(ticket.expires_ms)
        )
