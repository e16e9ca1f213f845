"""Joins the builders into one domain definition.

Pure: the same spec and features give the same text. Called by the driver, which validates it against
libvirt's schema and our own lint before anything is defined.
"""

from __future__ import annotations

from lxml import etree

from orchestrator.agent.libvirt.features import HostFeatures
from orchestrator.agent.libvirt.xml import (
    channels,
    cpu,
    devices,
    disks,
    memory,
    metadata,
    network,
    os,
    pci,
    security,
)
from orchestrator.agent.libvirt.xml.elements import node
from orchestrator.model.errors import InvalidInputError
from orchestrator.model.launch import LaunchSpec
from orchestrator.model.naming import derived_uuid


def domain_uuid(deployment: str, instance: str) -> str:
    """The domain's UUID: follows from deployment and instance, so the guest keeps its SMBIOS identity."""
    return derived_uuid("domain", f"{deployment}/{instance}")


def build(spec: LaunchSpec, features: HostFeatures) -> str:
    """Write the definition.

    Raises:
        InvalidInputError: `domain.topology`, `domain.too_many_devices`, or `domain.bad_text`: a path or name
            holds what XML cannot.
    """
    try:
        return etree.tostring(_domain(spec, features), pretty_print=True, encoding="unicode")
    except ValueError as exc:
        raise InvalidInputError(
            "domain.bad_text", f"the definition of {spec.instance.id} cannot be written as XML: {exc}"
        ) from exc


def _domain(spec: LaunchSpec, features: HostFeatures) -> etree._Element:
    instance = spec.instance
    return node(
        "domain",
        node("name", text=instance.id),
        node("uuid", text=domain_uuid(spec.deployment, instance.id)),
        metadata.mark(spec),
        memory.amount(instance),
        memory.backing(instance),
        cpu.vcpus(instance),
        cpu.cputune(instance),
        memory.numatune(instance),
        os.firmware(spec, features),
        os.machine_features(features),
        cpu.cpu(instance, features),
        os.clock(),
        *os.lifecycle(),
        _devices(spec, features),
        *security.labels(spec, features),
        type=features.virt_type,
    )


def _devices(spec: LaunchSpec, features: HostFeatures) -> etree._Element:
    tree = pci.plan(spec.instance)
    return node(
        "devices",
        node("emulator", text=features.emulator),
        *disks.volumes(spec, tree),
        disks.seed(spec, tree),
        *tree.controllers,
        *devices.nothing_else(),
        *network.interfaces(spec, tree),
        *channels.console(spec),
        *channels.guest_channel(spec, tree),
        *devices.hostdevs(spec.instance, tree),
        devices.randomness(tree),
    )
