"""A simulated host's consoles: what is typed comes back line by line, as from a guest that echoes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from orchestrator.agent.sim.world import SimWorld
from orchestrator.model.errors import NotFoundError
from orchestrator.model.protocol import MAX_LOG_BYTES

#: A line longer than this comes back without its end having been seen.
_LONGEST_LINE = 4096
#: How soon a console ends after what it belongs to.
_LOOK_S = 0.2


class SimConsoles:
    """Consoles of one simulated host, by instance id."""

    def __init__(self, world: SimWorld) -> None:
        self._world = world

    async def open(self, instance: str, kind: str, last_bytes: int = MAX_LOG_BYTES) -> SimConsole:
        """Open one of a running instance, or what was kept of it.

        Raises:
            NotFoundError: `console.unknown`.
        """
        domain = self._world.domains.get(instance)
        if domain is None or (kind == "console" and domain.pid is None):
            raise NotFoundError("console.unknown", f"no console of {instance} is here")
        pid = domain.pid

        def runs() -> bool:
            now = self._world.domains.get(instance)
            return now is not None and now.pid == pid

        kept = "".join(f"{instance} booted, start {count + 1}\r\n" for count in range(domain.started))
        return SimConsole(kept.encode()[-last_bytes:], runs=runs if kind == "console" else None)


class SimConsole:
    """One open console: its greeting, then echoes, as long as it runs; a kept log ends after the greeting.

    Args:
        runs: tells whether what has the console still runs; None is a kept log.
    """

    def __init__(self, greeting: bytes, *, runs: Callable[[], bool] | None) -> None:
        self._out: asyncio.Queue[bytes] = asyncio.Queue(maxsize=64)
        self._line = b""
        self._runs = runs
        if greeting:
            self._out.put_nowait(greeting)

    async def read(self) -> bytes:
        """Wait for output."""
        while self._out.empty():
            if self._runs is None or not self._runs():
                return b""
            with contextlib.suppress(TimeoutError):
                return await asyncio.wait_for(self._out.get(), _LOOK_S)
        return self._out.get_nowait()

    async def write(self, data: bytes) -> None:
        """Type; each finished line is echoed."""
        self._line += data.replace(b"\n", b"\r")
        *lines, self._line = self._line.split(b"\r")
        if len(self._line) > _LONGEST_LINE:
            lines, self._line = [*lines, self._line], b""
        for line in lines:
            await self._out.put(b"echo: " + line + b"\r\n")

    async def close(self) -> None:
        """Nothing is held."""
