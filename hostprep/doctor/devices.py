"""GPUs before a tenant meets them: K4, K5, and what otherwise fails at a VM's start.

Asks of each function that the host's rule allows, in the pool or not: its group, reset, BARs, framebuffers,
power and driver. That a GPU was cleaned since its last tenant is the pool's to know, not the host's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from hostprep.doctor.finding import MUST, POLICY, Look, finding, shown
from hostprep.doctor.kernel import cmdline_words
from hostprep.probe.files import HostPath, listing, read_link, read_text
from orchestrator.model import gpus
from orchestrator.model.doctor import Finding
from orchestrator.model.host import HostFacts, PciFunction

_ADDRESS_BITS = re.compile(r"address sizes\s*:\s*(\d+) bits physical")
#: include/linux/ioport.h: a memory window; one that got no address.
_MEMORY, _UNSET = 0x200, 0x20000000
_BARS = 6
_NVIDIA, _NVSWITCH_CLASS = "10de", "0680"
_MIB = 1 << 20


@dataclass(frozen=True)
class GpuFacts:
    """What sysfs says of one GPU beyond the probe; None is what could not be read."""

    d3cold_allowed: str | None
    power_control: str | None
    #: Indexes of memory BARs that the firmware and kernel gave no address.
    unassigned: tuple[int, ...] | None
    framebuffers: tuple[str, ...] | None


@dataclass(frozen=True)
class DeviceFacts:
    """None is what could not be read."""

    host: HostFacts
    gpus: Mapping[str, GpuFacts]
    unsafe_interrupts: str | None
    idle_d3_off: str | None
    words: Mapping[str, str] | None
    relaxed_acs: bool | None
    address_bits: int | None


def read(look: Look, relaxed_acs: bool | None) -> DeviceFacts:
    """Read them. `relaxed_acs` is libvirt's setting, which another group reads."""
    root = look.root
    cmdline, cpuinfo = read_text(root / "proc/cmdline"), read_text(root / "proc/cpuinfo")
    bits = _ADDRESS_BITS.search(cpuinfo or "")
    return DeviceFacts(
        host=look.host,
        gpus={each.address: _gpu(root, each.address) for each in allowed(look.host)},
        unsafe_interrupts=read_text(root / "sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts"),
        idle_d3_off=read_text(root / "sys/module/vfio_pci/parameters/disable_idle_d3"),
        words=None if cmdline is None else cmdline_words(cmdline),
        relaxed_acs=relaxed_acs,
        address_bits=int(bits[1]) if bits else None,
    )


def allowed(host: HostFacts) -> tuple[PciFunction, ...]:
    """The functions that the host's rule takes for GPUs, whether or not they can be handed out now.

    One with the console on it is among them: it may be what the operator meant to hand out.
    """
    return tuple(
        each
        for each in gpus.candidates(host)
        if not gpus.not_allowed(replace(each, boot_display=False), host.gpu_models)
    )


def judge(facts: DeviceFacts) -> tuple[Finding, ...]:
    """Answer K4, K5 and `gpu.*`."""
    return (
        *_vfio(facts),
        *_found(facts),
        *(each for gpu in allowed(facts.host) for each in _one(facts, gpu)),
    )


def _vfio(facts: DeviceFacts) -> tuple[Finding, ...]:
    override = None if facts.words is None else "pcie_acs_override" not in facts.words
    return (
        finding(
            "K4",
            MUST,
            None if facts.unsafe_interrupts is None else facts.unsafe_interrupts in ("N", "0"),
            subject="interrupts",
            expected="vfio refuses hosts without interrupt remapping",
            read=facts.unsafe_interrupts,
            mend="modprobe vfio_iommu_type1, and never with allow_unsafe_interrupts",
            source="/sys/module/vfio_iommu_type1 (is the module loaded?)",
        ),
        finding(
            "K4",
            MUST,
            override,
            subject="acs",
            expected="no pcie_acs_override: groups as the hardware isolates",
            read=None if override is None else "none" if override else "pcie_acs_override",
            mend="take pcie_acs_override off the kernel's command line and reboot",
            source="/proc/cmdline",
        ),
        finding(
            "K4",
            MUST,
            None if facts.relaxed_acs is None else not facts.relaxed_acs,
            subject="libvirt",
            expected="relaxed_acs_check off",
            read=None if facts.relaxed_acs is None else "on" if facts.relaxed_acs else "off",
            mend="take relaxed_acs_check out of /etc/libvirt/qemu.conf and restart virtqemud",
            source="/etc/libvirt/qemu.conf",
        ),
    )


def _found(facts: DeviceFacts) -> tuple[Finding, ...]:
    host = facts.host
    pool, left = gpus.pool(host), gpus.ignored(host)
    switches = [f for f in host.functions if f.vendor == _NVIDIA and f.class_code.startswith(_NVSWITCH_CLASS)]
    bars = sum(sum(each.bars.values()) for each in allowed(host))
    memory = sum(node.memory_mib for node in host.nodes) * _MIB
    # Firmware aligns each window to the next power of two: twice the sum holds them all.
    fits = None if facts.address_bits is None else memory + 2 * bars <= 1 << facts.address_bits
    return (
        finding(
            "gpu.pool",
            POLICY,
            bool(pool),
            expected="at least one GPU to hand out",
            read=f"{len(pool)} of {len(pool) + len(left)}"
            + "".join(f"; {address}: {why}" for address, why in sorted(left.items())),
            mend="mend what is said of each, or set gpu_models in the agent's settings",
        ),
        finding(
            "gpu.window",
            POLICY,
            fits,
            expected="memory and twice all BARs below what the CPUs address",
            read=f"{memory >> 30} GiB, BARs {bars >> 30} GiB, "
            + ("address bits not read" if facts.address_bits is None else f"{facts.address_bits} bits"),
            mend="give each instance fewer GPUs, or use CPUs with more physical address bits",
        ),
        finding(
            "gpu.fabric",
            POLICY,
            not switches,
            expected="no NVSwitch, or its partitions managed",
            read=f"{len(switches)} NVSwitches" if switches else "none",
            mend="GPUs go out one by one with NVLink off: Bulkhead does not drive the Fabric Manager yet",
        ),
    )


