"""How all builders make elements: one function, attributes in the order written, text never formatted in.

Never parses anything. Called by every module beside it.
"""

from __future__ import annotations

from lxml import etree

from orchestrator.model.pci import parse_pci_address


def node(
    tag: str, /, *children: etree._Element | None, text: str | None = None, **attributes: str | int | None
) -> etree._Element:
    """Make one element; children and attributes that are None are left out."""
    made = etree.Element(tag)
    for name, value in attributes.items():
        if value is not None:
            made.set(name, str(value))
    made.text = text
    made.extend([child for child in children if child is not None])
    return made


def alias(identity: str) -> etree._Element:
    """Our own name of a device: libvirt keeps aliases that start with `ua-`, and events carry them."""
    return node("alias", name=f"ua-{identity}")


def on_bus(bus: int, slot: int = 0, function: int = 0, *, multifunction: bool = False) -> etree._Element:
    """Where a device sits in the guest; `bus` is the index of a controller, not the number the guest sees."""
    return node(
        "address",
        type="pci",
        domain="0x0000",
        bus=f"0x{bus:02x}",
        slot=f"0x{slot:02x}",
        function=f"0x{function:x}",
        multifunction="on" if multifunction else None,
    )


def host_address(address: str) -> etree._Element:
    """A PCI function of the host as the source of a hostdev."""
    parts = parse_pci_address(address)
    return node(
        "address",
        domain=f"0x{parts.domain:04x}",
        bus=f"0x{parts.bus:02x}",
        slot=f"0x{parts.slot:02x}",
        function=f"0x{parts.function:x}",
    )
