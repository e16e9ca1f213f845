"""Machines as recordings, built by hand: a hardened host of any topology, in memory.

Topologies follow vendors' block diagrams; numbers that no check reads are left out.
"""

from __future__ import annotations

import json

from hostprep.doctor.share import KVM
from hostprep.doctor.units import ENABLED, MASKED, SHOW, SLEEP, SOCKETS
from hostprep.probe.keep import NFT_RULESET, SSHD
from hostprep.probe.recording import Recording
from tests.unit.devices.fakesys import config_space

GIB = 1 << 30
_NODE = "sys/devices/system/node"
_CPU = "sys/devices/system/cpu"
_SYSCTLS = """
dev/tty/ldisc_autoload=0 fs/protected_fifos=2 fs/protected_hardlinks=1 fs/protected_regular=2
fs/protected_symlinks=1 fs/suid_dumpable=0 kernel/dmesg_restrict=1 kernel/kexec_load_disabled=1
kernel/kptr_restrict=2 kernel/perf_event_paranoid=3 kernel/sysrq=0 kernel/unprivileged_bpf_disabled=1
net/core/bpf_jit_harden=2 net/ipv4/conf/all/accept_redirects=0 net/ipv4/conf/all/accept_source_route=0
net/ipv4/tcp_syncookies=1 vm/unprivileged_userfaultfd=0 kernel/io_uring_disabled=2 kernel/yama/ptrace_scope=2
net/ipv4/conf/default/accept_redirects=0 net/ipv4/conf/default/accept_source_route=0
net/ipv6/conf/all/accept_redirects=0 net/ipv6/conf/default/accept_redirects=0
"""
_CMDLINE = (
    "intel_iommu=on iommu.strict=1 iommu.passthrough=0 init_on_alloc=1 init_on_free=1 slab_nomerge "
    "page_alloc.shuffle=1 randomize_kstack_offset=on vsyscall=none debugfs=off lockdown=integrity "
    "module.sig_enforce=1 efi=disable_early_pci_dma"
)
SECURE_BOOT = "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"


def pci_path(*above: str) -> str:
    return "/".join(("sys/devices", *above))


