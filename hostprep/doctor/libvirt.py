"""libvirt and the processes that it started: L1 to L6, L8 (security-reliability §6).

What runs is asked of the kernel. libvirt tells nobody which of its settings are in force, so those are read
from its file, as it takes them when it starts. L7, the domains' XML, is linted by the agent at each start and
stands in the instance's evidence.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from hostprep.doctor.finding import DAEMON_PIDS, MUST, POLICY, Look, all_of, finding, shown
from hostprep.probe.files import HostPath, listing, names, read_link, read_text
from hostprep.probe.keep import QEMU_CONF
from orchestrator.model.doctor import Finding

#: libvirtd's port without TLS.
_TCP_PORT = 16509
_TLS_PORT = 16514
#: Nodes that every guest may use; a device of a guest comes on top by libvirt itself.
_DEVICES = frozenset(
    f"/dev/{name}" for name in ("null", "full", "zero", "random", "urandom", "ptmx", "kvm", "userfaultfd")
) | {"/dev/vfio/vfio", "/dev/sgx_vepc", "/dev/sgx_provision"}
_SETTING = re.compile(r"^\s*([a-z_]+)\s*=\s*(\[[^\]]*\]|\"[^\"\n]*\"|\S+)", re.MULTILINE)
_QUOTED = re.compile(r'"([^"\n]*)"')
_STATUS = re.compile(r"^(Uid|CapEff|NoNewPrivs|Seccomp):\s*(\S+)", re.MULTILINE)
_MOUNTS = {None: "", True: "its own", False: "the host's"}
#: What leaves no core, whatever the limits.
_NO_CORE = ("", "|/bin/false", "|/usr/bin/false")
_CORE_LIMIT = re.compile(r"^Max core file size\s+\S+\s+(\S+)", re.MULTILINE)
_TMPFS = frozenset({"tmpfs", "ramfs"})
_NVRAM = "/var/lib/libvirt/qemu/nvram"
#: Who may not look at the first process sees the same mounts itself, unless it was given others.
MOUNTS = ("proc/1/mounts", "proc/self/mounts")
_CONF = f"/{QEMU_CONF}, then restart virtqemud"


@dataclass(frozen=True)
class Qemu:
    """One running QEMU as the kernel has it; None is what could not be read."""

    name: str
    pid: int
    status: Mapping[str, str] | None
    label: str | None
    own_mounts: bool | None
    memory_max: str | None


@dataclass(frozen=True)
class LibvirtFacts:
    """None is what could not be read."""

    #: Settings of qemu.conf that are not libvirt's own defaults.
    conf: Mapping[str, str] | None
    listening: frozenset[int] | None
    apparmor: str | None
    selinux: str | None
    running: tuple[Qemu, ...] | None
    core_pattern: str | None
    #: Hard limit of the daemon's core files, in bytes or `unlimited`.
    core_limit: str | None
    secrets: tuple[str, ...] | None
    #: Filesystem types by mount point, and options of /proc.
    mounts: Mapping[str, str] | None
    proc_options: str | None


def read(look: Look) -> LibvirtFacts:
    """Read them."""
    root = look.root
    conf = read_text(root / QEMU_CONF)
    # The first process has the host's mounts; the agent's unit gives it others, in which /proc is hidden.
    mounts = next(filter(None, (read_text(root / each) for each in MOUNTS)), None)
    rows = [line.split() for line in (mounts or "").splitlines() if len(line.split()) >= 4]
    return LibvirtFacts(
        conf=None if conf is None else dict(_SETTING.findall(conf)),
        listening=listening_ports(root),
        apparmor=_present(root / "sys/module", "apparmor", "parameters/enabled"),
        selinux=_present(root / "sys/fs", "selinux", "enforce"),
        running=_running(root),
        core_pattern=read_text(root / "proc/sys/kernel/core_pattern"),
        core_limit=_core_limit(root),
        secrets=_secrets(root),
        mounts=None if mounts is None else {row[1]: row[2] for row in rows},
        proc_options=next((row[3] for row in reversed(rows) if row[1] == "/proc"), None),
    )


def relaxed_acs(facts: LibvirtFacts) -> bool | None:
    """Tell whether libvirt hands out devices behind ports that do not isolate."""
    return None if facts.conf is None else facts.conf.get("relaxed_acs_check", "0") != "0"


def core_scheduling(facts: LibvirtFacts) -> str | None:
    """Return libvirt's `sched_core`."""
    return None if facts.conf is None else facts.conf.get("sched_core", "none").strip('"')


