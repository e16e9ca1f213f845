"""What the host keeps to itself and what it has ready for guests: `cpu.host`, `mod.loaded`, /dev/kvm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hostprep.doctor.finding import MUST, POLICY, Look, finding, no_answer
from hostprep.probe.files import listing, read_text
from orchestrator.model.cpus import format_cpu_list, parse_cpu_list
from orchestrator.model.doctor import Finding

#: Where services, people and the first process live.
SLICES = ("init.scope", "system.slice", "user.slice")
MODULES = ("openvswitch", "tun", "vfio_pci", "vhost_net")
#: By way of the first process: the agent's unit has a /dev of its own, without it.
KVM = ("stat", "-L", "-c", "%a", "/proc/1/root/dev/kvm")
_GROUPS, _CPUS = "sys/fs/cgroup", "cpuset.cpus.effective"
_AFFINITY = "proc/irq/default_smp_affinity"


@dataclass(frozen=True)
class ShareFacts:
    """None is what could not be read."""

    host_cpus: frozenset[int]
    #: CPUs of each slice that there is.
    slices: Mapping[str, frozenset[int] | None] | None
    interrupts: frozenset[int] | None
    modules: frozenset[str] | None
    kvm_mode: str | None


def read(look: Look) -> ShareFacts:
    """Read them."""
    groups, modules = listing(look.root / _GROUPS), listing(look.root / "sys/module")
    return ShareFacts(
        host_cpus=look.host.host_cpus,
        slices=None if groups is None else {
            each: _slice(look, each) for each in SLICES if each in groups
        },
        interrupts=_mask(read_text(look.root / _AFFINITY)),
        modules=None if modules is None else frozenset(modules),
        kvm_mode=look.run(KVM),
    )  # fmt: skip


def judge(facts: ShareFacts) -> tuple[Finding, ...]:
    """Answer `cpu.host`, `mod.loaded` and who may open /dev/kvm."""
    own, slices, interrupts = facts.host_cpus, facts.slices or {}, facts.interrupts
    beyond = [name for name, cpus in slices.items() if cpus is not None and cpus - own]
    unread = not own or not slices or None in slices.values()
    missing = [] if facts.modules is None else [each for each in MODULES if each not in facts.modules]
    mode = (facts.kvm_mode or "").strip()
    return (
        finding("cpu.host", POLICY, False if beyond and own else None if unread else True,
                subject="services", expected=f"services stay on the host's own CPUs: {format_cpu_list(own)}",
                read=", ".join(f"{name} on {format_cpu_list(slices[name] or frozenset())}" for name in beyond)
                or (None if unread else "they do"),
                mend="AllowedCPUs in a drop-in of init.scope, system.slice and user.slice, then reboot",
                source=f"/{_GROUPS}/*/cpuset.cpus.effective, or the host's own CPUs"),
        finding("cpu.host", POLICY, None if interrupts is None or not own else not interrupts - own,
                subject="interrupts", expected=f"interrupts begin on the host's CPUs: {format_cpu_list(own)}",
                read=None if interrupts is None else format_cpu_list(interrupts),
                mend=f"boot with irqaffinity={format_cpu_list(own)}", source=f"/{_AFFINITY}"),
        finding("mod.loaded", POLICY, None if facts.modules is None else not missing,
                expected=f"loaded: {' '.join(MODULES)}",
                read=None if facts.modules is None else f"not: {' '.join(missing)}" if missing else "all are",
                mend="modprobe -a " + " ".join(missing), source="/sys/module"),
        finding("kvm.loaded", MUST, _everybody(mode), subject="/dev/kvm",
                expected="every VM's own uid may open it", read=mode,
                mend="chmod 666 /dev/kvm, and the same by a rule of udev", source=no_answer("stat /dev/kvm")),
    )  # fmt: skip


def _slice(look: Look, name: str) -> frozenset[int] | None:
    """Return the CPUs of a slice; all of them where its listing shows that nothing bounds it."""
    folder = look.root / _GROUPS / name
    there = listing(folder)
    if there is not None and _CPUS not in there:
        return frozenset(each.cpu for each in look.host.cpus)
    text = read_text(folder / _CPUS)
    return None if text is None else _cpus(text)


def _everybody(mode: str) -> bool | None:
    """Whether an octal mode lets others read and write."""
    try:
        return int(mode, 8) & 0o006 == 0o006 if mode else None
    except ValueError:
        return None


def _cpus(text: str) -> frozenset[int] | None:
    try:
        return parse_cpu_list(text)
    except ValueError:
        return None


def _mask(text: str | None) -> frozenset[int] | None:
    """Read a mask in hexadecimal, 32 CPUs to a group, the highest first."""
    try:
        number = int((text or "").replace(",", "").strip(), 16)
    except ValueError:
        return None
    return frozenset(bit for bit in range(number.bit_length()) if number >> bit & 1)
