"""The kernel's knobs: K9 (sysctl) and K10 (command line), as the running kernel has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hostprep.doctor.finding import MUST, NOT_READ, POLICY, Look, finding
from hostprep.doctor.kernel import cmdline_words
from hostprep.probe.files import HostPath, listing, read_text
from orchestrator.model.doctor import Finding

#: Values that pass, the one to set first. Debian's kernel knows 3 of perf_event_paranoid, Ubuntu's 4.
SYSCTLS: Mapping[str, tuple[str, ...]] = {
    "dev.tty.ldisc_autoload": ("0",),
    "fs.protected_fifos": ("2",),
    "fs.protected_hardlinks": ("1",),
    "fs.protected_regular": ("2",),
    "fs.protected_symlinks": ("1",),
    "fs.suid_dumpable": ("0",),
    "kernel.dmesg_restrict": ("1",),
    "kernel.kexec_load_disabled": ("1",),
    "kernel.kptr_restrict": ("2",),
    "kernel.perf_event_paranoid": ("3", "4"),
    "kernel.sysrq": ("0",),
    "kernel.unprivileged_bpf_disabled": ("1", "2"),
    "kernel.yama.ptrace_scope": ("2", "3"),
    "net.core.bpf_jit_harden": ("2",),
    "net.ipv4.conf.all.accept_redirects": ("0",),
    "net.ipv4.conf.all.accept_source_route": ("0",),
    "net.ipv4.conf.default.accept_redirects": ("0",),
    "net.ipv4.conf.default.accept_source_route": ("0",),
    "net.ipv4.tcp_syncookies": ("1",),
    "net.ipv6.conf.all.accept_redirects": ("0",),
    "net.ipv6.conf.default.accept_redirects": ("0",),
    "vm.unprivileged_userfaultfd": ("0",),
}
#: A kernel that lists none of these was built without kexec, without SysRq: nothing is left to switch off.
ABSENT_IS_OFF = frozenset({"kernel.kexec_load_disabled", "kernel.sysrq"})
_IPV6 = "ipv6"
#: QEMU may use io_uring for disks; where it does, this one is not set.
IO_URING = "kernel.io_uring_disabled"
PARAMETERS: Mapping[str, str] = {
    "debugfs": "off",
    "init_on_alloc": "1",
    "init_on_free": "1",
    "page_alloc.shuffle": "1",
    "randomize_kstack_offset": "1",
    "slab_nomerge": "",
    "vsyscall": "none",
}
#: Where the kernel writes `on` for what we ask as `1`, both are the same.
_SAME = {"on": "1", "y": "1", "Y": "1"}


@dataclass(frozen=True)
class KnobFacts:
    """None is what could not be read."""

    sysctls: Mapping[str, str | None]
    words: Mapping[str, str] | None


def read(look: Look) -> KnobFacts:
    """Read them."""
    folder = look.root / "proc/sys"
    cmdline = read_text(look.root / "proc/cmdline")
    return KnobFacts(
        {name: _read(folder, name) for name in (*SYSCTLS, IO_URING)},
        None if cmdline is None else cmdline_words(cmdline),
    )


def _read(folder: HostPath, name: str) -> str | None:
    """Return the value; the hardened one where a listing shows that there is nothing to switch off."""
    text = read_text(folder / name.replace(".", "/"))
    if text is None and name in ABSENT_IS_OFF:
        above, _, last = name.rpartition(".")
        found = listing(folder / above.replace(".", "/"))
        return SYSCTLS[name][0] if found is not None and last not in found else None
    if text is None and name.startswith(f"net.{_IPV6}."):
        # A host without IPv6 takes no redirect over it.
        networks = listing(folder / "net")
        return SYSCTLS[name][0] if networks is not None and _IPV6 not in networks else None
    return text


def judge(facts: KnobFacts) -> tuple[Finding, ...]:
    """Answer K9 and K10."""
    wrong = {
        name: facts.sysctls.get(name) for name in SYSCTLS if facts.sysctls.get(name) not in SYSCTLS[name]
    }
    off = {name: value for name, value in wrong.items() if value is not None}
    unread = sorted(name for name, value in wrong.items() if value is None)
    words = facts.words
    missing = sorted(
        f"{name}={value}" if value else name
        for name, value in PARAMETERS.items()
        if words is not None and _SAME.get(words.get(name, "-"), words.get(name, "-")) != value
    )
    return (
        finding(
            "K9",
            MUST,
            False if off else None if unread else True,
            expected=f"{len(SYSCTLS)} sysctls at their hardened values",
            read="; ".join(
                [
                    *([", ".join(f"{name}={value}" for name, value in off.items())] if off else []),
                    *([f"{NOT_READ}: {', '.join(unread)}"] if unread else []),
                ]
            )
            or "all are",
            mend="sysctl -w " + " ".join(f"{name}={SYSCTLS[name][0]}" for name in off or wrong),
        ),
        finding(
            "K9",
            POLICY,
            None if facts.sysctls.get(IO_URING) is None else facts.sysctls[IO_URING] == "2",
            subject="io_uring",
            expected=f"{IO_URING}=2",
            read=facts.sysctls.get(IO_URING),
            mend=f"sysctl -w {IO_URING}=2, unless QEMU's disks use io_uring",
            source="a kernel before 6.6 has no such switch",
        ),
        finding(
            "K10",
            POLICY,
            None if words is None else not missing,
            expected="hardening parameters on the kernel's command line",
            read=None if words is None else "missing " + " ".join(missing) if missing else "all are",
            source="/proc/cmdline",
            mend="boot with " + " ".join(missing),
        ),
    )