def _one(facts: DeviceFacts, gpu: PciFunction) -> tuple[Finding, ...]:
    seen = facts.gpus.get(gpu.address, GpuFacts(None, None, None, None))
    slot = gpu.address.rpartition(".")[0]
    others = [each for each in gpus.strangers(gpu, facts.host) if each.address.rpartition(".")[0] != slot]
    told = ", ".join(f"{each.address} ({each.driver or 'no driver'})" for each in others)
    return (
        finding(
            "K4",
            MUST,
            gpu.group is not None and not others,
            subject=gpu.address,
            expected="an IOMMU group with nothing of another device in it",
            read="in no group"
            if gpu.group is None
            else f"group {gpu.group}" + (f" with {told}" if told else ""),
            mend="switch the IOMMU on (K3)"
            if gpu.group is None
            else "move it to a slot behind a port with ACS, or switch ACS on in the firmware",
        ),
        finding(
            "K5",
            MUST,
            bool(gpu.reset_methods),
            subject=gpu.address,
            expected="a way to reset it",
            read=" ".join(gpu.reset_methods) or "none",
            mend="update the kernel or the GPU's firmware; it cannot be handed out",
        ),
        finding(
            "gpu.bars",
            POLICY,
            None if seen.unassigned is None else bool(gpu.bars) and not seen.unassigned,
            subject=gpu.address,
            expected="every BAR has an address",
            read=None
            if seen.unassigned is None
            else f"without one: {list(seen.unassigned)}"
            if seen.unassigned
            else f"{len(gpu.bars)} BARs",
            mend="switch Above 4G Decoding and Resizable BAR on in the firmware",
            source=f"/sys/bus/pci/devices/{gpu.address}/resource",
        ),
        *_host_holds(facts, gpu, seen),
    )


def _host_holds(facts: DeviceFacts, gpu: PciFunction, seen: GpuFacts) -> tuple[Finding, ...]:
    """What the host itself does with a GPU."""
    consoles = () if seen.framebuffers is None else seen.framebuffers
    held = [*consoles, *(["the firmware's console"] if gpu.boot_display else [])]
    awake = (seen.d3cold_allowed == "0", seen.power_control == "on", facts.idle_d3_off in ("Y", "1"))
    unread = None in (seen.d3cold_allowed, seen.power_control)
    nodes = [each for each in facts.host.nodes if each.cpus]
    return (
        finding(
            "gpu.framebuffer",
            POLICY,
            False if held else None if seen.framebuffers is None else True,
            subject=gpu.address,
            expected="no console on it",
            read=", ".join(held) or (None if seen.framebuffers is None else "none"),
            source="/sys/class/graphics",
            mend="boot with video=efifb:off, or make the board's own display the primary one",
        ),
        finding(
            "gpu.power",
            POLICY,
            True if any(awake) else None if unread else False,
            subject=gpu.address,
            expected="it never falls into D3cold",
            read=f"d3cold_allowed {shown(seen.d3cold_allowed)}, power/control {shown(seen.power_control)}",
            mend=f"echo 0 > /sys/bus/pci/devices/{gpu.address}/d3cold_allowed",
        ),
        finding(
            "gpu.driver",
            POLICY,
            gpu.driver is None or "vfio" in gpu.driver,
            subject=gpu.address,
            expected="no driver of the host holds it",
            read=gpu.driver or "none",
            mend=f"let vfio-pci have it at boot (vfio-pci.ids={gpu.vendor}:{gpu.device}), {gpu.driver} not",
        ),
        finding(
            "gpu.numa",
            POLICY,
            gpu.node >= 0 or len(nodes) < 2,
            subject=gpu.address,
            expected="its NUMA node is known",
            read=gpu.node if gpu.node >= 0 else f"unknown; nodes with CPUs: {len(nodes)}",
            mend="update the firmware; until then it is placed as near to no node",
        ),
    )


def _gpu(root: HostPath, address: str) -> GpuFacts:
    folder = root / "sys/bus/pci/devices" / address
    return GpuFacts(
        d3cold_allowed=read_text(folder / "d3cold_allowed"),
        power_control=read_text(folder / "power" / "control"),
        unassigned=_unassigned(folder / "resource"),
        framebuffers=_framebuffers(root / "sys/class", address),
    )


def _unassigned(path: HostPath) -> tuple[int, ...] | None:
    text = read_text(path)
    if text is None:
        return None
    found: list[int] = []
    for index, line in enumerate(text.splitlines()[:_BARS]):
        start, _end, flags = (int(part, 16) for part in line.split())
        if flags & _MEMORY and (flags & _UNSET or start == 0):
            found.append(index)
    return tuple(found)


def _framebuffers(classes: HostPath, address: str) -> tuple[str, ...] | None:
    known = listing(classes)
    if known is not None and "graphics" not in known:
        return ()
    found = listing(classes / "graphics")
    if found is None:
        return None
    links = {name: read_link(classes / "graphics" / name) for name in found if name != "fbcon"}
    return tuple(name for name, link in links.items() if link is not None and address in link.parts)
