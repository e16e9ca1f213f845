"""What the running kernel does to keep guests from the host: K1 to K3, K6 to K8 (security-reliability §6).

Decides over `KernelFacts`; `read` fills them. `kvm.nx_huge_pages` is not asked: it is off by itself on CPUs
without the flaw, and K1 tells where the flaw is left open.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hostprep.doctor.finding import MUST, POLICY, Look, all_of, finding, shown
from hostprep.probe.files import HostPath, listing, read_text
from orchestrator.model.doctor import Finding

#: EFI's global variable GUID (UEFI Specification, 3.3).
_SECURE_BOOT = "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
_OFF, _ON = frozenset({"N", "0"}), frozenset({"Y", "1"})
#: Strict translation: an unmapped page is gone at once. `DMA-FQ` flushes later, `identity` not at all.
_STRICT = "DMA"
#: Words of `mitigations=` that leave guests unmitigated, or all (kernel: hw-vuln/attack_vector_controls.rst).
_UNMITIGATED = frozenset({"off", "no_guest_host", "no_guest_guest"})


@dataclass(frozen=True)
class Swap:
    """One swap area; `safe` when nothing readable reaches a disk: dm-crypt or zram."""

    name: str
    safe: bool


@dataclass(frozen=True)
class KernelFacts:
    """None is what could not be read."""

    vulnerabilities: Mapping[str, str | None] | None
    words: Mapping[str, str] | None
    smt: str | None
    core_scheduling: str | None
    #: Type of the default domain, by IOMMU group.
    iommu_types: Mapping[str, str | None] | None
    kvm: Mapping[str, str | None]
    kvm_loaded: bool | None
    #: 0 also where the kernel has none.
    ksm: str | None
    shmem_huge: str | None
    swaps: tuple[Swap, ...] | None
    sleep_states: str | None
    lockdown: str | None
    secure_boot: bool | None
    sig_enforce: str | None


def read(look: Look, core_scheduling: str | None) -> KernelFacts:
    """Read them. `core_scheduling` is libvirt's `sched_core`, which another group reads."""
    root = look.root
    cmdline = read_text(root / "proc/cmdline")
    modules = listing(root / "sys/module")
    vendor = next((each for each in ("kvm_intel", "kvm_amd") if modules and each in modules), None)
    kvm = {
        name: read_text(root / "sys/module" / "kvm" / "parameters" / name)
        for name in ("ignore_msrs", "enable_vmware_backdoor")
    }
    kvm["nested"] = read_text(root / "sys/module" / vendor / "parameters" / "nested") if vendor else None
    return KernelFacts(
        vulnerabilities=_table(root / "sys/devices/system/cpu/vulnerabilities"),
        words=None if cmdline is None else cmdline_words(cmdline),
        smt=read_text(root / "sys/devices/system/cpu/smt/control"),
        core_scheduling=core_scheduling,
        iommu_types=_iommu_types(root / "sys/kernel/iommu_groups"),
        kvm=kvm,
        kvm_loaded=None if modules is None else vendor is not None,
        ksm=_or_absent(root / "sys/kernel/mm", "ksm", read_text(root / "sys/kernel/mm/ksm/run"), "0"),
        shmem_huge=_or_absent(
            root / "sys/kernel/mm",
            "transparent_hugepage",
            read_text(root / "sys/kernel/mm/transparent_hugepage/shmem_enabled"),
            "[never]",
        ),
        swaps=_swaps(root),
        sleep_states=_or_absent(root / "sys/power", "state", read_text(root / "sys/power/state"), ""),
        lockdown=read_text(root / "sys/kernel/security/lockdown"),
        secure_boot=_secure_boot(root),
        sig_enforce=read_text(root / "sys/module/module/parameters/sig_enforce"),
    )


def judge(facts: KernelFacts) -> tuple[Finding, ...]:
    """Answer K1, K2, K3, K6, K7 and K8."""
    return (
        _mitigations(facts),
        finding(
            "K2",
            POLICY,
            _smt(facts),
            expected="SMT off, or libvirt's sched_core vcpus or full",
            read=f"SMT {shown(facts.smt)}, sched_core {shown(facts.core_scheduling)}",
            mend='set sched_core = "vcpus" in /etc/libvirt/qemu.conf, restart virtqemud; or boot with nosmt',
        ),
        _iommu(facts),
        *_kvm(facts),
        *_memory(facts),
        _boot_chain(facts),
    )


