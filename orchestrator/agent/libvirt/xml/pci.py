"""Where every device sits in the guest's PCI tree: explicit, so that names and NUMA nodes never change.

Each device gets a root port of its own. Passed-through devices whose host node is that of a guest cell hang
on a `pcie-expander-bus` of that cell, from which the guest learns their NUMA node. Called by `domain`.
"""

from __future__ import annotations

from dataclasses import dataclass

from lxml import etree

from orchestrator.agent.libvirt.xml.elements import node, on_bus
from orchestrator.model.assignment import Instance
from orchestrator.model.errors import InvalidInputError

CHANNEL_CONTROLLER = "virtio-serial"
RNG = "rng"
SEED = "seed"

#: Functions of a slot; root ports share slots, so that many fit.
_FUNCTIONS = 8
#: Slot 0 of the root bus is the host bridge, 1f the chipset.
_LAST_SLOT = 0x1E
#: Bus numbers of the guest; those of expanders are handed out from the top.
_BUSES = 256


@dataclass(frozen=True)
class PciTree:
    """The controllers, and by device id the index of the root port that it sits behind."""

    controllers: tuple[etree._Element, ...]
    ports: dict[str, int]

    def address(self, identity: str) -> etree._Element:
        """The address of a device: alone behind its root port."""
        return on_bus(self.ports[identity])


def plan(instance: Instance) -> PciTree:
    """Lay out the tree.

    Raises:
        InvalidInputError: `domain.too_many_devices`: the root bus has too few slots.
    """
    near, far = _by_cell(instance)
    root_ports = [volume.id for volume in instance.volumes]
    root_ports += [SEED, *(port.id for port in instance.ports), CHANNEL_CONTROLLER, RNG, *far]
    ports: dict[str, int] = {}
    controllers = [node("controller", type="pci", index=0, model="pcie-root")]
    slot = 1 + _slots(len(root_ports))
    if slot + len(near) - 1 > _LAST_SLOT:
        raise InvalidInputError(
            "domain.too_many_devices",
            f"{len(root_ports)} devices and {len(near)} NUMA cells with devices do not fit on the guest's "
            "root bus",
        )
    expanders = {cell: 1 + number for number, cell in enumerate(near)}
    number = _BUSES - sum(1 + len(devices) for devices in near.values())
    for cell, devices in near.items():
        controllers.append(_expander(expanders[cell], number, cell, slot))
        number += 1 + len(devices)
        slot += 1
    index = 1 + len(near)
    for bus, first_slot, identities in [
        *((expanders[cell], 0, devices) for cell, devices in near.items()),
        (0, 1, root_ports),
    ]:
        for position, identity in enumerate(identities):
            controllers.append(_root_port(index, bus, first_slot, position, len(identities)))
            ports[identity] = index
            index += 1
    return PciTree(tuple(controllers), ports)


def _by_cell(instance: Instance) -> tuple[dict[int, list[str]], list[str]]:
    """Sort devices: by guest cell of their host node, and those that are near to none."""
    cell_of: dict[int, int] = {}
    for index, cell in enumerate(instance.memory.cells):
        cell_of.setdefault(cell.node, index)
    near: dict[int, list[str]] = {}
    far: list[str] = []
    for device in instance.devices:
        if device.node in cell_of:
            near.setdefault(cell_of[device.node], []).append(device.id)
        else:
            far.append(device.id)
    return dict(sorted(near.items())), far


def _slots(count: int) -> int:
    return -(-count // _FUNCTIONS)


def _expander(index: int, number: int, cell: int, slot: int) -> etree._Element:
    return node(
        "controller",
        node("model", name="pxb-pcie"),
        node("target", node("node", text=str(cell)), busNr=number),
        on_bus(0, slot),
        type="pci",
        index=index,
        model="pcie-expander-bus",
    )


def _root_port(index: int, bus: int, first_slot: int, position: int, count: int) -> etree._Element:
    """No hot-plug: what a VM holds is decided before it starts, and no guest can eject it."""
    slot, function = divmod(position, _FUNCTIONS)
    shared = function == 0 and count - position > 1
    return node(
        "controller",
        node("model", name="pcie-root-port"),
        node("target", chassis=index, port=f"0x{position % 256:x}", hotplug="off"),
        on_bus(bus, first_slot + slot, function, multifunction=shared),
        type="pci",
        index=index,
        model="pcie-root-port",
    )
