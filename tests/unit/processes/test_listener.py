"""The controller's listening sockets."""

from __future__ import annotations

import asyncio
import socket

import pytest

from orchestrator.processes.control import _bound


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_what_is_accepted_sends_small_answers_at_once(address: str) -> None:
    assert asyncio.run(_no_delay(_bound(address, 0))) == 1


def test_a_socket_that_does_not_say_that_it_is_tcp_would_wait() -> None:
    bound = socket.socket(socket.AF_INET)
    bound.bind(("127.0.0.1", 0))
    bound.listen()
    assert asyncio.run(_no_delay(bound)) == 0


async def _no_delay(bound: socket.socket) -> int:
    """Accept one connection as the servers do; return its TCP_NODELAY."""
    found: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def accepted(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("socket")
        found.set_result(int(peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)))
        writer.close()

    async with await asyncio.start_server(accepted, sock=bound):
        _reader, writer = await asyncio.open_connection(*bound.getsockname()[:2])
        told = await asyncio.wait_for(found, 10)
        writer.close()
    return told
