"""Each rule of the lint notices when its fact is flipped in a definition that has no findings."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from lxml import etree

from orchestrator.agent.libvirt.lint import lint
from orchestrator.agent.libvirt.readback import parse
from tests.unit.libvirt.golden import golden

Change = Callable[[etree._Element], None]


def put(where: str, xml: str) -> Change:
    """Add an element below the first match (`.` is the domain)."""

    def change(domain: etree._Element) -> None:
        parent = domain if where == "." else domain.find(where)
        assert parent is not None, where
        parent.append(etree.fromstring(xml))

    return change


def cut(where: str) -> Change:
    """Take every match away."""

    def change(domain: etree._Element) -> None:
        found = domain.findall(where)
        assert found, where
        for each in found:
            each.getparent().remove(each)

    return change


def say(where: str, attribute: str, value: str | None) -> Change:
    """Set an attribute of the first match, or take it away."""

    def change(domain: etree._Element) -> None:
        found = domain if where == "." else domain.find(where)
        assert found is not None, where
        if value is None:
            del found.attrib[attribute]
        else:
            found.set(attribute, value)

    return change


def text(where: str, words: str) -> Change:
    """Change what stands in the first match."""

    def change(domain: etree._Element) -> None:
        found = domain.find(where)
        assert found is not None, where
        found.text = words

    return change


QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"
VOLUME, SEED, PORT = "devices/disk", "devices/disk[readonly]", "devices/interface"
GPU, CHANNEL = "devices/hostdev", "devices/channel"

CASES: dict[str, tuple[Change, str]] = {
    "raw QEMU arguments": (
        put(".", f'<q:commandline xmlns:q="{QEMU}"><q:arg value="-s"/></q:commandline>'),
        "element commandline of the namespace",
    ),
    "raw QEMU arguments, deeper": (put("devices", f'<q:x xmlns:q="{QEMU}"/>'), "of the namespace"),
    "unknown part": (put(".", "<iothreads>2</iothreads>"), "element iothreads is not among"),
    "launch security": (put(".", "<launchSecurity type='sev'/>"), "element launchSecurity"),
    "emulated": (say(".", "type", "qemu"), "domain type qemu, not kvm"),
    "kernel": (put("os", "<kernel>/boot/vmlinuz</kernel>"), "direct boot: os/kernel"),
    "initrd": (put("os", "<initrd>/boot/initrd</initrd>"), "direct boot: os/initrd"),
    "cmdline": (put("os", "<cmdline>init=/bin/sh</cmdline>"), "direct boot: os/cmdline"),
    "dtb": (put("os", "<dtb>/boot/dtb</dtb>"), "direct boot: os/dtb"),
    "crash restarts": (text("on_crash", "restart"), "on_crash is restart"),
    "crash unsaid": (cut("on_crash"), "on_crash is None"),
    "power-off restarts": (text("on_poweroff", "restart"), "on_poweroff is restart"),
    "pmu on": (say("features/pmu", "state", "on"), "pmu is not off"),
    "pmu unsaid": (cut("features/pmu"), "pmu is not off"),
    "vmport unsaid": (cut("features/vmport"), "vmport is not off"),
    "smm on": (say("features/smm", "state", "on"), "smm is not off"),
    "core dumps": (say("memory", "dumpCore", "on"), "core dump"),
    "core dumps unsaid": (say("memory", "dumpCore", None), "core dump"),
    "merged pages": (cut("memoryBacking/nosharepages"), "may be merged"),
    "no backing at all": (cut("memoryBacking"), "may be merged"),
    "shared memory": (put("memoryBacking", "<access mode='shared'/>"), "shared or backed by a file"),
    "memory in a file": (put("memoryBacking", "<source type='file'/>"), "shared or backed by a file"),
    "no memory policy": (cut("numatune"), "1 guest cells with 0 memory policies"),
    "a cell without policy": (cut("numatune/memnode"), "1 guest cells with 0 memory policies"),
    "no cells": (cut("cpu/numa/cell"), "0 guest cells"),
    "lax memory": (say("numatune/memory", "mode", "preferred"), "not strict"),
    "lax cell": (say("numatune/memnode", "mode", "interleave"), "not strict"),
    "no pin": (cut("cputune/vcpupin"), "vCPUs 0 are not pinned"),
    "pinned to many": (say("cputune/vcpupin", "cpuset", "2-3"), "vCPUs 0 are not pinned"),
    "more vCPUs than pins": (text("vcpu", "2"), "vCPUs 1 are not pinned"),
    "no vCPUs": (text("vcpu", "0"), "are not pinned"),
    "shared host CPU": (put("cputune", "<vcpupin vcpu='1' cpuset='2'/>"), "two vCPUs share a host CPU"),
    "loose emulator": (cut("cputune/emulatorpin"), "QEMU's own threads"),
    "no user": (cut("seclabel[@model='dac']"), "no static label"),
    "user chosen by libvirt": (say("seclabel[@model='dac']", "type", "dynamic"), "no static label"),
    "files not relabelled": (say("seclabel[@model='dac']", "relabel", "no"), "no static label"),
    "root": (text("seclabel[@model='dac']/label", "+0:+0"), "would run as +0:+0"),
    "group of others": (text("seclabel[@model='dac']/label", "+2100007:+64055"), "as one uid and gid"),
    "user by name": (text("seclabel[@model='dac']/label", "libvirt-qemu:kvm"), "libvirt-qemu:kvm"),
    "unconfined": (say("seclabel[@model='apparmor']", "type", "none"), "label of apparmor"),
    "confinement shared": (say("seclabel[@model='apparmor']", "relabel", "no"), "label of apparmor"),
    "USB": (say("devices/controller[@type='usb']", "model", "qemu-xhci"), "controller usb qemu-xhci"),
    "USB unsaid": (cut("devices/controller[@type='usb']"), "devices lack controller[@type='usb']"),
    "balloon": (say("devices/memballoon", "model", "virtio"), "memballoon with model virtio"),
    "balloon unsaid": (cut("devices/memballoon"), "devices lack memballoon"),
    "SCSI": (put("devices", "<controller type='scsi' model='virtio-scsi'/>"), "controller scsi virtio-scsi"),
    "USB tablet": (put("devices", "<input type='tablet' bus='usb'/>"), "input with bus usb"),
    "sound to SPICE": (put("devices", "<audio id='1' type='spice'/>"), "audio with type spice"),
    "another watchdog": (put("devices", "<watchdog model='i6300esb'/>"), "watchdog with model i6300esb"),
    "cdrom": (say(VOLUME, "device", "cdrom"), "disk ua-vol_1 is a file cdrom"),
    "host disk": (say(VOLUME, "type", "block"), "disk ua-vol_1 is a block disk"),
    "qcow2": (say(f"{VOLUME}/driver", "type", "qcow2"), "does not say that it is raw"),
    "format probed": (cut(f"{VOLUME}/driver"), "does not say that it is raw"),
    "seed probed": (cut(f"{SEED}/driver"), "disk ua-seed does not say that it is raw"),
    "on SATA": (say(f"{VOLUME}/target", "bus", "sata"), "is not on virtio"),
    "backing file": (
        put(VOLUME, "<backingStore type='file'><source file='/etc/shadow'/></backingStore>"),
        "has a backing file",
    ),
    "mirrored": (put(VOLUME, "<mirror type='file'/>"), "is mirror"),
    "transient": (put(VOLUME, "<transient/>"), "is transient"),
    "shareable": (put(VOLUME, "<shareable/>"), "is shareable"),
    "read-only volume": (put(VOLUME, "<readonly/>"), "is read-only and not the seed"),
    "clear volume": (cut(f"{VOLUME}/source/encryption"), "is not encrypted"),
    "writable seed": (cut(f"{SEED}/readonly"), "disk ua-seed is not encrypted"),
    "other engine": (say(f"{VOLUME}/source/encryption", "engine", "librbd"), "is not encrypted by QEMU"),
    "other format": (say(f"{VOLUME}/source/encryption", "format", "qcow"), "is not encrypted by QEMU"),
    "no secret": (cut(f"{VOLUME}/source/encryption/secret"), "names no secret"),
    "macvtap": (say(PORT, "type", "direct"), "interface ua-prt_1 is of type direct"),
    "plain bridge": (cut(f"{PORT}/virtualport"), "not plugged into Open vSwitch"),
    "no interface id": (cut(f"{PORT}/virtualport/parameters"), "not plugged into Open vSwitch"),
    "all VLANs": (cut(f"{PORT}/vlan"), "would be plugged in open"),
    "live VLAN": (say(f"{PORT}/vlan/tag", "id", "101"), "would be plugged in open"),
    "one VLAN more": (put(f"{PORT}/vlan", "<tag id='101'/>"), "would be plugged in open"),
    "access port": (say(f"{PORT}/vlan", "trunk", None), "would be plugged in open"),
    "mdev": (say(GPU, "type", "mdev"), "hostdev ua-gpu_1 is a subsystem mdev"),
    "host device by capability": (say(GPU, "mode", "capabilities"), "is a capabilities pci"),
    "bound by libvirt": (say(GPU, "managed", "yes"), "would be bound by libvirt"),
    "binding unsaid": (say(GPU, "managed", None), "would be bound by libvirt"),
    "option ROM": (cut(f"{GPU}/rom"), "shows its option ROM"),
    "ROM file": (say(f"{GPU}/rom", "bar", "on"), "shows its option ROM"),
    "channel dials": (say(f"{CHANNEL}/source", "mode", "connect"), "is not a socket of ours"),
    "SPICE agent": (say(CHANNEL, "type", "spicevmc"), "is not a socket of ours"),
    "channel without source": (cut(f"{CHANNEL}/source"), "is not a socket of ours"),
    "channel elsewhere": (say(f"{CHANNEL}/target", "type", "guestfwd"), "is not a socket of ours"),
    "console on TCP": (say("devices/serial", "type", "tcp"), "serial of type tcp"),
    "second console": (put("devices", "<console type='unix'/>"), "console of type unix"),
    "blocking randomness": (text("devices/rng/backend", "/dev/hwrng"), "rng is not /dev/urandom"),
    "unlimited randomness": (cut("devices/rng/rate"), "rng is not /dev/urandom at a limited rate"),
}

#: Devices of libvirt's that no tenant has.
FORBIDDEN = [
    "graphics",
    "video",
    "sound",
    "redirdev",
    "redirfilter",
    "smartcard",
    "tpm",
    "hub",
    "filesystem",
    "shmem",
    "vsock",
    "nvram",
    "panic",
    "parallel",
    "lease",
    "memory",
    "iommu",
    "crypto",
    "pstore",
]


def changed(change: Change, name: str = "one_gpu_bios") -> tuple[str, ...]:
    domain = parse(golden(name))
    change(domain)
    return lint(etree.tostring(domain, encoding="unicode"))


@pytest.mark.parametrize("case", CASES)
def test_flipped_fact_is_found(case):
    change, words = CASES[case]
    found = changed(change)
    assert any(words in finding for finding in found), found


@pytest.mark.parametrize("tag", FORBIDDEN)
def test_device_that_nobody_allowed_is_found(tag):
    assert changed(put("devices", f"<{tag}/>")) == (f"device {tag} is not among the allowed ones",)


@pytest.mark.parametrize(
    "added",
    [
        "<input type='keyboard' bus='ps2'/>",
        "<input type='mouse' bus='ps2'/>",
        "<audio id='1' type='none'/>",
        "<watchdog model='itco' action='reset'/>",
        "<controller type='sata' index='0'/>",
    ],
)
def test_what_libvirt_adds_by_itself_is_no_finding(added):
    assert changed(put("devices", added)) == ()


def test_each_cell_needs_its_own_policy():
    found = changed(cut("numatune/memnode[@cellid='1']"), "two_cells_two_gpus_uefi_smt")
    assert found == ("2 guest cells with 1 memory policies",)


def test_entities_are_not_followed(tmp_path):
    (tmp_path / "told").write_text("destroy")
    hostile = f'<!DOCTYPE d [<!ENTITY e SYSTEM "file://{tmp_path}/told">]>' + golden("one_gpu_bios").replace(
        "<on_crash>destroy</on_crash>", "<on_crash>&e;</on_crash>"
    )
    assert "on_crash is , not destroy" in lint(hostile)
