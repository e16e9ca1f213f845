"""The WebSocket of instances' consoles; a ticket opens it, no token does."""

from __future__ import annotations

from fastapi import APIRouter, WebSocket

from api import consoles
from api.calls import beside_ticket

router = APIRouter()


@router.websocket("/v1/console")
async def console(socket: WebSocket) -> None:
    """Carry an instance's console: bytes both ways, until one side ends it."""
    await consoles.console(socket, socket.app.state.control, beside_ticket(socket))
