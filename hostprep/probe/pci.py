"""PCI functions as sysfs shows them: identity, owner, group, node, place, resets, BARs, SR-IOV, ACS, serial.

A function that vanishes while it is read is no longer there and is left out. Configuration space is read for
the serial number, a port's access control and for signs of life (`answers`); nothing is ever written.
"""

from __future__ import annotations

import re
from typing import TypeVar

from hostprep.probe.files import (
    HostPath,
    names,
    read_link,
    read_link_name,
    read_number,
    read_text,
    unreadable,
)
from orchestrator.model.host import PciFunction
from orchestrator.model.pci import PCI_ADDRESS_PATTERN

_DEVICES = "sys/bus/pci/devices"
_ADDRESS = re.compile(PCI_ADDRESS_PATTERN)
#: include/linux/ioport.h: IORESOURCE_MEM.
_MEMORY_FLAG = 0x200
#: Lines 0 to 5 of `resource` are the BARs; 6 is the ROM, the rest are SR-IOV's and a bridge's windows.
_BARS = 6
#: PCIe Base Specification: extended capabilities start here, after the 256 bytes of conventional space.
_EXTENDED_START = 0x100
_SERIAL_CAPABILITY = 0x0003
_ACS_CAPABILITY = 0x000D
#: Control register of ACS; its bits, lowest first, under the names that lspci gives them.
_ACS_CONTROL = 0x06
_ACS_BITS = ("SrcValid", "TransBlk", "ReqRedir", "CmpltRedir", "UpstreamFwd", "EgressCtrl", "DirectTrans")
_HEADER_TYPE = 0x0E
_ROOT = re.compile(r"^pci[0-9a-f]{4,8}:[0-9a-f]{2}$")

P = TypeVar("P", bound=HostPath)


def function_folder(root: P, address: str) -> P:
    """Return the sysfs folder of a function, whether or not it exists."""
    return root / _DEVICES / address


def read_functions(root: HostPath) -> tuple[PciFunction, ...]:
    """Read all PCI functions by address.

    Raises:
        HostError: `host.unreadable`.
    """
    found = (read_function(root, name) for name in names(root / _DEVICES) if _ADDRESS.fullmatch(name))
    return tuple(function for function in found if function is not None)


def read_function(root: HostPath, address: str, *, with_serial: bool = True) -> PciFunction | None:
    """Read one function; None where there is none (any more).

    Args:
        with_serial: False leaves configuration space alone, which must not be read while a reset is under way
            (the kernel would hold the reader until it ends).

    Raises:
        HostError: `host.unreadable`.
    """
    folder = function_folder(root, address)
    vendor = _hex(folder / "vendor", 4)
    device = _hex(folder / "device", 4)
    class_code = _hex(folder / "class", 6)
    if vendor is None or device is None or class_code is None:
        return None
    node = read_number(folder / "numa_node")
    group = read_link_name(folder / "iommu_group")
    config = read_config(root, address) if with_serial else b""
    parent, root_complex = _place(folder)
    return PciFunction(
        address=address,
        vendor=vendor,
        device=device,
        class_code=class_code,
        node=-1 if node is None else node,
        driver=read_link_name(folder / "driver"),
        group=None if group is None else int(group),
        reset_methods=tuple((read_text(folder / "reset_method") or "").split()),
        bars=_bars(folder / "resource"),
        physical_function=read_link_name(folder / "physfn"),
        virtual_functions=read_number(folder / "sriov_numvfs") or 0,
        serial=serial_number(config),
        parent=parent,
        root_complex=root_complex,
        acs=access_control(config),
        virtual_functions_max=read_number(folder / "sriov_totalvfs") or 0,
        subsystem=_subsystem(folder),
        revision=_hex(folder / "revision", 2) or "",
        boot_display=read_text(folder / "boot_vga") == "1",
    )


def read_config(root: HostPath, address: str) -> bytes:
    """Return configuration space as far as it may be read (64 bytes without privilege); empty if gone."""
    try:
        return (function_folder(root, address) / "config").read_bytes()
    except OSError:
        return b""


def answers(config: bytes) -> bool:
    """Tell whether a function still answers: all ones is what a bus returns for nobody there.

    Header type 127 is the same sign one byte wide (what libvirt calls `Unknown PCI header type '127'`).
    """
    if len(config) <= _HEADER_TYPE:
        return False
    return config[0:2] != b"\xff\xff" and config[_HEADER_TYPE] & 0x7F != 0x7F


def serial_number(config: bytes) -> str:
    """Return the Device Serial Number as eight dashed bytes, highest first; empty where there is none."""
    place = serial_place(config)
    return "" if place is None else config[place : place + 8][::-1].hex("-")


def serial_place(config: bytes) -> int | None:
    """Return where the eight bytes of the Device Serial Number stand; None where there are none."""
    offset = extended_capability(config, _SERIAL_CAPABILITY)
    return None if offset is None else offset + 4


def access_control(config: bytes) -> tuple[str, ...] | None:
    """Return the ACS controls that are on, by lspci's names; None for a function without ACS, or unreadable.

    PCIe Base Specification, Access Control Services: the control register is the second half of the second
    double word.
    """
    offset = extended_capability(config, _ACS_CAPABILITY)
    if offset is None:
        return None
    bits = int.from_bytes(config[offset + _ACS_CONTROL : offset + _ACS_CONTROL + 2], "little")
    return tuple(name for index, name in enumerate(_ACS_BITS) if bits >> index & 1)


def extended_capability(config: bytes, wanted: int) -> int | None:
    """Return where an extended capability of at least twelve bytes stands; None where there is none."""
    offset = _EXTENDED_START
    seen: set[int] = set()
    # A wedged or hostile device may loop its list: each offset is visited once.
    while offset >= _EXTENDED_START and offset + 12 <= len(config) and offset not in seen:
        seen.add(offset)
        header = int.from_bytes(config[offset : offset + 4], "little")
        if header in (0, 0xFFFFFFFF):
            return None
        if header & 0xFFFF == wanted:
            return offset
        offset = header >> 20 & 0xFFC
    return None


def _place(folder: HostPath) -> tuple[str | None, str]:
    """Return the bridge right above (None on a root bus) and the root complex's bus (`pci0000:20`)."""
    target = read_link(folder)
    if target is None:
        return None, ""
    above = target.parts[:-1]
    parent = above[-1] if above and _ADDRESS.fullmatch(above[-1]) else None
    # A domain below a device (Intel VMD) has a root of its own: the last one counts.
    return parent, next((part for part in reversed(above) if _ROOT.match(part)), "")


def _subsystem(folder: HostPath) -> str:
    vendor, device = _hex(folder / "subsystem_vendor", 4), _hex(folder / "subsystem_device", 4)
    return f"{vendor}:{device}" if vendor and device else ""


def _hex(path: HostPath, digits: int) -> str | None:
    number = read_number(path, 16)
    return None if number is None else f"{number:0{digits}x}"


def _bars(path: HostPath) -> dict[int, int]:
    """Return sizes in bytes of the memory BARs; the upper half of a 64-bit BAR is an empty line."""
    text = read_text(path)
    if text is None:
        return {}
    found: dict[int, int] = {}
    for index, line in enumerate(text.splitlines()[:_BARS]):
        try:
            start, end, flags = (int(part, 16) for part in line.split())
        except ValueError as exc:
            raise unreadable(path, line, "a BAR's start, end and flags") from exc
        if flags & _MEMORY_FLAG and end > start:
            found[index] = end - start + 1
    return found
