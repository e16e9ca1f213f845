"""The bell: commits ring topics, whoever waits for one of them wakes and looks again.

A ring says only that it is worth looking; the truth is in the database. Listen first and look afterwards, or
the change between the two is missed. Waiting tasks hold no thread. Never touches the store: the store calls
it after each commit of this process, and `store.listener` for what other controllers committed. Loops and the
API listen.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator

#: The topic that wakes every wait when the process ends.
CLOSING = "closing"


class Ear:
    """A thread that listens."""

    def __init__(self) -> None:
        self._rung = threading.Event()

    def ring(self) -> None:
        """Wake it."""
        self._rung.set()

    def wait(self, timeout_s: float) -> bool:
        """Wait for a ring, one since the last wait included; False when none came in time."""
        rung = self._rung.wait(timeout_s)
        self._rung.clear()
        return rung


class AsyncEar:
    """A task that listens, in the event loop that made it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._rung = asyncio.Event()

    def ring(self) -> None:
        """Wake it, from any thread."""
        # A loop that has ended has nobody left to wake.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._rung.set)

    async def wait(self, timeout_s: float) -> bool:
        """Wait for a ring, one since the last wait included; False when none came in time."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._rung.wait()
        except TimeoutError:
            return False
        self._rung.clear()
        return True


class Bell:
    """The topics of this process: `stream:X`, `operation:X`, `host:X`, `scheduler`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ears: dict[str, set[Ear | AsyncEar]] = {}

    def __call__(self, topics: frozenset[str]) -> None:
        """Ring; each ear once, however many of its topics rang."""
        with self._lock:
            woken = {ear for topic in topics for ear in self._ears.get(topic, ())}
        for ear in woken:
            ear.ring()

    def ring_all(self) -> None:
        """Ring everybody: something may have been missed."""
        with self._lock:
            woken = set().union(*self._ears.values())
        for ear in woken:
            ear.ring()

    @contextlib.contextmanager
    def listen(self, *topics: str) -> Iterator[Ear]:
        """Listen with a thread."""
        ear = Ear()
        with self._joined(ear, topics):
            yield ear

    @contextlib.contextmanager
    def listen_async(self, *topics: str) -> Iterator[AsyncEar]:
        """Listen with a task."""
        ear = AsyncEar()
        with self._joined(ear, topics):
            yield ear

    @property
    def listeners(self) -> int:
        """How many ears are joined, counted once for each topic."""
        with self._lock:
            return sum(len(ears) for ears in self._ears.values())

    @contextlib.contextmanager
    def _joined(self, ear: Ear | AsyncEar, topics: tuple[str, ...]) -> Iterator[None]:
        with self._lock:
            for topic in topics:
                self._ears.setdefault(topic, set()).add(ear)
        try:
            yield
        finally:
            with self._lock:
                for topic in topics:
                    self._ears[topic].discard(ear)
                    if not self._ears[topic]:
                        del self._ears[topic]
