"""Disks: the encrypted volumes and the read-only seed, all on virtio-blk.

QEMU itself does the encryption: what it writes to the file is ciphertext. The passphrase is in a libvirt
secret only while the VM starts. Called by `domain`; `disk_serial` also by who looks from inside the guest.
"""

from __future__ import annotations

import hashlib

from lxml import etree

from orchestrator.agent.libvirt.xml.elements import alias, node
from orchestrator.agent.libvirt.xml.pci import SEED, PciTree
from orchestrator.model.launch import LaunchSpec
from orchestrator.model.naming import derived_uuid

#: virtio-blk's identification field.
_SERIAL_LIMIT = 20


def secret_uuid(volume: str) -> str:
    """The libvirt secret that holds a volume's passphrase while its VM starts."""
    return derived_uuid("volume", volume)


def disk_serial(volume: str) -> str:
    """Name the disk inside the guest (/dev/disk/by-id/virtio-<serial>): the volume's id where it fits.

    Longer ids become `vol-` and 16 hex digits of their SHA-256; no id has a dash, so no name means two.
    """
    if len(volume) <= _SERIAL_LIMIT:
        return volume
    return "vol-" + hashlib.sha256(volume.encode()).hexdigest()[:16]


def volumes(spec: LaunchSpec, tree: PciTree) -> list[etree._Element]:
    """All volumes in order; the first one boots."""
    return [
        _volume(spec.volume_paths[volume.id], volume.id, index, tree)
        for index, volume in enumerate(spec.instance.volumes)
    ]


def seed(spec: LaunchSpec, tree: PciTree) -> etree._Element:
    """The NoCloud seed; last, so that it never shifts a volume's name."""
    return node(
        "disk",
        node("driver", name="qemu", type="raw"),
        node("source", file=spec.seed_path),
        node("target", dev=_letters(len(spec.instance.volumes)), bus="virtio"),
        node("readonly"),
        node("serial", text="seed"),
        alias(SEED),
        tree.address(SEED),
        type="file",
        device="disk",
    )


def _volume(path: str, volume: str, index: int, tree: PciTree) -> etree._Element:
    """One LUKS file.

    `cache=none`: a tenant's data does not linger in the host's page cache, and flushes are real.
    """
    secret = node("secret", type="passphrase", uuid=secret_uuid(volume))
    return node(
        "disk",
        node("driver", name="qemu", type="raw", cache="none", io="threads", discard="unmap"),
        node("source", node("encryption", secret, format="luks", engine="qemu"), file=path),
        node("target", dev=_letters(index), bus="virtio"),
        node("serial", text=disk_serial(volume)),
        node("boot", order=1) if index == 0 else None,
        alias(volume),
        tree.address(volume),
        type="file",
        device="disk",
    )


def _letters(index: int) -> str:
    """vda to vdz, then vdaa: libvirt's names for the order of disks."""
    name = ""
    index += 1
    while index:
        index, rest = divmod(index - 1, 26)
        name = chr(ord("a") + rest) + name
    return "vd" + name
