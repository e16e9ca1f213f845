"""What the builders must know of a host, and how it is asked for: by capability queries, never by help texts.

`HostFeatures` is a value; `detect` reads it from libvirt's capabilities. Called by the driver on each
connection.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from lxml import etree

if TYPE_CHECKING:
    import libvirt

#: `<ps2 state='off'/>` came with libvirt 10.7.0; no capability tells.
_PS2_SWITCH_SINCE = 10_007_000


class CpuMode(StrEnum):
    """How the guest's CPU follows the host's."""

    HOST_PASSTHROUGH = "host-passthrough"
    HOST_MODEL = "host-model"


@dataclass(frozen=True)
class HostFeatures:
    """One host's abilities."""

    #: `q35` names the newest; libvirt writes the versioned name when it defines.
    machine: str = "q35"
    virt_type: str = "kvm"
    emulator: str = "/usr/bin/qemu-system-x86_64"
    cpu_mode: CpuMode = CpuMode.HOST_PASSTHROUGH
    #: Guests may have all the host's address bits, which large BARs need.
    phys_bits: bool = True
    apparmor: bool = True
    #: libvirt can leave the keyboard controller out.
    ps2_switch: bool = False


def detect(connection: libvirt.virConnect, virt_type: str = "kvm") -> HostFeatures:
    """Ask a connection.

    Raises:
        libvirt.libvirtError: it cannot run x86-64 q35 machines of this type.
    """
    host = _parse(connection.getCapabilities())
    domain = _parse(connection.getDomainCapabilities(None, "x86_64", "q35", virt_type))
    modes = {mode.get("name") for mode in domain.iterfind("cpu/mode[@supported='yes']")}
    passthrough = CpuMode.HOST_PASSTHROUGH.value in modes
    return HostFeatures(
        virt_type=virt_type,
        emulator=domain.findtext("path") or HostFeatures.emulator,
        cpu_mode=CpuMode.HOST_PASSTHROUGH if passthrough else CpuMode.HOST_MODEL,
        phys_bits=domain.find("cpu/mode/maxphysaddr[@mode='passthrough']") is not None,
        apparmor=any(each.text == "apparmor" for each in host.iterfind("host/secmodel/model")),
        ps2_switch=connection.getLibVersion() >= _PS2_SWITCH_SINCE,
    )


def _parse(text: str) -> etree._Element:
    return etree.fromstring(text, etree.XMLParser(resolve_entities=False, no_network=True))
