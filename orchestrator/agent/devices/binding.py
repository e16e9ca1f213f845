"""Moves a PCI function from one driver to another, so that no other driver can slip in between.

The order is the safety: the override is written before the old driver lets go, so that neither udev nor a
module that loads meanwhile can take the function, and it stays for as long as the function is not the host's.
`new_id` is never written: it would claim every device of the same model. All writes are the worker's;
afterwards the driver link is read back, since a write that succeeds proves nothing. Called by `vfio`, which
has checked that nobody holds it.
"""

from __future__ import annotations

import re
from pathlib import Path

from hostprep.probe.files import read_link_name
from hostprep.probe.pci import function_folder
from orchestrator.agent.devices.worker import BusyError, OverdueError, Worker, Write, WriteFailedError
from orchestrator.model.errors import DeviceError

_DRIVER = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9_-]{0,62}$")
#: Documentation/ABI/testing/sysfs-bus-pci: a lone newline takes the override away.
_NO_OVERRIDE = "\n"


def bind(root: Path, worker: Worker, address: str, driver: str) -> None:
    """Make `driver` own the function and keep it so.

    Raises:
        DeviceError: `device.bind_timeout`, `device.bind_in_flight`, `device.bind_failed`.
    """
    _require_loaded(root, address, driver)
    folder = function_folder(root, address)
    writes = [Write(folder / "driver_override", driver)]
    if current_driver(root, address) != driver:
        writes += _rebind(root, address)
    _run(worker, address, "bind", writes)
    _verify(root, address, driver)
    if "vfio" in driver:
        _require_group_file(root, address)


def give_back(root: Path, worker: Worker, address: str, driver: str | None, bound: str | None) -> None:
    """Let `driver` have the function and leave no override behind.

    Args:
        driver: the one it came with; None lets the kernel choose, or leave it without any.
        bound: the driver it has now, which must have let go when the kernel was to choose.

    Raises:
        DeviceError: `device.bind_timeout`, `device.bind_in_flight`, `device.bind_failed`.
    """
    if driver is not None:
        _require_loaded(root, address, driver)
    override = function_folder(root, address) / "driver_override"
    writes = [Write(override, driver or _NO_OVERRIDE)]
    if driver is None or bound != driver:
        writes += _rebind(root, address)
    if driver is not None:
        writes.append(Write(override, _NO_OVERRIDE))
    _run(worker, address, "give_back", writes)
    if driver is not None:
        _verify(root, address, driver)
    elif bound is not None and "vfio" in bound and current_driver(root, address) == bound:
        raise DeviceError("device.bind_failed", f"{bound} still owns {address} though nothing tells it to")


def current_driver(root: Path, address: str) -> str | None:
    """Read back which driver owns the function."""
    return read_link_name(function_folder(root, address) / "driver")


def _rebind(root: Path, address: str) -> list[Write]:
    return [
        Write(function_folder(root, address) / "driver" / "unbind", address, optional=True),
        Write(root / "sys/bus/pci/drivers_probe", address),
    ]


def _run(worker: Worker, address: str, action: str, writes: list[Write]) -> None:
    try:
        worker.write(address, action, writes)
    except BusyError as exc:
        raise DeviceError(
            "device.bind_in_flight",
            f"nothing is done to {address}: {exc}",
            hint="end what holds the device; if nothing does, restart the host",
        ) from exc
    except OverdueError as exc:
        raise DeviceError(
            "device.bind_timeout",
            f"the kernel does not finish to {action.replace('_', ' ')} {address}: {exc}",
            hint="see the kernel's log for who still uses it; no further attempt starts before it comes back",
        ) from exc
    except WriteFailedError as exc:
        raise DeviceError(
            "device.bind_failed", f"the kernel refused to {action.replace('_', ' ')} {address}: {exc}"
        ) from exc


def _require_loaded(root: Path, address: str, driver: str) -> None:
    """Refuse before anything is touched: without its driver the function would end up with none."""
    if not _DRIVER.match(driver) or not (root / "sys/bus/pci/drivers" / driver).is_dir():
        raise DeviceError(
            "device.bind_failed",
            f"{address} cannot be bound: the PCI driver {driver!r} is not loaded",
            hint=f"modprobe {driver}" if _DRIVER.match(driver) else None,
        )


def _verify(root: Path, address: str, driver: str) -> None:
    found = current_driver(root, address)
    if found != driver:
        raise DeviceError(
            "device.bind_failed",
            f"{address} was to be on {driver} and is on {found or 'no driver'}",
            hint="see the kernel's log for why the driver did not take it",
        )


def _require_group_file(root: Path, address: str) -> None:
    group = read_link_name(function_folder(root, address) / "iommu_group")
    if group is None or not (root / "dev/vfio" / group).exists():
        raise DeviceError(
            "device.bind_failed",
            f"{address} is bound but has no file under /dev/vfio (IOMMU group {group or 'none'})",
            hint="switch the IOMMU on; without it the kernel offers nothing to give away",
        )
