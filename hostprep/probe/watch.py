"""Tells when PCI functions come and go, so that a reader knows when to look again.

What happened is all it says; what is there now is read by `read_host`, the one way of reading. It listens to
the kernel itself: udev's own copies come only after its rules ran, and not at all where udev is not running.
For whoever keeps an inventory; the agent's reconciler needs none of it, since it looks anew each time.
"""

from __future__ import annotations

import math
import re
import time
from dataclasses import dataclass
from typing import Any

from orchestrator.model.errors import HostError
from orchestrator.model.pci import PCI_ADDRESS_PATTERN

_ADDRESS = re.compile(PCI_ADDRESS_PATTERN)
#: A function that is bound or unbound stays; only these two change what a host is made of.
_ACTIONS = frozenset({"add", "remove"})


@dataclass(frozen=True)
class PciEvent:
    """One function came (`add`) or went (`remove`)."""

    action: str
    address: str


class PciWatch:
    """Listens from the moment it is made, so that nothing between it and the first look is missed.

    Args:
        monitor: a started pyudev monitor of the subsystem `pci`; by default the kernel's own.

    Raises:
        HostError: `host.no_udev`: there is no libudev, or the kernel refuses the socket.
    """

    def __init__(self, monitor: Any = None) -> None:
        self._monitor = _kernel_monitor() if monitor is None else monitor

    def wait(self, timeout_s: float) -> PciEvent | None:
        """Return the next coming or going; None when there was none for so many seconds."""
        end = time.monotonic() + timeout_s
        while True:
            # pyudev rounds down to milliseconds; a rest below one would spin.
            rest_s = max(0.0, math.ceil((end - time.monotonic()) * 1000) / 1000)
            device = self._monitor.poll(timeout=rest_s)
            if device is None:
                return None
            if device.action in _ACTIONS and _ADDRESS.fullmatch(device.sys_name):
                return PciEvent(device.action, device.sys_name)


def _kernel_monitor() -> Any:
    try:
        import pyudev

        monitor = pyudev.Monitor.from_netlink(pyudev.Context(), source="kernel")
        monitor.filter_by("pci")
        monitor.start()
    except (ImportError, OSError) as exc:
        raise HostError("host.no_udev", f"cannot listen for PCI events: {exc}") from exc
    return monitor
