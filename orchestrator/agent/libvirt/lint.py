"""Finds in a definition what a tenant's VM must never have, or lacks what it must have.

Written apart from the builders and by what is allowed, not by what is forbidden: a device or attribute nobody
thought of is a finding. Pure. The driver refuses to define what has findings, and looks again at what libvirt
made of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from lxml import etree

from orchestrator.agent.libvirt.readback import parse
from orchestrator.agent.libvirt.xml.metadata import NAMESPACE

Finder = Callable[[etree._Element], Iterator[str]]

#: What a definition may consist of; `resource` names the cgroup partition, which libvirt fills in.
# fmt: off
_PARTS = frozenset({
    "name", "uuid", "metadata", "memory", "currentMemory", "memoryBacking", "vcpu", "cputune", "numatune",
    "resource", "os", "features", "cpu", "clock", "on_poweroff", "on_reboot", "on_crash", "pm", "devices",
    "seclabel",
})
# fmt: on
_LABEL = re.compile(r"^\+([1-9][0-9]*):\+\1$")
_SEED_ALIAS = "ua-seed"


def lint(definition: str) -> tuple[str, ...]:
    """Return one sentence per finding; empty when there is nothing to say against it."""
    domain = parse(definition)
    return tuple(finding for finder in _FINDERS for finding in finder(domain))


def _foreign(domain: etree._Element) -> Iterator[str]:
    """No `<qemu:commandline>`, nothing else that goes past libvirt, and no part that nobody thought of."""
    for part in domain:
        if isinstance(part.tag, str) and etree.QName(part).namespace is None and part.tag not in _PARTS:
            yield f"element {part.tag} is not among the allowed ones"
    for each in domain.iter():
        if not isinstance(each.tag, str):
            continue
        space = etree.QName(each).namespace
        if space is not None and space != NAMESPACE:
            yield f"element {etree.QName(each).localname} of the namespace {space}"


def _machine(domain: etree._Element) -> Iterator[str]:
    if domain.get("type") != "kvm":
        yield f"domain type {domain.get('type')}, not kvm"
    for tag in ("kernel", "initrd", "cmdline", "dtb"):
        if domain.find(f"os/{tag}") is not None:
            yield f"direct boot: os/{tag}"
    for tag, wanted in (("on_crash", "destroy"), ("on_poweroff", "destroy")):
        if domain.findtext(tag) != wanted:
            yield f"{tag} is {domain.findtext(tag)}, not {wanted}"
    for name in ("pmu", "vmport", "smm"):
        if domain.find(f"features/{name}[@state='off']") is None:
            yield f"{name} is not off"


def _memory(domain: etree._Element) -> Iterator[str]:
    memory = domain.find("memory")
    if memory is None or memory.get("dumpCore") != "off":
        yield "guest memory may stand in a core dump"
    if domain.find("memoryBacking/nosharepages") is None:
        yield "guest pages may be merged with others (nosharepages is missing)"
    if domain.find("memoryBacking/access") is not None or domain.find("memoryBacking/source") is not None:
        yield "guest memory is shared or backed by a file"
    nodes = domain.findall("numatune/memory") + domain.findall("numatune/memnode")
    cells = len(domain.findall("cpu/numa/cell"))
    if len(nodes) != 1 + cells or not cells:
        yield f"{cells} guest cells with {max(len(nodes) - 1, 0)} memory policies"
    if any(each.get("mode") != "strict" for each in nodes):
        yield "a memory policy is not strict"


def _cpus(domain: etree._Element) -> Iterator[str]:
    count = int(domain.findtext("vcpu") or "0")
    pinned = {pin.get("vcpu"): pin.get("cpuset", "") for pin in domain.iterfind("cputune/vcpupin")}
    loose = [str(vcpu) for vcpu in range(count) if not pinned.get(str(vcpu), "").isdigit()]
    if not count or loose:
        yield f"vCPUs {','.join(loose)} are not pinned to one host CPU each"
    if len(set(pinned.values())) != len(pinned):
        yield "two vCPUs share a host CPU"
    if domain.find("cputune/emulatorpin") is None:
        yield "QEMU's own threads are not pinned"


def _labels(domain: etree._Element) -> Iterator[str]:
    labels = {label.get("model"): label for label in domain.iterfind("seclabel")}
    dac = labels.get("dac")
    if dac is None or dac.get("type") != "static" or dac.get("relabel") != "yes":
        yield "no static label of the user that QEMU runs as"
    elif not _LABEL.match(dac.findtext("label") or ""):
        yield f"QEMU would run as {dac.findtext('label')}, not as one uid and gid of its own"
    for model, label in labels.items():
        if model != "dac" and (label.get("type"), label.get("relabel")) != ("dynamic", "yes"):
            yield f"label of {model} is not dynamic"


def _devices(domain: etree._Element) -> Iterator[str]:
    for device in domain.iterfind("devices/*"):
        allowed = _ALLOWED.get(str(device.tag))
        if allowed is None:
            yield f"device {device.tag} is not among the allowed ones"
        else:
            yield from allowed(device)
    for needed in ("controller[@type='usb'][@model='none']", "memballoon[@model='none']"):
        if domain.find(f"devices/{needed}") is None:
            yield f"devices lack {needed}: libvirt would add one"


def _nothing(_: etree._Element) -> Iterator[str]:
    yield from ()


def _disk(disk: etree._Element) -> Iterator[str]:
    name = _name(disk)
    driver, target = disk.find("driver"), disk.find("target")
    if (disk.get("type"), disk.get("device")) != ("file", "disk"):
        yield f"disk {name} is a {disk.get('type')} {disk.get('device')}"
    if driver is None or (driver.get("name"), driver.get("type")) != ("qemu", "raw"):
        yield f"disk {name} does not say that it is raw: QEMU would probe the tenant's bytes"
    if target is None or target.get("bus") != "virtio":
        yield f"disk {name} is not on virtio"
    if disk.find("backingStore/source") is not None:
        yield f"disk {name} has a backing file"
    for part in ("mirror", "transient", "shareable"):
        if disk.find(part) is not None:
            yield f"disk {name} is {part}"
    if disk.find("readonly") is not None:
        if name != _SEED_ALIAS:
            yield f"disk {name} is read-only and not the seed"
        return
    encryption = disk.find("source/encryption")
    if encryption is None or (encryption.get("format"), encryption.get("engine")) != ("luks", "qemu"):
        yield f"disk {name} is not encrypted by QEMU's LUKS"
    elif encryption.find("secret[@type='passphrase']") is None:
        yield f"disk {name} names no secret"


def _controller(controller: etree._Element) -> Iterator[str]:
    kind, model = controller.get("type"), controller.get("model")
    # q35 always has the SATA controller of its chipset; nothing may hang on it (disks are on virtio).
    if kind not in ("pci", "virtio-serial", "sata") and (kind, model) != ("usb", "none"):
        yield f"controller {kind} {model or ''}".rstrip()


def _interface(interface: etree._Element) -> Iterator[str]:
    name = _name(interface)
    if interface.get("type") != "bridge":
        yield f"interface {name} is of type {interface.get('type')}"
    if interface.find("virtualport[@type='openvswitch']/parameters[@interfaceid]") is None:
        yield f"interface {name} is not plugged into Open vSwitch under an id"
    vlan = interface.find("vlan")
    tags = [tag.get("id") for tag in interface.iterfind("vlan/tag")]
    if vlan is None or vlan.get("trunk") != "yes" or tags != ["4095"]:
        yield f"interface {name} would be plugged in open"


def _hostdev(hostdev: etree._Element) -> Iterator[str]:
    name = _name(hostdev)
    if (hostdev.get("mode"), hostdev.get("type")) != ("subsystem", "pci"):
        yield f"hostdev {name} is a {hostdev.get('mode')} {hostdev.get('type')}"
    if hostdev.get("managed") != "no":
        yield f"hostdev {name} would be bound by libvirt"
    if hostdev.find("rom[@bar='off']") is None:
        yield f"hostdev {name} shows its option ROM"


def _channel(channel: etree._Element) -> Iterator[str]:
    source, target = channel.find("source"), channel.find("target")
    bound = channel.get("type") == "unix" and source is not None and source.get("mode") == "bind"
    if not bound or target is None or target.get("type") != "virtio":
        yield f"channel {_name(channel)} is not a socket of ours on virtio"


def _serial(serial: etree._Element) -> Iterator[str]:
    if serial.get("type") != "pty":
        yield f"{serial.tag} of type {serial.get('type')}"


def _is(**wanted: str) -> Finder:
    def find(device: etree._Element) -> Iterator[str]:
        for name, value in wanted.items():
            if device.get(name) != value:
                yield f"{device.tag} with {name} {device.get(name)}, not {value}"

    return find


def _name(device: etree._Element) -> str:
    alias = device.find("alias")
    return alias.get("name", "without a name") if alias is not None else "without a name"


def _rng(rng: etree._Element) -> Iterator[str]:
    if rng.findtext("backend[@model='random']") != "/dev/urandom" or rng.find("rate") is None:
        yield "rng is not /dev/urandom at a limited rate"


#: What may be there at all. The last three are what libvirt adds to every q35 machine by itself.
_ALLOWED: dict[str, Finder] = {
    "emulator": _nothing,
    "disk": _disk,
    "controller": _controller,
    "interface": _interface,
    "serial": _serial,
    "console": _serial,
    "channel": _channel,
    "hostdev": _hostdev,
    "memballoon": _is(model="none"),
    "rng": _rng,
    "input": _is(bus="ps2"),
    "audio": _is(type="none"),
    "watchdog": _is(model="itco"),
}

_FINDERS: tuple[Finder, ...] = (_foreign, _machine, _memory, _cpus, _labels, _devices)
