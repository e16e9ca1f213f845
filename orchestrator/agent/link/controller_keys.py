"""Volume keys from the controller: asked for when a volume is made or a VM starts, and kept nowhere.

The reconciler runs in a thread and waits; the link lives on the loop. Never logs, never caches: each hand-out
stands in the controller's audit log. The agent's process and the simulated fleet join it to a host.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from typing import Protocol

from orchestrator.model.errors import HostError


class KeyLink(Protocol):
    """What gives keys."""

    async def passphrase(self, volume: str, generation: int) -> bytes:
        """Fetch one passphrase."""


class ControllerKeys:
    """The Keys port over the link.

    Args:
        link: the host's link; used on `loop` alone.
        loop: the loop that the link lives on; never the caller's thread.
        wait_s: how long a key may take.
    """

    def __init__(self, link: KeyLink, loop: asyncio.AbstractEventLoop, *, wait_s: float = 30.0) -> None:
        self._link = link
        self._loop = loop
        self._wait_s = wait_s

    def passphrase(self, volume: str, generation: int) -> bytes:
        """Return a volume's passphrase.

        Raises:
            NotFoundError: `key.unknown`: the controller gives it not, or not to this host.
            HostError: `link.*`.
        """
        waiting = asyncio.run_coroutine_threadsafe(self._link.passphrase(volume, generation), self._loop)
        try:
            return waiting.result(self._wait_s)
        except (concurrent.futures.TimeoutError, concurrent.futures.CancelledError) as exc:
            waiting.cancel()
            raise HostError("link.timeout", f"no key for {volume} within {self._wait_s:g} s") from exc