def cmdline_words(text: str) -> dict[str, str]:
    """Return the kernel's parameters; the last of the same name counts."""
    return {name: value for name, _, value in (word.partition("=") for word in text.split())}


def _mitigations(facts: KernelFacts) -> Finding:
    flaws = facts.vulnerabilities
    open_ = sorted(f"{name} ({_open_part(said)})" for name, said in (flaws or {}).items() if _open_part(said))
    words = (facts.words or {}).get("mitigations", "")
    off = _UNMITIGATED & set(words.replace(";", ",").split(","))
    unread = not flaws or None in flaws.values() or facts.words is None
    said = [*open_, *([f"mitigations has {' '.join(sorted(off))}"] if off else [])]
    return finding(
        "K1",
        MUST,
        False if open_ or off else None if unread else True,
        expected="no CPU flaw is Vulnerable, mitigations not off",
        read=", ".join(said) or (None if unread else f"{len(flaws or {})} flaws, none open"),
        mend="update microcode and kernel; boot without mitigations=off, no_guest_host or no_guest_guest",
        source="/sys/devices/system/cpu/vulnerabilities or /proc/cmdline",
    )


def _open_part(said: str | None) -> str:
    """Return what the kernel calls Vulnerable in its line on one flaw, which may tell of several."""
    return "; ".join(part.strip() for part in (said or "").split(";") if "Vulnerable" in part)


def _smt(facts: KernelFacts) -> bool | None:
    if facts.smt in ("off", "forceoff", "notsupported", "notimplemented"):
        return True
    if facts.core_scheduling in ("vcpus", "emulator", "full"):
        return True
    return None if facts.smt is None or facts.core_scheduling is None else False


def _iommu(facts: KernelFacts) -> Finding:
    types = facts.iommu_types
    wrong = sorted({kind for kind in (types or {}).values() if kind not in (None, _STRICT)})
    unread = types is None or None in types.values()
    ok = None if types is None else False if not types or wrong else None if unread else True
    said = (
        "no IOMMU group"
        if types == {}
        else ", ".join(wrong) or (f"{len(types)} groups, {_STRICT}" if types else "")
    )
    return finding(
        "K3",
        MUST,
        ok,
        expected=f"IOMMU groups whose domain is {_STRICT} (translated, strict)",
        read=said,
        mend="IOMMU on in the firmware (of a VM: its hypervisor's virtual one); "
        "boot with intel_iommu=on iommu.passthrough=0 iommu.strict=1",
        source="/sys/kernel/iommu_groups",
    )


def _kvm(facts: KernelFacts) -> tuple[Finding, ...]:
    wrong = {name: value for name, value in facts.kvm.items() if value is not None and value not in _OFF}
    unread = not facts.kvm_loaded or None in facts.kvm.values()
    said = [
        f"{name} {shown(None)}" if value is None else f"{name}={value}"
        for name, value in sorted(facts.kvm.items())
    ]
    neither = "neither kvm_intel nor kvm_amd is loaded"
    return (
        finding(
            "kvm.loaded",
            MUST,
            facts.kvm_loaded,
            expected="kvm_intel or kvm_amd is loaded",
            read=None if facts.kvm_loaded is None else "loaded" if facts.kvm_loaded else neither,
            mend="switch virtualisation on in the firmware (of a VM: nested, by its hypervisor), "
            "then: modprobe kvm_intel || modprobe kvm_amd",
            source="/sys/module",
        ),
        finding(
            "K6",
            MUST,
            False if wrong else None if unread else True,
            expected="nested, ignore_msrs and enable_vmware_backdoor off",
            read=", ".join(said) + (f": {neither}" if facts.kvm_loaded is False else ""),
            mend="set nested=0 for kvm_intel and kvm_amd in /etc/modprobe.d, then reload them or reboot",
        ),
    )


