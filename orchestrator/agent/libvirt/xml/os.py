"""Firmware, features, clock and what happens at power-off: the machine around the parts.

Only firmware boots: there is no kernel, initrd or command line here, and the lint refuses them. Called by
`domain`.
"""

from __future__ import annotations

from lxml import etree

from orchestrator.agent.libvirt.features import HostFeatures
from orchestrator.agent.libvirt.xml.elements import node
from orchestrator.model.assignment import Firmware
from orchestrator.model.launch import LaunchSpec


def firmware(spec: LaunchSpec, features: HostFeatures) -> etree._Element:
    """Choose SeaBIOS, or UEFI without secure boot from the host's own firmware descriptors.

    libvirt keeps the UEFI variables in /var/lib/libvirt/qemu/nvram/<name>_VARS.fd; undefining removes them.
    """
    kind = node("type", arch="x86_64", machine=features.machine, text="hvm")
    if spec.instance.firmware is Firmware.BIOS:
        return node("os", kind)
    off = [node("feature", enabled="no", name=name) for name in ("enrolled-keys", "secure-boot")]
    return node("os", kind, node("firmware", *off), firmware="efi")


def machine_features(features: HostFeatures) -> etree._Element:
    """ACPI and APIC, and nothing of what a server's guest does not need."""
    off = ["pmu", "smm", "vmport"]
    if features.ps2_switch:
        off.insert(1, "ps2")
    return node("features", node("acpi"), node("apic"), *(node(name, state="off") for name in off))


def clock() -> etree._Element:
    """UTC, without the HPET, which Linux guests on KVM do not use."""
    return node("clock", node("timer", name="hpet", present="no"), offset="utc")


def lifecycle() -> list[etree._Element]:
    """Off stays off, a crash ends the process, and sleep, which GPUs do not survive, is not offered."""
    return [
        node("on_poweroff", text="destroy"),
        node("on_reboot", text="restart"),
        node("on_crash", text="destroy"),
        node("pm", node("suspend-to-mem", enabled="no"), node("suspend-to-disk", enabled="no")),
    ]
