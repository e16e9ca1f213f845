"""Who QEMU runs as: a uid of this VM's own, and a profile of its own where the host has AppArmor.

Called by `domain`.
"""

from __future__ import annotations

from lxml import etree

from orchestrator.agent.libvirt.features import HostFeatures
from orchestrator.agent.libvirt.xml.elements import node
from orchestrator.model.launch import LaunchSpec


def labels(spec: LaunchSpec, features: HostFeatures) -> list[etree._Element]:
    """The labels; `+` says that these are numbers, never names."""
    own = node("label", text=f"+{spec.uid}:+{spec.uid}")
    found = [node("seclabel", own, type="static", model="dac", relabel="yes")]
    if features.apparmor:
        found.append(node("seclabel", type="dynamic", model="apparmor", relabel="yes"))
    return found
