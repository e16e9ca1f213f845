"""Serial console and guest channel: the two ways to talk to what runs inside.

The console is a pty for people, kept in a file on tmpfs by virtlogd; the channel is a Unix socket that the
agent reads through an unprivileged worker. Called by `domain`.
"""

from __future__ import annotations

from lxml import etree

from orchestrator.agent.libvirt.xml.elements import alias, node
from orchestrator.agent.libvirt.xml.pci import CHANNEL_CONTROLLER, PciTree
from orchestrator.model.launch import LaunchSpec

#: What the guest's own program opens as /dev/virtio-ports/<name>.
GUEST_PORT = "org.bulkhead.guest.0"


def console(spec: LaunchSpec) -> list[etree._Element]:
    """The first serial port."""
    return [
        node(
            "serial",
            node("log", file=spec.console_path, append="on"),
            node("target", node("model", name="isa-serial"), type="isa-serial", port=0),
            alias("console"),
            type="pty",
        ),
        node("console", node("target", type="serial", port=0), type="pty"),
    ]


def guest_channel(spec: LaunchSpec, tree: PciTree) -> list[etree._Element]:
    """The virtio-serial controller with one port, and its socket."""
    return [
        node(
            "controller",
            alias(CHANNEL_CONTROLLER),
            tree.address(CHANNEL_CONTROLLER),
            type="virtio-serial",
            index=0,
        ),
        node(
            "channel",
            node("source", mode="bind", path=spec.guest_socket),
            node("target", type="virtio", name=GUEST_PORT),
            alias("guest"),
            node("address", type="virtio-serial", controller=0, bus=0, port=1),
            type="unix",
        ),
    ]