def _memory(facts: KernelFacts) -> tuple[Finding, ...]:
    unsafe = [each.name for each in facts.swaps or () if not each.safe]
    sleeping = None if facts.sleep_states is None else "disk" not in facts.sleep_states.split()
    shared_huge = None if facts.shmem_huge is None else _chosen(facts.shmem_huge) in ("never", "deny")
    return (
        finding(
            "K7",
            MUST,
            None if facts.ksm is None else facts.ksm == "0",
            subject="ksm",
            expected="no page is shared between guests (run 0)",
            read=facts.ksm,
            mend="echo 2 > /sys/kernel/mm/ksm/run; systemctl disable --now ksm ksmtuned",
            source="/sys/kernel/mm/ksm/run",
        ),
        finding(
            "K7",
            MUST,
            shared_huge,
            subject="shmem",
            expected="no transparent huge pages for shared memory",
            read=facts.shmem_huge,
            mend="echo never > /sys/kernel/mm/transparent_hugepage/shmem_enabled",
            source="/sys/kernel/mm/transparent_hugepage/shmem_enabled",
        ),
        finding(
            "K7",
            MUST,
            None if facts.swaps is None else not unsafe,
            subject="swap",
            expected="no swap, or encrypted",
            read=", ".join(unsafe) or ("none in clear" if facts.swaps is not None else ""),
            mend="swapoff -a, and take swap out of /etc/fstab or put it on dm-crypt with a random key",
            source="/proc/swaps",
        ),
        finding(
            "K7",
            MUST,
            sleeping,
            subject="hibernation",
            expected="the kernel cannot hibernate",
            read="no sleep states" if facts.sleep_states == "" else facts.sleep_states,
            mend="boot with nohibernate",
            source="/sys/power/state",
        ),
    )


def _boot_chain(facts: KernelFacts) -> Finding:
    locked = None if facts.lockdown is None else _chosen(facts.lockdown) in ("integrity", "confidentiality")
    signed = None if facts.sig_enforce is None else facts.sig_enforce in _ON
    dma = None if facts.words is None else "disable_early_pci_dma" in facts.words.get("efi", "").split(",")
    said = f"lockdown {shown(facts.lockdown)}, Secure Boot {shown(facts.secure_boot)}"
    early = "off" if dma else shown(None) if dma is None else "allowed"
    return finding(
        "K8",
        POLICY,
        all_of(locked, facts.secure_boot, signed, dma),
        expected="lockdown, Secure Boot, signed modules only, no DMA before the IOMMU",
        read=f"{said}, sig_enforce {shown(facts.sig_enforce)}, early PCI DMA {early}",
        mend="Secure Boot on; boot with lockdown=integrity module.sig_enforce=1 efi=disable_early_pci_dma",
    )


def _table(folder: HostPath) -> dict[str, str | None] | None:
    found = listing(folder)
    return None if found is None else {name: read_text(folder / name) for name in found}


def _iommu_types(folder: HostPath) -> dict[str, str | None] | None:
    found = listing(folder)
    return None if found is None else {name: read_text(folder / name / "type") for name in found}


def _or_absent(folder: HostPath, name: str, text: str | None, absent: str) -> str | None:
    """Return the text; `absent` where a listing shows that the kernel has no such thing."""
    if text is not None:
        return text
    found = listing(folder)
    return absent if found is not None and name not in found else None


def _chosen(text: str) -> str:
    """Return the word in brackets, as the kernel marks a choice."""
    return text.partition("[")[2].partition("]")[0]


def _swaps(root: HostPath) -> tuple[Swap, ...] | None:
    text = read_text(root / "proc/swaps")
    if text is None:
        return None
    areas = [line.split()[0] for line in text.splitlines()[1:] if line.split()]
    return tuple(Swap(each, _is_safe(root, each.rpartition("/")[2])) for each in areas)


def _is_safe(root: HostPath, name: str) -> bool:
    if name.startswith("zram"):
        # A zram area with a backing device writes to it in clear.
        return read_text(root / "sys/block" / name / "backing_dev") in (None, "none")
    uuid = read_text(root / "sys/block" / name / "dm" / "uuid") or ""
    return uuid.startswith("CRYPT-")


def _secure_boot(root: HostPath) -> bool | None:
    firmware = listing(root / "sys/firmware")
    if firmware is not None and "efi" not in firmware:
        return False
    try:
        raw = (root / _SECURE_BOOT).read_bytes()
    except OSError:
        return None
    # Four bytes of attributes, then the value.
    return None if len(raw) != 5 else raw[4] == 1
