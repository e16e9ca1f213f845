"""One connection to libvirtd that is there when it is needed: event loop, keepalive, reconnect, wake calls.

Decides whether a failure was the connection's: then the call is made once more on a new one. Holds no state
of any domain: after a reconnect whoever was woken looks again. Called by the drivers beside it.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import libvirt

from orchestrator.agent.libvirt.errors import clean
from orchestrator.model.errors import HostError

T = TypeVar("T")

#: A peer that leaves so many probes at this interval unanswered is dead.
_KEEPALIVE_INTERVAL_S, _KEEPALIVE_COUNT = 5, 6
#: Between two tries to open a connection.
_RETRY_S = 0.5

_loop_lock = threading.Lock()
_loop_started = False


def _start_event_loop() -> None:
    """Run libvirt's own event loop in a thread: once per process, before the first connection."""
    global _loop_started
    with _loop_lock:
        if _loop_started:
            return
        # Without a handler of ours libvirt prints every error to stderr.
        libvirt.registerErrorHandler(lambda _context, _error: None, None)
        libvirt.virEventRegisterDefaultImpl()
        threading.Thread(target=_run_event_loop, name="libvirt-events", daemon=True).start()
        _loop_started = True


def _run_event_loop() -> None:
    while True:
        with contextlib.suppress(libvirt.libvirtError):
            libvirt.virEventRunDefaultImpl()


class Connection:
    """A connection that is opened on the first call and again when it died.

    Args:
        uri: libvirt's URI.
        open_deadline_s: how long libvirtd may take to come (back).
    """

    def __init__(self, uri: str = "qemu:///system", *, open_deadline_s: float = 20.0) -> None:
        self._uri = uri
        self._open_deadline_s = open_deadline_s
        self._connection: Any = None
        self._events: int | None = None
        self._lock = threading.RLock()
        self._wakers: list[Callable[[], None]] = []

    def on_change(self, wake: Callable[[], None]) -> None:
        """Call `wake` (from another thread) when a domain started or stopped, or the connection closed.

        It says that something happened, not what: events are lost while there is no connection.
        """
        with self._lock:
            self._wakers.append(wake)

    def call(self, work: Callable[[Any], T]) -> T:
        """Do `work` with the connection; once more, from its beginning, if the connection died under it.

        Raises:
            HostError: `hypervisor.unreachable`.
            libvirt.libvirtError: whatever `work` met that was not the connection's death.
        """
        connection = self._opened()
        try:
            return work(connection)
        except libvirt.libvirtError:
            if self._lives(connection):
                raise
        self._forget(connection)
        return work(self._opened())

    def close(self) -> None:
        """Let go of the connection; the next call opens a new one."""
        with self._lock:
            connection, self._connection = self._connection, None
            events, self._events = self._events, None
        if connection is not None:
            # Each callback holds the connection: with one left it would never be closed.
            if events is not None:
                with contextlib.suppress(libvirt.libvirtError):
                    connection.domainEventDeregisterAny(events)
            with contextlib.suppress(libvirt.libvirtError):
                connection.unregisterCloseCallback()
            with contextlib.suppress(libvirt.libvirtError):
                connection.close()

    def _opened(self) -> Any:
        with self._lock:
            if self._connection is None or not self._lives(self._connection):
                self.close()
                self._connection = self._open()
            return self._connection

    def _open(self) -> Any:
        _start_event_loop()
        deadline = time.monotonic() + self._open_deadline_s
        while True:
            try:
                return self._prepared(libvirt.open(self._uri))
            except libvirt.libvirtError as exc:
                if time.monotonic() + _RETRY_S > deadline:
                    raise HostError(
                        "hypervisor.unreachable",
                        f"no connection to {self._uri}: {clean(exc.get_error_message() or str(exc))}",
                        hint="systemctl status libvirtd virtqemud",
                    ) from exc
            time.sleep(_RETRY_S)

    def _prepared(self, connection: Any) -> Any:
        # The test driver has neither keepalive nor a close callback.
        with contextlib.suppress(libvirt.libvirtError):
            connection.setKeepAlive(_KEEPALIVE_INTERVAL_S, _KEEPALIVE_COUNT)
        with contextlib.suppress(libvirt.libvirtError):
            connection.registerCloseCallback(self._closed, None)
        self._events = connection.domainEventRegisterAny(
            None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._lifecycle, None
        )
        return connection

    def _lifecycle(self, _connection: Any, _domain: Any, _event: int, _detail: int, _opaque: Any) -> None:
        self._wake()

    def _closed(self, _connection: Any, _reason: int, _opaque: Any) -> None:
        self._wake()

    def _wake(self) -> None:
        for wake in tuple(self._wakers):
            wake()

    def _lives(self, connection: Any) -> bool:
        try:
            return bool(connection.isAlive())
        except libvirt.libvirtError:
            return False

    def _forget(self, connection: Any) -> None:
        with self._lock:
            if self._connection is connection:
                self.close()
