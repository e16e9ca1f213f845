"""What hardware the lab host has: QEMU's arguments and the kernel's, as pure functions of a specification.

The devices stand in for a GPU server's: display adapters behind root ports of their own for GPUs, an SR-IOV
device, a plain NVMe disk, a DMA engine, and a pair that shares a group because nothing above it has ACS.
Where each ends up in the lab host's PCI tree follows from the order here and is listed in `DEVICES`. No
I/O; called by `lab`.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

MEMORY_MIB_PER_NODE = 2048
HUGEPAGES_PER_NODE = 400  # of 2 MiB: 800 MiB of each node's 2 GiB for tenants
LOOPBACK = "127.0.0.1"
GUEST_ADDRESS = "10.0.2.15"  # QEMU's user network gives the first guest this address
# No cmpxchg16b: QEMU 7.2 makes its flags of what was left by any instruction before it, and an interrupt just
# after it comes back with random ones (trap, alignment check): a double fault in the kernel's allocator.
EMULATED_CPU = "max,la57=off,cx16=off"
# Of what `bulkhead host prepare` has GRUB give a server's kernel, these: QEMU is this one's boot loader. The
# others cost an emulated machine its speed (clearing pages), or were never seen to run for long here.
BOOT_ARGUMENTS = ("intel_iommu=on", "iommu.strict=1", "iommu.passthrough=0")
# First PCI bus of each node's host bridge; the buses behind its root ports follow.
NODE_BUS = (0x20, 0x40)


@dataclass(frozen=True, slots=True)
class Shape:
    """CPU topology of the lab host; the threads of one socket are one NUMA node."""

    name: str
    sockets: int
    cores: int
    threads: int

    @property
    def cpus(self) -> int:
        return self.sockets * self.cores * self.threads

    def node_cpus(self, node: int) -> str:
        """Return the CPU list of `node` as QEMU's -numa takes it."""
        per_node = self.cores * self.threads
        return f"{node * per_node}-{(node + 1) * per_node - 1}"


