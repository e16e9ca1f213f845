"""`ports.Devices` for real: observes, binds, gives back and resets PCI functions of this host.

It decides nothing about tenants (`isolation.devices` does) and keeps no memory: each call reads the kernel
anew, IOMMU group numbers included. What it refuses by itself is what would hurt whoever uses the device now.
"""

from __future__ import annotations

import re
from pathlib import Path

from hostprep.probe.files import names, read_link_name, read_text
from hostprep.probe.pci import answers, function_folder, read_config, read_function
from orchestrator.agent.devices import binding
from orchestrator.agent.devices.holders import holders
from orchestrator.agent.devices.reset import reset
from orchestrator.agent.devices.worker import BusyError, OverdueError, ProcessWorker, Worker
from orchestrator.model.errors import DeviceError
from orchestrator.model.host import PciFunction
from orchestrator.model.observed import GroupMember, ObservedDevice, ResetEvidence
from orchestrator.model.pci import PCI_ADDRESS_PATTERN

_ADDRESS = re.compile(PCI_ADDRESS_PATTERN)


class VfioDevices:
    """PCI functions under one sysfs.

    Args:
        root: where `sys`, `proc` and `dev` are.
        marker_dir: where calls under way are marked; must be the same for all agents of a host, and on tmpfs.
        deadline_s: seconds that the kernel may take for one rebinding or reset.
        worker: makes the kernel calls; by default processes of their own.
    """

    def __init__(
        self,
        root: Path = Path("/"),
        *,
        marker_dir: Path = Path("/run/bulkhead/binding"),
        deadline_s: float = 30.0,
        worker: Worker | None = None,
    ) -> None:
        self._root = root
        self._worker: Worker = worker or ProcessWorker(marker_dir, deadline_s)

    def observe(self, address: str) -> ObservedDevice | None:
        """Read one function; None when there is none at that address.

        While a call hangs on it, its override is unknown (None); while that call is a reset, it counts as not
        responding, since the kernel would hold whoever reads its configuration.

        Raises:
            DeviceError: `device.bind_in_flight`: somebody else's call holds the device's lock in the kernel.
            HostError: `host.unreadable`.
        """
        busy = self._worker.in_flight(address) if _ADDRESS.fullmatch(address) else None
        readable = busy is None or busy.action != "reset"
        function = self._function(address, with_serial=readable)
        if function is None:
            return None
        return ObservedDevice(
            address=address,
            vendor=function.vendor,
            device=function.device,
            class_code=function.class_code,
            node=function.node,
            driver=function.driver,
            driver_override=self._override(address) if busy is None else None,
            group=function.group,
            members=self._members(address),
            reset_methods=function.reset_methods,
            holders=holders(self._root, address),
            serial=function.serial,
            responds=readable and answers(read_config(self._root, address)),
        )

    def bind(self, address: str, driver: str) -> None:
        """Make `driver` own the function, and read back that it does. Nothing is done where it already does.

        Raises:
            DeviceError: `device.missing`, `device.in_use`, `device.has_virtual_functions`,
            `device.bind_timeout`,
                `device.bind_in_flight`, `device.bind_failed`.
        """
        function = self._require(address)
        self._require_quiet(address)
        if function.driver == driver and self._override(address) == driver:
            return
        if function.virtual_functions:
            raise DeviceError(
                "device.has_virtual_functions",
                f"{address} has {function.virtual_functions} virtual functions, which go with its driver",
                hint="write 0 to its sriov_numvfs once none is in use",
            )
        if function.driver != driver:
            self._require_free(address)
        binding.bind(self._root, self._worker, address, driver)

    def give_back(self, address: str, driver: str | None) -> None:
        """Let `driver` (None: the kernel's choice) have the function; one that is gone is fine.

        Raises:
            DeviceError: `device.in_use`, `device.bind_timeout`, `device.bind_in_flight`,
            `device.bind_failed`.
        """
        function = self._function(address)
        if function is None:
            return
        self._require_quiet(address)
        override = self._override(address)
        if not override and (function.driver == driver or (driver is None and not _is_vfio(function.driver))):
            return
        if function.driver != driver:
            self._require_free(address)
        binding.give_back(self._root, self._worker, address, driver, function.driver)

    def reset(self, address: str) -> ResetEvidence:
        """Reset the function by the kernel's best method and look whether it still answers.

        Raises:
            DeviceError: `device.missing`, `device.in_use`, `device.no_reset`, `device.reset_failed`,
                `device.bind_in_flight`.
        """
        self._require(address)
        self._require_quiet(address)
        self._require_free(address)
        return reset(self._root, self._worker, address)

    def _function(self, address: str, *, with_serial: bool = False) -> PciFunction | None:
        if not _ADDRESS.fullmatch(address):
            return None
        return read_function(self._root, address, with_serial=with_serial)

    def _require(self, address: str) -> PciFunction:
        function = self._function(address)
        if function is None:
            raise DeviceError("device.missing", f"there is no PCI function at {address}")
        return function

    def _require_quiet(self, address: str) -> None:
        busy = self._worker.in_flight(address)
        if busy is not None:
            raise DeviceError("device.bind_in_flight", f"nothing is done to {address}: {BusyError(busy)}")

    def _require_free(self, address: str) -> None:
        pids = holders(self._root, address)
        if pids:
            raise DeviceError(
                "device.in_use", f"{address} is held open by process {', '.join(map(str, pids))}"
            )

    def _override(self, address: str) -> str | None:
        """Read the override; the kernel takes the device's lock for it, so a hung remove would hang us."""
        try:
            text = self._worker.read(address, function_folder(self._root, address) / "driver_override")
        except (BusyError, OverdueError) as exc:
            raise DeviceError(
                "device.bind_in_flight",
                f"the kernel holds {address} locked: {exc}",
                hint="somebody else's unbind or reset hangs; see the kernel's log",
            ) from exc
        # The kernel writes a null pointer for none.
        return None if text in (None, "", "(null)") else text

    def _members(self, address: str) -> tuple[GroupMember, ...]:
        devices = function_folder(self._root, address) / "iommu_group" / "devices"
        return tuple(
            GroupMember(
                address=name,
                # A member whose class cannot be read is no bridge: it counts against isolation.
                class_code=(read_text(devices / name / "class") or "unknown").removeprefix("0x"),
                driver=read_link_name(devices / name / "driver"),
            )
            for name in names(devices)
        )


def _is_vfio(driver: str | None) -> bool:
    return driver is not None and "vfio" in driver