class Machine:
    """A host that passes every check until something is changed."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self.raw: dict[str, bytes] = {}
        self.links: dict[str, str] = {}
        self.commands: dict[str, str] = {}
        self.folders: set[str] = set()
        self._next_bar = 0x20_0000_0000
        self._kernel()
        self._libvirt()
        self._system()

    # -- parts

    def put(self, path: str, text: object) -> None:
        self.texts[path] = f"{text}\n"

    def take(self, path: str) -> None:
        """Remove a file or a folder with all below."""
        assert any(each == path or each.startswith(path + "/") for each in self._all()), path
        for table in (self.texts, self.raw, self.links):
            for each in [key for key in table if key == path or key.startswith(path + "/")]:
                del table[each]
        self.folders = {each for each in self.folders if each != path and not each.startswith(path + "/")}

    def recording(self) -> Recording:
        found = Recording()
        found.texts, found.bytes = dict(self.texts), dict(self.raw)
        found.links, found.commands = dict(self.links), dict(self.commands)
        below: dict[str, set[str]] = {each: set() for each in self.folders}
        for path in self._all():
            parts = path.split("/")
            for count in range(1, len(parts)):
                below.setdefault("/".join(parts[:count]), set()).add(parts[count])
        found.folders = {path: tuple(sorted(names)) for path, names in below.items()}
        return found

    def _all(self) -> list[str]:
        return [*self.texts, *self.raw, *self.links, *self.folders]

    # -- topology

    def cpus(
        self, *, sockets: int, cores: int, nodes_per_socket: int = 1, memory_gib: int, pages: int
    ) -> None:
        """Sockets of cores of two threads; threads of a core are numbered `sockets * cores` apart.

        Args:
            memory_gib, pages: of each node; pages of 1 GiB.
        """
        whole = sockets * cores
        self.put(f"{_CPU}/online", f"0-{2 * whole - 1}")
        per_node = cores // nodes_per_socket
        for cpu in range(2 * whole):
            first = cpu % whole
            topology = f"{_CPU}/cpu{cpu}/topology"
            self.put(f"{topology}/thread_siblings_list", f"{first},{first + whole}")
            self.put(f"{topology}/physical_package_id", first // cores)
            self.put(f"{topology}/core_id", first % cores)
        count = sockets * nodes_per_socket
        for node in range(count):
            first = node * per_node
            last = first + per_node - 1
            self.put(f"{_NODE}/node{node}/cpulist", f"{first}-{last},{first + whole}-{last + whole}")
            self.put(f"{_NODE}/node{node}/meminfo", f"Node {node} MemTotal: {memory_gib << 20} kB")
            near = [10 if n == node else 12 if n // nodes_per_socket == node // nodes_per_socket else 32
                    for n in range(count)]  # fmt: skip
            self.put(f"{_NODE}/node{node}/distance", " ".join(map(str, near)))
            self.hugepages(node, pages)
        # The first core of each node is the host's.
        own = {cpu for node in range(count) for cpu in (node * per_node, node * per_node + whole)}
        self.put("proc/irq/default_smp_affinity", f"{sum(1 << cpu for cpu in own):x}")
        for name in ("init.scope", "system.slice", "user.slice"):
            self.put(f"sys/fs/cgroup/{name}/cpuset.cpus.effective", ",".join(map(str, sorted(own))))

    def hugepages(self, node: int, pages: int) -> None:
        for name in ("nr_hugepages", "free_hugepages"):
            self.put(f"{_NODE}/node{node}/hugepages/hugepages-1048576kB/{name}", pages)

    def function(
        self,
        address: str,
        ids: str,
        class_code: str,
        *,
        above: tuple[str, ...] = ("pci0000:00",),
        node: int = 0,
        group: int | None = None,
        driver: str | None = None,
        reset: str = "flr bus",
        bars: dict[int, int] | None = None,
        **more: object,
    ) -> None:
        """Add a function below its root bus and bridges (`above`)."""
        base = f"sys/bus/pci/devices/{address}"
        vendor, device = ids.split(":")
        for name, text in (("vendor", f"0x{vendor}"), ("device", f"0x{device}"), ("class", f"0x{class_code}"),
                           ("numa_node", node), ("reset_method", reset), ("d3cold_allowed", 0),
                           ("power/control", "on"), *more.items()):  # fmt: skip
            self.put(f"{base}/{name}", text)
        self.raw[f"{base}/config"] = config_space(
            vendor=int(vendor, 16), before=(0x000D,) if class_code.startswith("0604") else ()
        )
        self.links[base] = "/".join(("../../../devices", *above, address))
        if driver is not None:
            self.links[f"{base}/driver"] = f"../../bus/pci/drivers/{driver}"
        if group is not None:
            self.links[f"{base}/iommu_group"] = f"../../kernel/iommu_groups/{group}"
            self.put(f"sys/kernel/iommu_groups/{group}/type", "DMA")
        self.put(f"{base}/resource", "\n".join(self._bar((bars or {}).get(index, 0)) for index in range(6)))

    def virtual_function(self, address: str, of: str, ids: str, **more: object) -> None:
        self.function(address, ids, "020000", **more)  # type: ignore[arg-type]
        self.links[f"sys/bus/pci/devices/{address}/physfn"] = f"../{of}"

    def _bar(self, size: int) -> str:
        if not size:
            return "0x0 0x0 0x0"
        start = -(-self._next_bar // size) * size
        self._next_bar = start + size
        return f"{start:#x} {start + size - 1:#x} 0x14220c"

    # -- a hardened host

    def _kernel(self) -> None:
        self.put("proc/cmdline", _CMDLINE)
        self.put(
            "proc/cpuinfo", "vendor_id\t: GenuineIntel\naddress sizes\t: 52 bits physical, 57 bits virtual"
        )
        self.put("proc/sys/kernel/osrelease", "6.12.48-amd64")
        self.put("proc/sys/kernel/random/boot_id", "4f2c6d1e-0000-4000-8000-000000000001")
        for line in _SYSCTLS.split():
            path, _, value = line.partition("=")
            self.put(f"proc/sys/{path}", value)
        self.put("proc/sys/kernel/core_pattern", "core")
        self.put("proc/swaps", "Filename Type Size Used Priority")
        self.put(f"{_CPU}/vulnerabilities/l1tf", "Not affected")
        self.put(f"{_CPU}/vulnerabilities/spectre_v2", "Mitigation: Enhanced IBRS")
        self.put(f"{_CPU}/smt/control", "on")
        self.put("sys/kernel/mm/ksm/run", 0)
        self.put("sys/kernel/mm/transparent_hugepage/shmem_enabled", "always [never] deny")
        self.put("sys/kernel/security/lockdown", "none [integrity] confidentiality")
        self.put("sys/module/kvm_intel/parameters/nested", "N")
        self.put("sys/module/kvm/parameters/ignore_msrs", "N")
        self.put("sys/module/kvm/parameters/enable_vmware_backdoor", "N")
        self.put("sys/module/module/parameters/sig_enforce", "Y")
        self.put("sys/module/apparmor/parameters/enabled", "Y")
        self.put("sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts", "N")
        self.put("sys/power/state", "freeze mem")
        self.put("sys/class/net", "")
        self.raw[SECURE_BOOT] = b"\x06\x00\x00\x00\x01"
        self.folders |= {"sys/class/graphics", "sys/fs", "sys/bus/pci/devices", "run"}

    def _libvirt(self) -> None:
        self.put(
            "etc/libvirt/qemu.conf",
            'security_require_confined = 1\nsched_core = "vcpus"\nmax_core = 0\nremember_owner = 0',
        )
        self.folders |= {"etc/libvirt/secrets", "var/lib/libvirt/secrets"}
        self.put("run/virtqemud.pid", 900)
        self.limits("65536")
        self.put("proc/900/status", "Name: virtqemud\nCapEff:\t000001ffffffffff")
        self.put("proc/1/mounts", "- / ext4 rw\n- /proc proc rw,hidepid=invisible\n- /run tmpfs rw\n"
                                  "- /var/lib/libvirt/qemu tmpfs rw\n"
                                  "- /var/lib/libvirt/qemu/nvram ext4 rw")  # fmt: skip
        self.put("proc/net/tcp", "0: 00000000:0016 00000000:0000 0A")
        self.links["proc/1/ns/mnt"] = "mnt:[4026531841]"
        self.guest("vm_a", 1001)
        self.guest("vm_b", 1002)

    def limits(self, locked: str = "65536", core: str = "0") -> None:
        """What libvirt's daemon may lock in memory and leave as a core."""
        limit = f"Max core file size  {core}  {core}  bytes\nMax locked memory  {locked}  {locked}  bytes"
        self.put("proc/900/limits", limit)

    def guest(self, name: str, pid: int) -> None:
        """A running QEMU as it should be."""
        self.put(f"run/libvirt/qemu/{name}.pid", pid)
        status = f"Uid:\t{2100000 + pid}\t1\t1\t1\nCapEff:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2"
        self.put(f"proc/{pid}/status", status)
        self.put(f"proc/{pid}/attr/current", f"libvirt-{pid} (enforce)")
        self.links[f"proc/{pid}/ns/mnt"] = f"mnt:[{4026532000 + pid}]"
        self.put(f"proc/{pid}/cgroup", f"0::/machine.slice/{name}.scope")
        self.put(f"sys/fs/cgroup/machine.slice/{name}.scope/memory.max", 8 << 30)

    def _system(self) -> None:
        ask = "ovs-vsctl --no-wait --timeout=5"
        self.commands |= {
            "ovs-vsctl --version": "ovs-vsctl (Open vSwitch) 3.5.0\n",
            f"{ask} get-manager": "",
            f"{ask} get-controller br-bulkhead": "",
            f"{ask} get-fail-mode br-bulkhead": "secure\n",
            SSHD: "passwordauthentication no\nkbdinteractiveauthentication no\npermitrootlogin no\n"
                  "x11forwarding no\n",
            "timedatectl show --property=NTPSynchronized --value": "yes\n",
            "systemd-analyze security --no-pager bulkhead-agent.service":
                "\u2192 Overall exposure level for bulkhead-agent.service: 1.9 OK\n",
            "qemu-system-x86_64 --version": "QEMU emulator version 10.1.0 (Debian 1:10.1.0)\n",
            "virsh --version": "11.3.0\n",
            " ".join(KVM): "666\n",
            " ".join(SLEEP): "# /etc/systemd/sleep.conf.d/90.conf\n[Sleep]\nAllowSuspend=no\n"
                             "AllowHibernation=no\nAllowHybridSleep=no\nAllowSuspendThenHibernate=no\n",
        }  # fmt: skip
        self.units: dict[str, dict[str, str]] = {}
        for name in (*ENABLED, *MASKED, *SOCKETS):
            self.unit(name, LoadState="masked" if name in MASKED else "loaded",
                      UnitFileState="masked" if name in MASKED else "enabled",
                      SocketMode="0600" if name.endswith(".socket") else "")  # fmt: skip
        self.unit("libvirtd.service", Environment="LIBVIRTD_ARGS=")
        for name in ("openvswitch", "tun", "vfio_pci", "vhost_net"):
            self.folders.add(f"sys/module/{name}")
        self.firewall("drop", "drop")
        self.put("boot/vmlinuz-6.12.48-amd64", "")

    def unit(self, name: str, **properties: str) -> None:
        """Change what systemd says of a unit."""
        self.units.setdefault(name, {"Id": name}).update(properties)
        blocks = ("\n".join(f"{key}={value}" for key, value in each.items()) for each in self.units.values())
        self.commands[" ".join(SHOW)] = "\n\n".join(blocks) + "\n"

    def firewall(self, into: str, through: str) -> None:
        chains = [
            {"chain": {"family": "inet", "hook": hook, "policy": policy}}
            for hook, policy in (("input", into), ("forward", through))
        ]
        self.commands[NFT_RULESET] = json.dumps({"nftables": chains})
