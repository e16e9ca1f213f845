"""PCI addresses in one form: lower-case hex, four or more domain digits (`0000:21:00.0`).

sysfs writes the domain with four digits, NVML with eight; everything inside Bulkhead uses sysfs' form.
"""

from __future__ import annotations

import re
from typing import NamedTuple

#: Canonical form; domains above ffff exist (Intel VMD starts at 10000).
PCI_ADDRESS_PATTERN = r"^(?:[0-9a-f]{4}|[1-9a-f][0-9a-f]{4,7}):[0-9a-f]{2}:[01][0-9a-f]\.[0-7]$"

_LOOSE = re.compile(r"^(?:([0-9a-fA-F]{1,8}):)?([0-9a-fA-F]{1,2}):([0-9a-fA-F]{1,2})\.([0-7])$")


class PciAddress(NamedTuple):
    """Where a function sits: the four numbers of its address."""

    domain: int
    bus: int
    slot: int
    function: int

    def __str__(self) -> str:
        return f"{self.domain:04x}:{self.bus:02x}:{self.slot:02x}.{self.function:x}"


def parse_pci_address(text: str) -> PciAddress:
    """Read any of the usual spellings (sysfs, NVML, short `bus:slot.fn`).

    Raises:
        ValueError: not a PCI address.
    """
    match = _LOOSE.match(text)
    if match is None:
        raise ValueError(f"{text!r} is not a PCI address such as 0000:21:00.0")
    domain, bus, slot, function = match.groups()
    address = PciAddress(int(domain or "0", 16), int(bus, 16), int(slot, 16), int(function, 16))
    if address.slot > 0x1F:
        raise ValueError(f"{text!r} names slot {address.slot:#x}; a bus has slots 00 to 1f")
    return address
