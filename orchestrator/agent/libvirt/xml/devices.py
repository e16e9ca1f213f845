"""Passed-through devices, the source of randomness, and the devices that must not be.

Devices are bound to vfio-pci by us beforehand: libvirt neither binds nor gives back (`managed='no'`). Called
by `domain`.
"""

from __future__ import annotations

from lxml import etree

from orchestrator.agent.libvirt.xml.elements import alias, host_address, node
from orchestrator.agent.libvirt.xml.pci import RNG, PciTree
from orchestrator.model.assignment import Instance


def hostdevs(instance: Instance, tree: PciTree) -> list[etree._Element]:
    """All ordered devices, their option ROMs hidden: firmware must not run a card's code."""
    return [
        node(
            "hostdev",
            node("driver", name="vfio"),
            node("source", host_address(device.address)),
            node("rom", bar="off"),
            alias(device.id),
            tree.address(device.id),
            mode="subsystem",
            type="pci",
            managed="no",
        )
        for device in instance.devices
    ]


def randomness(tree: PciTree) -> etree._Element:
    """virtio-rng from the kernel's generator, at most 64 KiB a second."""
    return node(
        "rng",
        node("rate", period=1000, bytes=65536),
        node("backend", model="random", text="/dev/urandom"),
        alias(RNG),
        tree.address(RNG),
        model="virtio",
    )


def nothing_else() -> list[etree._Element]:
    """What libvirt would add by itself if nobody said no."""
    return [node("controller", type="usb", index=0, model="none"), node("memballoon", model="none")]
