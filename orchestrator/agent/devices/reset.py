"""Resets a PCI function between tenants and looks whether it still answers.

A reset that succeeds proves no clearing of memory, and says so in its evidence class; an answer of all ones
after it means that the device is lost until somebody power-cycles it. Called by `vfio`, which has checked
that nobody holds it.
"""

from __future__ import annotations

import time
from pathlib import Path

from hostprep.probe.files import read_text
from hostprep.probe.pci import answers, function_folder, read_config
from orchestrator.agent.devices.worker import BusyError, OverdueError, Worker, Write, WriteFailedError
from orchestrator.model.errors import DeviceError
from orchestrator.model.observed import ResetEvidence

#: `power_state` of a function that sleeps though it was told to be awake. `unknown` is one without power
#: management.
_ASLEEP = frozenset({"D1", "D2", "D3hot", "D3cold"})


def reset(root: Path, worker: Worker, address: str) -> ResetEvidence:
    """Reset by the kernel's best method.

    Raises:
        DeviceError: `device.no_reset`, `device.reset_failed` (refused or over the deadline),
            `device.bind_in_flight` (an earlier call still hangs).
    """
    folder = function_folder(root, address)
    methods = (read_text(folder / "reset_method") or "").split()
    if not methods:
        raise DeviceError("device.no_reset", f"the kernel knows no way to reset {address}")
    # An idle function on vfio-pci sleeps in D3hot. Awake is awake until its driver changes: vfio-pci itself
    # sets `auto` when it takes a function and `on` when it lets go.
    writes = [Write(folder / "power" / "control", "on", optional=True), Write(folder / "reset", "1")]
    began = time.monotonic()
    try:
        worker.write(address, "reset", writes)
    except BusyError as exc:
        raise DeviceError("device.bind_in_flight", f"{address} is not reset: {exc}") from exc
    except OverdueError as exc:
        raise DeviceError("device.reset_failed", f"the reset of {address} does not end: {exc}") from exc
    except WriteFailedError as exc:
        raise DeviceError(
            "device.reset_failed", f"the kernel could not reset {address} ({', '.join(methods)}): {exc}"
        ) from exc
    return ResetEvidence(
        address=address,
        method=methods[0],
        duration_s=time.monotonic() - began,
        responds=_responds(root, address),
    )


def _responds(root: Path, address: str) -> bool:
    state = read_text(function_folder(root, address) / "power_state")
    return answers(read_config(root, address)) and state not in _ASLEEP
