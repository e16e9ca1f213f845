"""Which part of a file or of a program's output a recording keeps. Pure.

A kernel command line may carry passwords, a settings file too, and a list of connections says who talks to
whom. Of those only the parts that some check reads are kept; everything else is a kernel's number or name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: Words of the kernel's command line that checks read, by the part before `=`.
CMDLINE_WORDS = _words("""
    intel_iommu amd_iommu iommu iommu.strict iommu.passthrough mitigations nosmt pcie_acs_override
    init_on_alloc init_on_free slab_nomerge page_alloc.shuffle randomize_kstack_offset vsyscall debugfs
    module.sig_enforce lockdown efi hugepages hugepagesz default_hugepagesz transparent_hugepage isolcpus
    nohz_full rcu_nocbs vfio-pci.ids module_blacklist modprobe.blacklist video efifb
""")
#: Settings of QEMU's libvirt driver that checks read.
QEMU_CONF_KEYS = _words("""
    user group security_driver security_default_confined security_require_confined namespaces
    cgroup_device_acl remember_owner relaxed_acs_check sched_core dump_guest_core max_core seccomp_sandbox
    clear_emulator_capabilities
""")
QEMU_CONF = "etc/libvirt/qemu.conf"
NFT_RULESET = "nft -j list ruleset"
SSHD = "sshd -T"
#: Effective settings of the SSH server that checks read.
SSHD_KEYS = _words("passwordauthentication kbdinteractiveauthentication permitrootlogin x11forwarding")

_SETTING = re.compile(r"^\s*([a-z_]+)\s*=")
_LISTEN = "0A"


def kept(what: str, text: str) -> str:
    """Return what is kept of a file (path below the root) or of a command line's output."""
    keep = _KEEP.get(what)
    return text if keep is None else keep(text)


def _cmdline(text: str) -> str:
    return " ".join(word for word in text.split() if word.split("=", 1)[0] in CMDLINE_WORDS) + "\n"


def _qemu_conf(text: str) -> str:
    """Keep whole settings, a list over several lines included."""
    found: list[str] = []
    wanted = open_list = False
    for line in text.splitlines():
        bare = line.split("#", 1)[0]
        match = None if open_list else _SETTING.match(bare)
        if match:
            wanted = match[1] in QEMU_CONF_KEYS
        if (match or open_list) and wanted:
            found.append(bare.rstrip())
        if match or open_list:
            open_list = "]" not in bare and (open_list or "[" in bare)
    return "\n".join(found) + "\n"


def _cpuinfo(text: str) -> str:
    """Keep of the first CPU what it is and how far it addresses."""
    first = text.partition("\n\n")[0].splitlines()
    names = ("vendor_id", "cpu family", "model", "stepping", "address sizes")
    return "\n".join(line for line in first if line.startswith(names)) + "\n"


def _mounts(text: str) -> str:
    """Keep mount points of the system and their types; a source may name a server and a user."""
    rows = [line.split() for line in text.splitlines()]
    wanted = ("/", "/proc", "/run", "/var", "/var/lib")
    kept_rows = [row for row in rows if len(row) >= 4 and (row[1] in wanted or "libvirt" in row[1])]
    return "".join(f"- {row[1]} {row[2]} {row[3]}\n" for row in kept_rows)


def _listening(text: str) -> str:
    """Keep the sockets that listen; who is connected to whom is nobody's business."""
    lines = [line.split() for line in text.splitlines()]
    return "".join(f"{line[0]} {line[1]} {line[2]} {line[3]}\n" for line in lines if line[3:4] == [_LISTEN])


def _chains(text: str) -> str:
    """Keep the firewall's base chains, not its rules."""
    try:
        listed = json.loads(text)["nftables"]
        chains = [{"chain": each["chain"]} for each in listed if isinstance(each, dict) and "chain" in each]
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""
    return json.dumps({"nftables": chains})


def _sshd(text: str) -> str:
    lines = [line for line in text.splitlines() if line.split(" ", 1)[0].lower() in SSHD_KEYS]
    return "\n".join(lines) + "\n"


_KEEP: dict[str, Callable[[str], str]] = {
    "proc/cmdline": _cmdline,
    "proc/cpuinfo": _cpuinfo,
    "proc/1/mounts": _mounts,
    "proc/self/mounts": _mounts,
    QEMU_CONF: _qemu_conf,
    "proc/net/tcp": _listening,
    "proc/net/tcp6": _listening,
    NFT_RULESET: _chains,
    SSHD: _sshd,
}
