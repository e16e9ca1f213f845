"""What an instance was given, read again: PCI functions, who holds them, and volumes' files.

Reads and never judges. `driver_override` is read by the devices' worker: the kernel takes the device's lock
for it, and somebody's hung unbind must not hang us. Called by `inspector`.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from hostprep.probe.files import names, read_link_name, read_text
from hostprep.probe.pci import function_folder, read_function
from orchestrator.agent.devices.worker import BusyError, OverdueError, Worker
from orchestrator.agent.evidence.mounts import below
from orchestrator.agent.evidence.openfiles import FileId, OpenFiles
from orchestrator.isolation.facts import DeviceFacts, DiskFacts
from orchestrator.isolation.luks import HEADER_BYTES, header_problems, parse_header
from orchestrator.model.errors import HostError

_PARAMETERS = "sys/module/{}/parameters/{}"
#: vfio's type1 container and iommufd each have a parameter of their own.
_INTERRUPTS = (
    ("vfio_iommu_type1", "allow_unsafe_interrupts"),
    ("iommufd", "allow_unsafe_interrupts"),
)


def read_device(root: Path, worker: Worker, files: OpenFiles, address: str) -> DeviceFacts | None:
    """Read one function; None when it is gone, or the kernel holds it locked."""
    try:
        function = read_function(root, address, with_serial=False)
        override = worker.read(address, function_folder(root, address) / "driver_override")
    except (HostError, BusyError, OverdueError):
        return None
    if function is None or override is None:
        return None
    return DeviceFacts(
        vendor=function.vendor,
        device=function.device,
        node=function.node,
        driver=function.driver,
        # The kernel writes a null pointer for none.
        driver_override=None if override in ("", "(null)") else override,
        members=None if function.group is None else _members(root, str(function.group)),
        holders=files.vfio_holders(_vfio_files(root, address)),
    )


def _members(root: Path, group: str) -> frozenset[str]:
    """Functions of a group that are no bridges; one whose class cannot be read is no bridge."""
    devices = root / "sys/kernel/iommu_groups" / group / "devices"
    return frozenset(
        name for name in names(devices) if not (read_text(devices / name / "class") or "").startswith("0x06")
    )


def _vfio_files(root: Path, address: str) -> frozenset[str]:
    """Paths below /dev/vfio through which processes may hold this function now."""
    device = function_folder(root, address)
    found = {f"/dev/vfio/devices/{name}" for name in names(device / "vfio-dev")}
    group = read_link_name(device / "iommu_group")
    if group is not None:
        found.add(f"/dev/vfio/{group}")
    return frozenset(found)


def held(root: Path, files: OpenFiles, pid: int) -> frozenset[str] | None:
    """Return addresses of all functions that a process holds; a file of nobody known stands for itself."""
    if not files.complete:
        return None
    found: set[str] = set()
    for path in files.vfio.get(pid, ()):
        name = path.removeprefix("/dev/vfio/")
        if name.startswith("devices/"):
            folder = root / "sys/class/vfio-dev" / name.removeprefix("devices/") / "device"
            found.add(read_link_name(folder) or path)
        else:
            found |= _members(root, name) or {path}
    return frozenset(found)


def unsafe_interrupts(root: Path) -> bool | None:
    """Tell whether vfio accepts hosts without interrupt remapping; None when neither part of it is loaded."""
    found = [_switch(root, module, name) for module, name in _INTERRUPTS]
    known = [each for each in found if each is not None]
    return any(known) if known else None


def unsafe_noiommu(root: Path) -> bool | None:
    """Tell whether vfio accepts hosts without an IOMMU; a vfio without the parameter cannot."""
    if not (root / "sys/module/vfio").is_dir():
        return None
    if not (root / _PARAMETERS.format("vfio", "enable_unsafe_noiommu_mode")).exists():
        return False
    return _switch(root, "vfio", "enable_unsafe_noiommu_mode")


def _switch(root: Path, module: str, name: str) -> bool | None:
    return {"Y": True, "1": True, "N": False, "0": False}.get(
        read_text(root / _PARAMETERS.format(module, name)) or ""
    )


@dataclass(frozen=True)
class VolumeFile:
    """A volume's file, before its holders are known."""

    file: FileId
    header_problems: tuple[str, ...] | None
    uid: int
    gid: int
    mode: int

    def facts(self, files: OpenFiles) -> DiskFacts:
        """Add who holds it."""
        holders = files.file_holders(self.file)
        return DiskFacts(self.header_problems, self.uid, self.gid, self.mode, holders)


def read_volume(root: Path, path: str) -> VolumeFile | None:
    """Read a volume's header and owner through one descriptor; None when that is not possible."""
    try:
        descriptor = os.open(below(root, path), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        seen = os.fstat(descriptor)
        if not stat.S_ISREG(seen.st_mode):
            return None
        try:
            problems = header_problems(parse_header(os.pread(descriptor, HEADER_BYTES, 0)))
        except OSError:
            problems = None
    finally:
        # Before anybody looks for holders: we are none.
        os.close(descriptor)
    return VolumeFile(
        (seen.st_dev, seen.st_ino), problems, seen.st_uid, seen.st_gid, stat.S_IMODE(seen.st_mode)
    )
