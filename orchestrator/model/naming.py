"""Names of foreign things that follow from our ids: whoever knows the id knows the name, nobody looks it up.

libvirt, Open vSwitch and the kernel have names of their own kinds (UUIDs, 15 characters); each is made here
from our id and nowhere else. Never touches a host. Drivers and the reconciler call it.
"""

from __future__ import annotations

import hashlib
import uuid

#: Bulkhead's own UUIDv5 namespace; drawn once, fixed for ever, since names on running hosts depend on it.
NAMESPACE = uuid.UUID("5b0d1a52-6f7e-4d0e-9c39-7d0c5a8b1f11")


def derived_uuid(kind: str, identity: str) -> str:
    """The UUID of the foreign thing of this kind that belongs to our id."""
    return str(uuid.uuid5(NAMESPACE, f"{kind}/{identity}"))


def interface_id(port_id: str) -> str:
    """What libvirt writes as `external_ids:iface-id` for a port (`<parameters interfaceid=…>`)."""
    return derived_uuid("port", port_id)


def tap_name(port_id: str) -> str:
    """The kernel's name of a port's tap: 14 characters, and never `vnet…`, which libvirt hands out itself."""
    return "bh" + hashlib.sha256(port_id.encode()).hexdigest()[:12]
