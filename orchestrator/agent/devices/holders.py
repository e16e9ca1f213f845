"""Which processes have a PCI function open, seen from the kernel: /proc, never our own records.

All device files of a function count: the VFIO group's, its iommufd file, DRM nodes and the nvidia driver's.
Group numbers change over time, so the names are made anew on each call.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from hostprep.probe.files import names, read_link_name, read_text
from hostprep.probe.pci import function_folder
from orchestrator.model.errors import HostError

_MINOR = re.compile(r"^Device Minor:\s+(\d+)\s*$", re.MULTILINE)


def device_files(root: Path, address: str) -> frozenset[str]:
    """Return the paths under /dev through which processes may hold this function now."""
    folder = function_folder(root, address)
    found = {f"/dev/vfio/devices/{name}" for name in names(folder / "vfio-dev")}
    found |= {f"/dev/dri/{name}" for name in names(folder / "drm")}
    group = read_link_name(folder / "iommu_group")
    if group is not None:
        found.add(f"/dev/vfio/{group}")
    minor = _MINOR.search(read_text(root / "proc/driver/nvidia/gpus" / address / "information") or "")
    if minor is not None:
        found.add(f"/dev/nvidia{minor.group(1)}")
    return frozenset(found)


def holders(root: Path, address: str) -> tuple[int, ...]:
    """Return the pids that have the function open, rising.

    Raises:
        HostError: `host.unreadable`: a process may not be looked at; nobody must be taken for no holder.
    """
    wanted = device_files(root, address)
    return tuple(
        sorted(int(name) for name in names(root / "proc") if name.isdigit() and _holds(root, name, wanted))
    )


def _holds(root: Path, pid: str, wanted: frozenset[str]) -> bool:
    folder = root / "proc" / pid / "fd"
    try:
        with os.scandir(folder) as entries:
            return any(_target(entry.path) in wanted for entry in entries)
    except (FileNotFoundError, ProcessLookupError, NotADirectoryError):
        return False
    except OSError as exc:
        raise HostError("host.unreadable", f"cannot see what process {pid} holds open: {exc}") from exc


def _target(path: str) -> str:
    try:
        return str(Path(path).readlink())
    except (FileNotFoundError, ProcessLookupError):
        # Closed, or the process ended, since the folder was listed.
        return ""
