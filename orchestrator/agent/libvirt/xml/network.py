"""Network ports: virtio on our Open vSwitch bridge, plugged in closed.

The VLAN written here is the dead one (a trunk of 4095 only): a port that just appeared can neither send nor
hear. The switch driver opens it, last. Called by `domain`.
"""

from __future__ import annotations

from lxml import etree

from orchestrator.agent.libvirt.xml.elements import alias, node
from orchestrator.agent.libvirt.xml.pci import PciTree
from orchestrator.model.assignment import Port
from orchestrator.model.launch import LaunchSpec
from orchestrator.model.naming import interface_id, tap_name

#: 802.1Q reserves it; no frame carries it.
DEAD_VLAN = 4095


def interfaces(spec: LaunchSpec, tree: PciTree) -> list[etree._Element]:
    """All ports in order."""
    return [_interface(port, spec.bridge, tree) for port in spec.instance.ports]


def _interface(port: Port, bridge: str, tree: PciTree) -> etree._Element:
    return node(
        "interface",
        node("mac", address=port.mac),
        node("source", bridge=bridge),
        # A trunk, since an access port's untagged frames would pass a rule that looks at tags.
        node("vlan", node("tag", id=DEAD_VLAN), trunk="yes"),
        node("virtualport", node("parameters", interfaceid=interface_id(port.id)), type="openvswitch"),
        node("target", dev=tap_name(port.id)),
        node("model", type="virtio"),
        node("mtu", size=port.mtu),
        node("rom", enabled="no"),
        alias(port.id),
        tree.address(port.id),
        type="bridge",
    )