def judge(facts: LibvirtFacts) -> tuple[Finding, ...]:
    """Answer L1 to L6 and L8."""
    return (
        finding(
            "L1",
            MUST,
            None if facts.listening is None else _TCP_PORT not in facts.listening,
            expected=f"nothing listens on port {_TCP_PORT} (libvirt without TLS)",
            read=None
            if facts.listening is None
            else f"{len(facts.listening)} ports, this one "
            + ("too" if _TCP_PORT in facts.listening else "not"),
            mend="systemctl disable --now libvirtd-tcp.socket virtproxyd-tcp.socket",
            source="/proc/net/tcp",
        ),
        finding(
            "L1",
            POLICY,
            None if facts.listening is None else _TLS_PORT not in facts.listening,
            subject="tls",
            expected=f"nothing listens on port {_TLS_PORT} (libvirt with TLS): nobody is to come that way",
            read=None if facts.listening is None else "open" if _TLS_PORT in facts.listening else "shut",
            mend="systemctl disable --now libvirtd-tls.socket virtproxyd-tls.socket",
            source="/proc/net/tcp",
        ),
        _confinement(facts),
        *_processes(facts),
        *_settings(facts),
        *_places(facts),
    )


def _confinement(facts: LibvirtFacts) -> Finding:
    conf = facts.conf
    active = None if facts.apparmor is None and facts.selinux is None else _active(facts)
    kept = None if conf is None else (
        conf.get("security_driver", "") != '"none"'
        and conf.get("security_default_confined", "1") == "1"
        and conf.get("security_require_confined", "0") == "1"
    )  # fmt: skip
    return finding(
        "L2",
        MUST,
        all_of(active, kept),
        expected="AppArmor or SELinux in force, every guest confined",
        read=f"AppArmor {shown(facts.apparmor)}, SELinux {shown(facts.selinux)}, security_require_confined "
        + shown(None if conf is None else conf.get("security_require_confined", "0")),
        mend=f"set security_require_confined = 1 in {_CONF}; boot with apparmor=1 security=apparmor",
    )


def _active(facts: LibvirtFacts) -> bool:
    return facts.apparmor == "Y" or facts.selinux == "1"


def _processes(facts: LibvirtFacts) -> tuple[Finding, ...]:
    """Each running QEMU: labels differ, no privilege, own mounts, bounded memory."""
    found: list[Finding] = []
    running = facts.running or ()
    for each in running:
        same = [other.name for other in running if other.pid != each.pid and other.label == each.label]
        also = f", as {', '.join(same)}" if same else ""
        confined = None if each.label is None else each.label.startswith("libvirt-") and not same
        if facts.selinux == "1" and each.label is not None:
            confined = "svirt" in each.label and not same
        status = each.status or {}
        bare = None if each.status is None else (
            status.get("Uid", "0") != "0"
            and int(status.get("CapEff", "1"), 16) == 0
            and status.get("NoNewPrivs") == "1"
            and status.get("Seccomp") == "2"
        )  # fmt: skip
        bounded = None if each.memory_max is None else each.memory_max != "max"
        said = " ".join(f"{name}={value}" for name, value in sorted(status.items()))
        restart = f"mend the settings above, then: bulkhead instance restart {each.name}"
        found += [
            finding("L2", MUST, confined, subject=each.name, expected="a label of its own",
                    read=each.label and f"{each.label}{also}", mend=restart,
                    source=f"/proc/{each.pid}/attr/current"),
            finding("L3", MUST, bare, subject=each.name, expected="a uid of its own, no capability, seccomp",
                    read=said, mend=restart, source=f"/proc/{each.pid}/status"),
            finding("L4", MUST, each.own_mounts, subject=each.name, expected="its own mount namespace",
                    read=_MOUNTS[each.own_mounts], mend=restart, source=f"/proc/{each.pid}/ns/mnt"),
            finding("L6", MUST, bounded, subject=each.name, expected="a limit on its memory",
                    read=each.memory_max, mend=restart, source=f"the memory cgroup of {each.pid}"),
        ]  # fmt: skip
    return tuple(found)