SHAPES = {
    shape.name: shape
    for shape in (Shape("everyday", 2, 3, 1), Shape("smt", 2, 2, 2))
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Device:
    """One stand-in: its role, its place in the lab host's PCI tree, and QEMU's arguments for it."""

    role: str
    node: int
    address: str
    arguments: tuple[str, ...]


def _port(node: int, slot: int, *options: str) -> str:
    """A root port on a node's host bridge, without an I/O window: there are too few of them."""
    name = f"port{node}{slot}"
    number = node * 16 + slot + 1
    place = f"id={name},bus=node{node},addr={slot:#x},chassis={number},slot={number}"
    return ",".join(("pcie-root-port", place, "io-reserve=0", *options))


def _behind_port(role: str, node: int, slot: int, device: str) -> Device:
    bus = NODE_BUS[node] + 1 + slot
    address = f"0000:{bus:02x}:00.0"
    return Device(role, node, address, (_port(node, slot), f"{device},bus=port{node}{slot}"))


def _without_acs() -> tuple[Device, ...]:
    """A switch without ACS below a port without ACS: everything behind it is one IOMMU group."""
    node, slot = 1, 4
    # The bus of the switch's upstream port; the bus inside it is one on, its leaves two and three on.
    bus = NODE_BUS[node] + 1 + slot
    switch = (
        _port(node, slot, "disable-acs=on"),
        f"x3130-upstream,id=switch,bus=port{node}{slot}",
        "xio3130-downstream,id=leaf0,bus=switch,addr=0x0,chassis=40,slot=40",
        "xio3130-downstream,id=leaf1,bus=switch,addr=0x1,chassis=41,slot=41",
        "bochs-display,bus=leaf0",
    )
    return (
        Device("merged-gpu", node, f"0000:{bus + 2:02x}:00.0", switch),
        Device("merged-nic", node, f"0000:{bus + 3:02x}:00.0", ("e1000e,romfile=,bus=leaf1",)),
    )


# The SR-IOV disk needs two queues and one interrupt vector for each of its virtual functions.
_SRIOV = "nvme,serial=sriov,subsys=subsys0,sriov_max_vfs=4,sriov_vq_flexible=8,sriov_vi_flexible=4"
DEVICES: tuple[Device, ...] = (
    _behind_port("gpu0", 0, 0, "bochs-display"),
    _behind_port("gpu1", 0, 1, "bochs-display"),
    _behind_port("gpu2", 1, 0, "bochs-display"),
    _behind_port("gpu3", 1, 1, "bochs-display"),
    _behind_port("sriov", 0, 2, _SRIOV),
    _behind_port("nvme", 1, 2, "nvme,serial=plain,drive=nvme"),
    _behind_port("edu", 1, 3, "edu,dma_mask=0xffffffff"),
    *_without_acs(),
)
ADDRESS = {device.role: device.address for device in DEVICES}


@dataclass(frozen=True, slots=True)
class Spec:
    """One lab host to start. `wire` is (our, the other's) UDP port on 127.0.0.1, if there are two."""

    number: int
    shape: Shape
    accelerator: str
    kernel: Path
    initrd: Path
    overlay: Path
    nvme_disk: Path
    ssh_port: int
    public_key: str
    wire: tuple[int, int] | None = None
    probe_image: Path | None = None


def kernel_command_line(spec: Spec) -> str:
    """Return the kernel's parameters, with the public ssh key as a systemd credential."""
    key = base64.b64encode(spec.public_key.strip().encode()).decode()
    pages = ",".join(f"{node}:{HUGEPAGES_PER_NODE}" for node in range(spec.shape.sockets))
    words = [
        # 6 shows notices: the banner is one, and `watch` tells boots apart by it.
        "root=/dev/vda", "rw", "console=ttyS0", "loglevel=6", "fsck.mode=skip",
        "hugepagesz=2M", f"hugepages={pages}", "transparent_hugepage=never",
        *BOOT_ARGUMENTS,
        # Emulated CPUs stand still for a while when the machine is busy.
        "rcupdate.rcu_cpu_stall_timeout=120", "nowatchdog", "no_timer_check",
        f"systemd.hostname=lab{spec.number}", f"systemd.machine_id={spec.number:032x}",
        f"systemd.set_credential_binary=ssh.authorized_keys.root:{key}",
    ]  # fmt: skip
    return " ".join(words)


def arguments(spec: Spec) -> list[str]:
    """Return QEMU's arguments, without the program; its sockets and logs are in the folder it runs in."""
    cpu = "host" if spec.accelerator == "kvm" else EMULATED_CPU
    accelerator = "kvm" if spec.accelerator == "kvm" else "tcg,thread=multi,tb-size=1024"
    irqchip = ",kernel-irqchip=split" if spec.accelerator == "kvm" else ""
    shape = spec.shape
    argv = [
        "-name", f"bulkhead-lab{spec.number}", "-nodefaults", "-no-user-config", "-display", "none",
        "-machine", f"q35{irqchip}", "-accel", accelerator, "-cpu", cpu,
        "-smp", f"{shape.cpus},sockets={shape.sockets},cores={shape.cores},threads={shape.threads}",
        "-m", f"{MEMORY_MIB_PER_NODE * shape.sockets}M",
        "-kernel", str(spec.kernel), "-initrd", str(spec.initrd), "-append", kernel_command_line(spec),
        "-chardev", "file,id=console,path=console.log", "-serial", "chardev:console",
        "-qmp", "unix:qmp.sock,server=on,wait=off", "-pidfile", "pid",
        "-device", "intel-iommu,intremap=on",
    ]  # fmt: skip
    for node in range(shape.sockets):
        argv += ["-object", f"memory-backend-ram,id=memory{node},size={MEMORY_MIB_PER_NODE}M"]
        argv += ["-numa", f"node,nodeid={node},cpus={shape.node_cpus(node)},memdev=memory{node}"]
    argv += _disks(spec) + _networks(spec)
    for node, bus in enumerate(NODE_BUS):
        bridge = f"pxb-pcie,id=node{node},bus=pcie.0,addr={0x10 + node:#x},bus_nr={bus},numa_node={node}"
        argv += ["-device", bridge]
    argv += ["-device", "nvme-subsys,id=subsys0"]
    for argument in (argument for device in DEVICES for argument in device.arguments):
        argv += ["-device", argument]
    return argv


def _disks(spec: Spec) -> list[str]:
    """The root disk on top of the image, the plain NVMe disk's content, and the probe image if any."""
    # The machine's page cache outlives a dead QEMU, so "unsafe" loses nothing that a test looks at.
    argv = [
        "-drive", f"if=none,id=root,format=qcow2,cache=unsafe,discard=unmap,file={_escape(spec.overlay)}",
        "-device", "virtio-blk-pci,drive=root,bus=pcie.0,addr=0x4",
        "-drive", f"if=none,id=nvme,format=raw,cache=unsafe,file={_escape(spec.nvme_disk)}",
    ]  # fmt: skip
    if spec.probe_image is not None:
        argv += ["-drive", f"if=none,id=probe,format=raw,readonly=on,file={_escape(spec.probe_image)}"]
        argv += ["-device", "virtio-blk-pci,drive=probe,serial=probe,bus=pcie.0,addr=0x5"]
    return argv


def _networks(spec: Spec) -> list[str]:
    """The ssh forward (nothing else gets out of the user network), and the wire between two lab hosts."""
    forward = f"hostfwd=tcp:{LOOPBACK}:{spec.ssh_port}-{GUEST_ADDRESS}:22"
    argv = [
        "-netdev", f"user,id=mgmt,restrict=on,{forward}",
        "-device", "virtio-net-pci,netdev=mgmt,romfile=,bus=pcie.0,addr=0x2",
    ]  # fmt: skip
    if spec.wire is not None:
        ours, theirs = spec.wire
        # UDP, because either end may die and come back without the other noticing.
        wire = f"socket,id=uplink,udp={LOOPBACK}:{theirs},localaddr={LOOPBACK}:{ours}"
        mac = f"52:54:00:1a:b0:{spec.number:02x}"
        argv += ["-netdev", wire]
        argv += ["-device", f"virtio-net-pci,netdev=uplink,mac={mac},romfile=,bus=pcie.0,addr=0x3"]
    return argv


def _escape(path: Path) -> str:
    """A comma in a path is doubled in QEMU's option syntax."""
    return str(path).replace(",", ",,")


def describe(devices: Sequence[Device] = DEVICES) -> str:
    """One line per stand-in for `status`."""
    return "\n".join(f"  {device.role:<11} {device.address}  node {device.node}" for device in devices)
