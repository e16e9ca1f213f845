"""Every setting of the playbook, and a sound machine on which that one thing was undone.

Lists of settings are read from the roles' own defaults, so that a new one is here by itself, or fails for
want of an entry. What a setting does is turned in the kernel, as the doctor reads it there, not in the file
that sets it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.unit.hostprep.machines import Machine
from tests.unit.hostprep.shapes import SHAPES, one_socket

ROLES = Path(__file__).parents[3] / "playbooks" / "roles"
GPU = "sys/bus/pci/devices/0000:21:00.0"
QEMU_CONF = "etc/libvirt/qemu.conf"
Change = Callable[[Machine], object]

KERNEL, FSTAB, SWAP, MASK = (
    "Write the kernel's settings",
    "Set what only its own users see of /proc",
    "Take swap out of fstab",
    "Mask units",
)
LIVE = "Set the running system"
LIBVIRT, UNITS = "Set libvirt and QEMU", "Write libvirt's units"
NETWORK, AGENT, ENABLE = (
    "Write firewall, ssh and time settings",
    "Write the agent's settings and unit",
    "Enable units",
)
PACKAGES, FABRIC = "Install packages", "Set the Fabric Manager's mode"


@dataclass(frozen=True)
class Undone:
    """One setting undone.

    Args:
        task: the task of the playbook that sets it.
        setting: what stands in the table for people.
        check: id and subject of the finding that must fail.
        undo: turns what the kernel, systemd or a program says; told in `what`.
        base: makes the machine on which it is set.
    """

    role: str
    task: str
    setting: str
    check: tuple[str, str]
    what: str
    undo: Change
    base: Callable[[], Machine] = one_socket


def defaults(role: str) -> dict[str, Any]:
    found = yaml.safe_load((ROLES / role / "defaults" / "main.yml").read_text())
    assert isinstance(found, dict)
    return found


def tasks() -> dict[str, tuple[str, dict[str, Any]]]:
    """Every task of the roles with its role, by its name."""
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for path in sorted(ROLES.glob("*/tasks/main.yml")):
        for each in yaml.safe_load(path.read_text()):
            assert each["name"] not in found, each["name"]
            found[each["name"]] = (path.parts[-3], each)
    return found


def put(path: str, text: object) -> Change:
    return lambda made: made.put(path, text)


def replaced(path: str, text: str, instead: str) -> Change:
    def change(made: Machine) -> None:
        assert text in made.texts[path], (path, text)
        made.put(path, made.texts[path].replace(text, instead))

    return change


def said(line: str, text: str, instead: str) -> Change:
    def change(made: Machine) -> None:
        assert text in made.commands[line], (line, text)
        made.commands[line] = made.commands[line].replace(text, instead)

    return change


def unit(name: str, **properties: str) -> Change:
    return lambda made: made.unit(name, **properties)


def in_qemu_conf(line: str) -> Change:
    return lambda made: made.put(QEMU_CONF, made.texts[QEMU_CONF] + line)


def without_word(name: str) -> Change:
    def change(made: Machine) -> None:
        words = made.texts["proc/cmdline"].split()
        made.put("proc/cmdline", " ".join(each for each in words if each.split("=")[0] != name))

    return change


def without_module(name: str) -> Change:
    return lambda made: made.take(f"sys/module/{name}")


def firewall(into: str, through: str) -> Change:
    return lambda made: made.firewall(into, through)


def driver(name: str) -> Change:
    return lambda made: made.links.__setitem__(f"{GPU}/driver", f"../../bus/pci/drivers/{name}")


def listens(port: int) -> Change:
    return put("proc/net/tcp", f"0: 00000000:{port:04X} 0:0 0A")


def swaps(made: Machine) -> None:
    made.put("proc/swaps", "Filename Type Size\n/dev/sda2 partition 1 0 -2")


def domains(kind: str) -> Change:
    def change(made: Machine) -> None:
        for path in [each for each in made.texts if re.fullmatch(r"sys/kernel/iommu_groups/\d+/type", each)]:
            made.put(path, kind)

    return change


def no_groups(made: Machine) -> None:
    made.take("sys/kernel/iommu_groups")
    made.folders.add("sys/kernel/iommu_groups")


def cpus_of(name: str) -> Change:
    def change(made: Machine) -> None:
        made.take(f"sys/fs/cgroup/{name}/cpuset.cpus.effective")
        made.folders.add(f"sys/fs/cgroup/{name}")

    return change


_POWER = "sys/module/vfio_pci/parameters/disable_idle_d3"


def kept_awake() -> Machine:
    """A machine whose GPUs only vfio-pci keeps awake."""
    made = one_socket()
    for address in ("0000:21:00.0", "0000:41:00.0"):
        made.put(f"sys/bus/pci/devices/{address}/d3cold_allowed", 1)
        made.put(f"sys/bus/pci/devices/{address}/power/control", "auto")
    made.put(_POWER, "Y")
    return made


#: Of kernel arguments whose effect is read and not the word.
ARGUMENTS: dict[str, tuple[tuple[str, str], str, Change]] = {
    "intel_iommu=on": (("K3", "host"), "there is no IOMMU group", no_groups),
    "iommu.passthrough=0": (("K3", "host"), "domains are `identity`", domains("identity")),
    "iommu.strict=1": (("K3", "host"), "domains are `DMA-FQ`", domains("DMA-FQ")),
    "nohibernate": (
        ("K7", "hibernation"),
        "`/sys/power/state` offers `disk`",
        put("sys/power/state", "disk"),
    ),
}
SYSFS: dict[str, tuple[tuple[str, str], str]] = {
    "/sys/kernel/mm/ksm/run": (("K7", "ksm"), "1"),
    "/sys/kernel/mm/transparent_hugepage/shmem_enabled": (("K7", "shmem"), "[always] never"),
}
#: Subjects of the findings of module options.
OPTIONS = {
    ("vfio_iommu_type1", "allow_unsafe_interrupts"): "interrupts",
    ("vfio_pci", "disable_idle_d3"): "0000:21:00.0",
}
#: Of qemu.conf: the finding's subject, and the line that undoes the setting.
QEMU: dict[str, tuple[str, str]] = {
    "security_driver": ("host", 'security_driver = "none"'),
    "security_default_confined": ("host", "security_default_confined = 0"),
    "security_require_confined": ("host", "security_require_confined = 0"),
    "seccomp_sandbox": ("host", "seccomp_sandbox = 0"),
    "namespaces": ("host", "namespaces = [ ]"),
    "cgroup_device_acl": ("host", 'cgroup_device_acl = [ "/dev/null", "/dev/mem" ]'),
    "relaxed_acs_check": ("libvirt", "relaxed_acs_check = 1"),
    "dump_guest_core": ("host", "dump_guest_core = 1"),
    "max_core": ("host", 'max_core = "unlimited"'),
    "remember_owner": ("owners", "remember_owner = 1"),
    "sched_core": ("host", 'sched_core = "none"'),
}
_SOCKET = (("L1", "sockets"), "the socket's mode is 0666", unit("libvirtd.socket", SocketMode="0666"))
LIBVIRTD: dict[str, tuple[tuple[str, str], str, Change]] = {
    "listen_tcp": (("L1", "host"), "port 16509 listens", listens(16509)),
    "listen_tls": (("L1", "tls"), "port 16514 listens", listens(16514)),
    **dict.fromkeys(
        ("unix_sock_group", "unix_sock_ro_perms", "unix_sock_rw_perms", "unix_sock_admin_perms",
         "auth_unix_ro", "auth_unix_rw"), _SOCKET),
}  # fmt: skip
_NO_TMPFS = replaced("proc/1/mounts", "/var/lib/libvirt/qemu tmpfs", "/var/lib/libvirt/qemu ext4")
_SSHD, _EXPOSURE = "sshd -T", "systemd-analyze security --no-pager bulkhead-agent.service"
_CLOCK = "timedatectl show --property=NTPSynchronized --value"
#: Files by their name in the task that writes them; those of lists above stand there.
FILES: dict[str, list[tuple[str, tuple[str, str], str, Change]]] = {
    "/etc/default/grub.d/90-bulkhead.cfg": [
        (KERNEL, ("cpu.host", "interrupts"), "`irqaffinity` is not given",
         put("proc/irq/default_smp_affinity", "ffffffff")),
    ],
    "/etc/modules-load.d/bulkhead.conf": [],
    "/etc/modprobe.d/bulkhead.conf": [],
    "/etc/sysctl.d/90-bulkhead.conf": [],
    "/etc/tmpfiles.d/bulkhead.conf": [
        (KERNEL, ("mem.hugepages", "host"), "no node has hugepages", lambda made: made.hugepages(0, 0)),
        (KERNEL, ("mem.node", "node 0"), "one node has none", lambda made: made.hugepages(0, 0)),
    ],
    "/etc/systemd/sleep.conf.d/90-bulkhead.conf": [
        (KERNEL, ("K7", "sleep"), "systemd may hibernate", said(
            "systemd-analyze --no-pager cat-config systemd/sleep.conf", "AllowHibernation=no", "")),
    ],
    "/etc/systemd/system.conf.d/90-bulkhead.conf": [
        (KERNEL, ("L5", "limit"), "services may leave cores", lambda made: made.limits(core="unlimited")),
    ],
    "/etc/systemd/system/system.slice.d/90-bulkhead.conf": [
        (KERNEL, ("cpu.host", "services"), "services run on all CPUs", cpus_of("system.slice"))],
    "/etc/systemd/system/user.slice.d/90-bulkhead.conf": [
        (KERNEL, ("cpu.host", "services"), "people run on all CPUs", cpus_of("user.slice"))],
    "/etc/systemd/system/init.scope.d/90-bulkhead.conf": [
        (KERNEL, ("cpu.host", "services"), "the first process runs on all CPUs", cpus_of("init.scope"))],
    "/etc/udev/rules.d/65-bulkhead-kvm.rules": [
        (KERNEL, ("kvm.loaded", "/dev/kvm"), "others may not open it", said(
            "stat -L -c %a /proc/1/root/dev/kvm", "666", "660")),
    ],
    "/etc/systemd/system/var-lib-libvirt-qemu.mount": [
        (UNITS, ("L8", "tmpfs"), "libvirt's state is on a disk", _NO_TMPFS)],
    "/etc/systemd/system/var-lib-libvirt-qemu-nvram.mount": [
        (UNITS, ("L8", "nvram"), "UEFI variables are in memory", replaced(
            "proc/1/mounts", "/nvram ext4", "/nvram tmpfs")),
    ],
    "/etc/systemd/system/libvirtd.service.d/bulkhead.conf": [
        (UNITS, ("sys.units", "libvirtd.service"), "libvirt ends when nobody speaks to it", unit(
            "libvirtd.service", Environment="LIBVIRTD_ARGS='--timeout 120'")),
    ],
    **{
        f"/etc/systemd/system/{name}.d/bulkhead.conf": [
            (UNITS, ("L1", "sockets"), f"{name} has mode 0666", unit(name, SocketMode="0666"))]
        for name in ("libvirtd.socket", "libvirtd-ro.socket", "libvirtd-admin.socket")
    },
    "/etc/bulkhead/firewall.nft": [
        (NETWORK, ("N2", "host"), "the chain `input` lets through", firewall("accept", "drop")),
        (NETWORK, ("N2", "host"), "the chain `forward` lets through", firewall("drop", "accept")),
    ],
    "/etc/systemd/system/bulkhead-firewall.service": [
        (NETWORK, ("sys.units", "enabled"), "it is not there", unit(
            "bulkhead-firewall.service", LoadState="not-found", UnitFileState="")),
    ],
    "/etc/ssh/sshd_config.d/10-bulkhead.conf": [
        (NETWORK, ("S1", "ssh"), "passwords are taken", said(
            _SSHD, "passwordauthentication no", "passwordauthentication yes")),
        (NETWORK, ("S1", "ssh"), "so is the keyboard", said(
            _SSHD, "kbdinteractiveauthentication no", "kbdinteractiveauthentication yes")),
        (NETWORK, ("S1", "ssh"), "root may use a password", said(
            _SSHD, "permitrootlogin no", "permitrootlogin yes")),
        (NETWORK, ("S1", "x11"), "displays are forwarded", said(
            _SSHD, "x11forwarding no", "x11forwarding yes")),
    ],
    "/etc/chrony/sources.d/bulkhead.sources": [
        (NETWORK, ("S1", "clock"), "the clock is not synchronised", said(_CLOCK, "yes", "no"))],
    "/etc/bulkhead/agent.toml": [
        # With another share than its services have, one of the two is wrong.
        (AGENT, ("cpu.host", "services"), "`host_cpus` is another share", cpus_of("system.slice")),
    ],
    "/etc/systemd/system/bulkhead-agent.service": [
        (AGENT, ("S3", "bulkhead-agent.service"), "without its sandbox", said(
            _EXPOSURE, "1.9 OK", "9.6 UNSAFE")),
        (AGENT, ("sys.units", "enabled"), "it is not there", unit(
            "bulkhead-agent.service", LoadState="not-found", UnitFileState="")),
    ],
}  # fmt: skip
#: Tasks that change a host and set nothing a doctor could find undone, and why.
EXEMPT = {
    "Make folders": "each is there for a file of another task; without it that task fails",
    "Bring the agent's code": "who answers is that code: its version stands with every result",
    "Install the agent": "who answers is that code: its version stands with every result",
    "Link the command": "a name for people; nothing calls it",
    "Bring NVIDIA's packages": "the operator's own packages, installed by the next two tasks",
    "Install NVIDIA's packages": "only the operator knows which; gpu.driver tells who holds a GPU",
    "Install NVIDIA's package files": "only the operator knows which; gpu.driver tells who holds a GPU",
    "Restart the host": "sets nothing; S2 tells that a restart waits",
}


def everything() -> Iterator[Undone]:
    """Every setting, undone."""
    kernel, hypervisor = defaults("kernel"), defaults("hypervisor")
    yield from _arguments(kernel)
    yield from _live(kernel)
    for each in hypervisor["bulkhead_qemu_settings"]:
        key = each["text"].split("=")[0].strip()
        subject, line = QEMU[key]
        change = in_qemu_conf(line)
        yield Undone(
            "hypervisor", LIBVIRT, f"qemu.conf: {key}", (each["check"], subject), f"`{line}`", change
        )
    for each in hypervisor["bulkhead_libvirtd_settings"]:
        key = each["text"].split("=")[0].strip()
        check, what, change = LIBVIRTD[key]
        assert check[0] == each["check"]
        yield Undone("hypervisor", LIBVIRT, f"libvirtd.conf: {key}", check, what, change)
    for name, found in FILES.items():
        for task, check, what, change in found:
            yield Undone(tasks()[task][0], task, name, check, what, change)
    yield from _units()
    hidden = replaced("proc/1/mounts", "rw,hidepid=invisible", "rw")
    yield Undone("kernel", FSTAB, "fstab: /proc", ("L8", "/proc"), "processes of others are shown", hidden)
    yield Undone("kernel", SWAP, "fstab: swap", ("K7", "swap"), "swap in clear", swaps)
    switch = lambda made: made.function("0000:07:00.0", "10de:22a3", "068000", group=90)  # noqa: E731
    yield Undone(
        "nvidia", FABRIC, "FABRIC_MODE", ("gpu.fabric", "host"), "an NVSwitch nobody divides", switch
    )
    gone = unit("openvswitch-switch.service", LoadState="not-found", UnitFileState="")
    yield Undone(
        "packages", PACKAGES, "packages", ("sys.units", "enabled"), "Open vSwitch is not there", gone
    )
    newer = put("boot/vmlinuz-6.12.100-amd64", "")
    yield Undone(
        "packages", PACKAGES, "packages", ("S2", "host"), "a newer kernel waits for a restart", newer
    )


def _arguments(kernel: dict[str, Any]) -> Iterator[Undone]:
    for each in kernel["bulkhead_kernel_arguments"]:
        text = each["text"]
        if text in ARGUMENTS:
            check, what, change = ARGUMENTS[text]
            assert check[0] == each["check"]
        else:
            name = text.split("=")[0]
            check, what = (each["check"], "host"), "the word is missing"
            change = without_word(name)
        yield Undone("kernel", KERNEL, f"kernel: {text}", check, what, change)
    for each in kernel["bulkhead_module_options"]:
        module, option = each["module"], each["option"]
        other = {"N": "Y", "Y": "N", "0": "1"}[str(each["shown"])]
        base = {"kvm_amd": SHAPES["nps4"], "vfio_pci": kept_awake}.get(module, one_socket)
        change = put(f"sys/module/{module}/parameters/{option}", other)
        check = (each["check"], OPTIONS.get((module, option), "host"))
        yield Undone("kernel", KERNEL, f"{module}.{option}", check, f"it is {other}", change, base)
    for name in ("nouveau", "nova_core", "nvidiafb"):
        assert name in kernel["bulkhead_blocked_drivers"]
        check = ("gpu.driver", "0000:21:00.0")
        yield Undone("kernel", KERNEL, f"blacklist {name}", check, "it holds a GPU", driver(name))


def _live(kernel: dict[str, Any]) -> Iterator[Undone]:
    """What is set at boot by a file and at once in the running system."""
    found: list[tuple[str, tuple[str, str], str, Change]] = []
    for each in kernel["bulkhead_sysctls"]:
        name = each["name"]
        subject = "io_uring" if name == "kernel.io_uring_disabled" else "host"
        value = "|/usr/share/apport/apport %p" if name == "kernel.core_pattern" else "7"
        change = put(f"proc/sys/{name.replace('.', '/')}", value)
        found.append((f"sysctl {name}", (each["check"], subject), f"it is `{value.split()[0]}`", change))
    for each in kernel["bulkhead_sysfs"]:
        check, value = SYSFS[each["path"]]
        assert check[0] == each["check"]
        found.append((each["path"], check, f"it is `{value}`", put(each["path"].lstrip("/"), value)))
    for module in kernel["bulkhead_modules"]:
        name = module.replace("-", "_")
        gone = without_module(name)
        found.append((f"module {module}", ("mod.loaded", "host"), "it is not loaded", gone))
    for task in (KERNEL, LIVE):
        for setting, check, what, change in found:
            yield Undone(tasks()[task][0], task, setting, check, what, change)
    hidden = replaced("proc/1/mounts", "rw,hidepid=invisible", "rw")
    yield Undone("finish", LIVE, "/proc: hidepid=2", ("L8", "/proc"), "processes of others are shown", hidden)
    yield Undone("finish", LIVE, "swap off", ("K7", "swap"), "swap in clear", swaps)
    for check in (("mem.hugepages", "host"), ("mem.node", "node 0")):
        yield Undone("finish", LIVE, "nr_hugepages", check, "none", lambda made: made.hugepages(0, 0))


#: What a unit that should be masked would do; where nothing else tells, systemd does.
_MASKED: dict[str, tuple[tuple[str, str], str, Change]] = {
    "swap.target": (("K7", "swap"), "swap in clear", swaps),
    "libvirtd-tcp.socket": (("L1", "host"), "port 16509 listens", listens(16509)),
    "libvirtd-tls.socket": (("L1", "tls"), "port 16514 listens", listens(16514)),
    "apport.service": (
        ("L5", "host"), "a program gets cores",
        put("proc/sys/kernel/core_pattern", "|/usr/share/apport/apport")),
}  # fmt: skip


def _units() -> Iterator[Undone]:
    assert "swap.target" in tasks()[MASK][1]["ansible.builtin.shell"]
    for name in ("swap.target", *defaults("kernel")["bulkhead_masked_units"]):
        if name in _MASKED:
            check, what, change = _MASKED[name]
            yield Undone("kernel", MASK, f"mask {name}", check, what, change)
        if name != "swap.target":
            change = unit(name, LoadState="loaded")
            yield Undone("kernel", MASK, f"mask {name}", ("sys.units", "masked"), "it is not masked", change)
    for name in defaults("agent")["bulkhead_units"]:
        change = unit(name, UnitFileState="disabled")
        yield Undone("agent", ENABLE, f"enable {name}", ("sys.units", "enabled"), "it is disabled", change)
    off = said(_CLOCK, "yes", "no")
    yield Undone("agent", ENABLE, "enable chrony.service", ("S1", "clock"), "the clock goes astray", off)
    no_rules = firewall("accept", "accept")
    yield Undone("agent", ENABLE, "enable bulkhead-firewall.service", ("N2", "host"), "no rules", no_rules)
    bare = said(_EXPOSURE, "1.9 OK", "9.6 UNSAFE")
    yield Undone(
        "agent",
        ENABLE,
        "enable bulkhead-agent.service",
        ("S3", "bulkhead-agent.service"),
        "another unit",
        bare,
    )