def _settings(facts: LibvirtFacts) -> tuple[Finding, ...]:
    conf = facts.conf
    if conf is None:
        conf_read: str | None = None
        sandboxed = spaces = devices = dumps = None
    else:
        conf_read = (
            ", ".join(f"{name}={' '.join(value.split())}" for name, value in sorted(conf.items()))
            or "defaults"
        )
        sandboxed = conf.get("seccomp_sandbox", "1") != "0" and conf.get("user", '"libvirt-qemu"') not in (
            '"root"',
            '"+0"',
        )
        spaces = "namespaces" not in conf or '"mount"' in conf["namespaces"]
        devices = set(_QUOTED.findall(conf.get("cgroup_device_acl", ""))) <= _DEVICES
        dumps = conf.get("dump_guest_core", "0") == "0" and conf.get("max_core", "0") in ("0", '"0"')
    pattern = facts.core_pattern
    # A program gets every core, whatever the limits; a file is bounded by them.
    clear = None if pattern is None else not pattern.startswith("|") or pattern in _NO_CORE
    limited = None if facts.core_limit is None else facts.core_limit == "0"
    owners = None if conf is None else conf.get("remember_owner", "1")
    return (
        finding("L3", POLICY, None if owners is None else owners == "0", subject="owners",
                expected="libvirt gives no file back to who had it: each VM has a uid of its own",
                read=None if owners is None else f"remember_owner {owners}",
                mend=f"set remember_owner = 0 in {_CONF}", source=f"/{QEMU_CONF}"),
        finding("L3", MUST, sandboxed, expected="QEMU sandboxed and not root", read=conf_read,
                mend=f"take user and seccomp_sandbox out of {_CONF}", source=f"/{QEMU_CONF}"),
        finding("L4", MUST, all_of(spaces, devices), expected="mount namespaces; no extra device nodes",
                read=conf_read, mend=f'set namespaces = [ "mount" ], no cgroup_device_acl, in {_CONF}',
                source=f"/{QEMU_CONF}"),
        finding("L5", MUST, all_of(dumps, clear), expected="no core dump of a guest",
                read=f"core_pattern {shown(pattern)}; {conf_read or 'qemu.conf not read'}",
                mend=f"sysctl -w kernel.core_pattern=core; dump_guest_core, max_core 0 in {_CONF}"),
        finding("L5", MUST, True if pattern in _NO_CORE else limited, subject="limit",
                expected="no service, and no QEMU that libvirt starts, leaves a core",
                read=facts.core_limit and f"libvirt's daemon: {facts.core_limit}",
                mend="DefaultLimitCORE=0 in /etc/systemd/system.conf.d, reboot; or restart libvirtd",
                source="/proc/PID/limits of libvirt's daemon"),
    )  # fmt: skip


def _places(facts: LibvirtFacts) -> tuple[Finding, ...]:
    kinds = {path: _filesystem(facts.mounts, path) for path in ("/var/lib/libvirt/qemu", "/run/libvirt")}
    on_disk = [path for path, kind in kinds.items() if kind not in _TMPFS]
    nvram = _filesystem(facts.mounts, _NVRAM)
    hidden = None if facts.proc_options is None else any(
        each in facts.proc_options.split(",") for each in ("hidepid=2", "hidepid=invisible")
    )  # fmt: skip
    return (
        finding("L8", MUST, None if facts.mounts is None else not on_disk, subject="tmpfs",
                expected="libvirt's state, which holds keys of guests' secrets, on tmpfs",
                read=None
                if facts.mounts is None
                else ", ".join(f"{path} on {kind or 'something unknown'}" for path, kind in kinds.items()),
                source="/proc/1/mounts",
                mend="mount tmpfs on " + " and ".join(on_disk) + "; keep NVRAM elsewhere"),
        finding("L8", POLICY, None if facts.mounts is None else nvram not in _TMPFS, subject="nvram",
                expected="UEFI variables of VMs on a disk, which outlives the boot",
                read=None if facts.mounts is None else f"{_NVRAM} on {nvram or 'something unknown'}",
                mend=f"bind a folder of a disk to {_NVRAM}", source="/proc/1/mounts"),
        finding("L8", MUST, None if facts.secrets is None else not facts.secrets, subject="secrets",
                expected="no secret kept on disk",
                read=None if facts.secrets is None else f"{len(facts.secrets)} files",
                mend="virsh secret-undefine each of virsh secret-list",
                source="neither /etc/libvirt nor /var/lib/libvirt"),
        finding("L8", MUST, hidden, subject="/proc", expected="hidepid=2", read=facts.proc_options,
                mend="mount -o remount,hidepid=2 /proc, and the same in /etc/fstab",
                source="/proc/1/mounts"),
    )  # fmt: skip


def listening_ports(root: HostPath) -> frozenset[int] | None:
    """Return the TCP ports that somebody listens on; None where the kernel does not say."""
    texts = [read_text(root / "proc/net" / name) for name in ("tcp", "tcp6")]
    if texts[0] is None:
        return None
    rows = [line.split() for text in texts if text is not None for line in text.splitlines()]
    # State 0A is LISTEN (include/net/tcp_states.h).
    return frozenset(int(row[1].rpartition(":")[2], 16) for row in rows if row[3:4] == ["0A"])


def _filesystem(mounts: Mapping[str, str] | None, path: str) -> str | None:
    """Return the type of what is mounted at the path or nearest above it."""
    parts = path.split("/")
    tried = ("/".join(parts[:count]) or "/" for count in range(len(parts), 0, -1))
    return next((mounts[each] for each in tried if mounts and each in mounts), None)


def _present(folder: HostPath, name: str, file: str) -> str | None:
    """Return the text; `absent` where a listing shows that there is no such thing."""
    found = listing(folder)
    if found is not None and name not in found:
        return "absent"
    return read_text(folder / name / file)


def _running(root: HostPath) -> tuple[Qemu, ...] | None:
    folder = root / "run/libvirt/qemu"
    found = listing(folder)
    if found is None:
        return None
    own = read_link(root / "proc/1/ns/mnt")
    made: list[Qemu] = []
    for file in found:
        text = read_text(folder / file) if file.endswith(".pid") else None
        if text is not None and text.isdigit():
            made.append(_qemu(root, file.removesuffix(".pid"), int(text), str(own) if own else None))
    return tuple(made)


def _qemu(root: HostPath, name: str, pid: int, host_mounts: str | None) -> Qemu:
    folder = root / "proc" / str(pid)
    status, space = read_text(folder / "status"), read_link(folder / "ns/mnt")
    label = read_text(folder / "attr/current")
    cgroup = (read_text(folder / "cgroup") or "").rpartition("::/")[2].splitlines()
    bound = read_text(root / "sys/fs/cgroup" / cgroup[0] / "memory.max") if cgroup else None
    return Qemu(
        name=name,
        pid=pid,
        status=None if status is None else dict(_STATUS.findall(status)),
        label=None if label is None else label.strip("\x00"),
        own_mounts=None if space is None or host_mounts is None else str(space) != host_mounts,
        memory_max=bound,
    )


def _core_limit(root: HostPath) -> str | None:
    pids = [text for path in DAEMON_PIDS if (text := read_text(root / path)) and text.isdigit()]
    found = _CORE_LIMIT.search(read_text(root / "proc" / pids[0] / "limits") or "") if pids else None
    return None if found is None else found[1]


def _secrets(root: HostPath) -> tuple[str, ...] | None:
    above = {"etc/libvirt": "secrets", "var/lib/libvirt": "secrets"}
    if all(listing(root / folder) is None for folder in above):
        return None
    return tuple(
        name for folder, below in above.items() for name in names(root / folder / below) if "." in name
    )
