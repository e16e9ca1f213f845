"""A host in a directory on which one instance runs exactly as ordered: proc, sys, its files, whom to ask.

Tests change one fact of it and look which verdict turns. The spec has every kind of thing that is judged.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path

from orchestrator.agent.devices.worker import InFlight
from orchestrator.agent.evidence import KernelInspector
from orchestrator.isolation import luks
from orchestrator.isolation.judge_process import SANDBOX
from orchestrator.isolation.verdicts import InstanceFacts, Status, judge
from orchestrator.model.assignment import Instance
from orchestrator.model.errors import HostError
from orchestrator.model.launch import LaunchSpec
from orchestrator.model.observed import (
    DomainState,
    ObservedDomain,
    ObservedPort,
    ObservedSecret,
    ObservedSwitch,
)
from tests.unit.devices.fakesys import FakeSys

PID, OTHER_PID = 4000, 5000
GPU, OTHER_GPU = "0000:41:00.0", "0000:42:00.0"
GROUP, OTHER_GROUP = 3, 9
VM, VOLUME, PORT = "vm_train", "vol_root", "prt_eth"
START_TICKS = 7_000
MEMORY_MIB = 512
LABEL = "libvirt-11111111-2222-3333-4444-555555555555 (enforce)"
OTHER_LABEL = "libvirt-99999999-2222-3333-4444-555555555555 (enforce)"
MASTER_KEY = "/var/lib/libvirt/qemu/domain-1-vm_train/master-key.aes"
SEED, CONSOLE = "/run/bulkhead/seeds/vm_train.iso", "/run/bulkhead/console/vm_train.log"
VOLUME_PATH = "/var/lib/bulkhead/volumes/vol_root/g1.luks"

RAM_START, HEAP_START = "7f0000000000", "55d000000000"


def luks_header(*, mode: bytes = b"xts-plain64") -> bytes:
    """A LUKS1 header as `luks` wants it."""
    head = struct.pack(
        ">6sH32s32s32sII20s32sI40s",
        luks.MAGIC, 1, b"aes", mode, b"sha256", 4096, 64, b"d" * 20, b"s" * 32, 1000, b"uuid",
    )  # fmt: skip
    slots = [
        struct.pack(">II32sII", 0xAC71F3 if index == 0 else 0xDEAD, 1000, b"s" * 32, 8 + index * 504, 4000)
        for index in range(8)
    ]
    return head + b"".join(slots)


class ReadingWorker:
    """Reads at once; `before` runs first, for what happens while others look."""

    def __init__(self) -> None:
        self.before: Callable[[], None] = lambda: None

    def write(self, address, action, writes) -> None:
        raise AssertionError("the inspector never writes")

    def read(self, address: str, path: Path) -> str | None:
        self.before()
        return path.read_text().strip() if path.exists() else None

    def in_flight(self, address: str) -> InFlight | None:
        return None


class GoodHost:
    """The host; also the hypervisor and the switch that the inspector asks."""

    def __init__(self, root: Path, page_size_kib: int = 2048) -> None:
        self.root = root
        self.sys = FakeSys(root)
        self.page_size_kib = page_size_kib
        self.worker = ReadingWorker()
        self.held_secrets: tuple[str, ...] | None = ()
        self.tenants = {PID: "ten_acme"}
        self.port: dict = {}
        self.ports_known = True
        self.file(VOLUME_PATH, luks_header())
        (root / VOLUME_PATH.lstrip("/")).chmod(0o600)
        self.uid = (root / VOLUME_PATH.lstrip("/")).stat().st_uid
        for path in (SEED, CONSOLE, MASTER_KEY):
            self.file(path, b"x")
        self._topology()
        self._kernel()
        self._devices()
        self._process()
        self.neighbour()

    # What is asked, and what is answered.

    def secrets(self) -> tuple[ObservedSecret, ...]:
        if self.held_secrets is None:
            raise HostError("secret.list_failed", "libvirt does not answer")
        return tuple(map(ObservedSecret, self.held_secrets))

    def domains(self) -> tuple[ObservedDomain, ...]:
        return tuple(self.domain(pid, tenant) for pid, tenant in self.tenants.items())

    def observe(self) -> ObservedSwitch:
        if not self.ports_known:
            raise HostError("network.unreachable", "the switch does not answer")
        fields = {
            "port": PORT, "instance": VM, "deployment": "dep_lab", "interface": "tap0", "ofport": 1,
            "vlan_mode": "access", "vlan": 101, "trunks": (), "open": True,
        }  # fmt: skip
        strange = ObservedPort("prt_other", "vm_other", "dep_lab", "tap1", 2, "trunk", None, (), False)
        return ObservedSwitch(True, "secure", (ObservedPort(**{**fields, **self.port}), strange))

    def domain(self, pid: int | None = PID, tenant: str = "ten_acme") -> ObservedDomain:
        name = VM if pid == PID else "vm_other"
        return ObservedDomain(
            name, tenant, "dep_lab", 1, "", DomainState.RUNNING, pid, self.uid, frozenset(), (), (), ()
        )

    @property
    def spec(self) -> LaunchSpec:
        instance = Instance.model_validate({
            "id": VM, "generation": 1, "tenant": "ten_acme", "name": "train", "isolation": "dedicated",
            "cpus": {"pins": [{"vcpu": 0, "host_cpu": 4}, {"vcpu": 1, "host_cpu": 5}], "emulator": [3]},
            "memory": {
                "page_size_kib": self.page_size_kib,
                "cells": [{"node": 1, "memory_mib": MEMORY_MIB, "vcpus": [0, 1]}],
            },
            "devices": [{"id": "gpu_a", "address": GPU, "vendor": "1234", "device": "1111", "node": 1}],
            "volumes": [{"id": VOLUME, "generation": 1, "size_gib": 1}],
            "ports": [{
                "id": PORT, "network": "net_a", "vlan": 101, "mac": "02:00:00:00:00:01",
                "addresses": [{"address": "10.0.0.10", "prefix_length": 24}],
            }],
        })  # fmt: skip
        return LaunchSpec(
            instance,
            "dep_lab",
            self.uid,
            {VOLUME: VOLUME_PATH},
            SEED,
            CONSOLE,
            "/run/guest.sock",
            "br-bulkhead",
        )

    def inspector(self) -> KernelInspector:
        return KernelInspector(
            host_cpus=None,
            hypervisor=self,  # type: ignore[arg-type]
            switch=self,  # type: ignore[arg-type]
            root=self.root,
            worker=self.worker,
        )

    def facts(self) -> InstanceFacts:
        return self.inspector().instance(self.spec, self.domain())

    def verdicts(self) -> dict[str, Status]:
        """Status by id; the spec has one thing of each kind, so no id comes twice."""
        found = judge(self.spec, self.inspector().host(), self.facts(), ports_open=True)
        assert len({v.id for v in found}) == len(found)
        return {v.id: v.status for v in found}

    # How the tree is made and changed.

    def put(self, path: str, text: str | int) -> None:
        self.sys.put(path, text)

    def file(self, path: str, content: bytes) -> None:
        target = self.root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)

    def link(self, path: str, target: str) -> None:
        where = self.root / path
        where.parent.mkdir(parents=True, exist_ok=True)
        where.unlink(missing_ok=True)
        where.symlink_to(target)

    def edit(self, path: str, old: str, new: str) -> None:
        """Change one place in a file; it must be there."""
        text = (self.root / path).read_bytes().decode()
        assert old in text, f"{path} has no {old!r}"
        (self.root / path).write_bytes(text.replace(old, new).encode())

    def edit_argv(self, old: str, new: str) -> None:
        self.edit(f"proc/{PID}/cmdline", old, new)

    def edit_thread(self, tid: int, old: str, new: str) -> None:
        self.edit(f"proc/{PID}/task/{tid}/status", old, new)

    def opened(self, pid: int, target: str) -> None:
        self.sys.opened(pid, target)

    def open_volume(self, pid: int) -> None:
        self.opened(pid, str(self.root / VOLUME_PATH.lstrip("/")))

    def thread(self, pid: int, tid: int, name: str, cpus: str, *, uid: int | None = None) -> None:
        uid = self.uid if uid is None else uid
        ids = "\t".join([str(uid)] * 4)
        self.put(
            f"proc/{pid}/task/{tid}/status",
            f"Name:\t{name}\nUid:\t{ids}\nGid:\t{ids}\nGroups:\t{uid} \nVmSwap:\t       0 kB\n"
            f"CapPrm:\t0000000000000000\nCapEff:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\n"
            f"Cpus_allowed_list:\t{cpus}",
        )

    def stat(self, pid: int, *, started: int = START_TICKS, state: str = "S") -> None:
        """`comm` holds a bracket and a blank, as any process may call itself."""
        self.put(f"proc/{pid}/stat", f"{pid} (qemu) x) {state} 1 {'0 ' * 17}{started} 0 0")

    def neighbour(
        self,
        *,
        uid: int | None = None,
        label: str = OTHER_LABEL,
        cpus: str = "1",
        tenant: str = "ten_globex",
    ) -> None:
        """Another tenant's VM, or the same one changed."""
        self.stat(OTHER_PID)
        self.thread(OTHER_PID, OTHER_PID, "qemu-system-x86", cpus, uid=self.uid + 1 if uid is None else uid)
        self.put(f"proc/{OTHER_PID}/attr/current", label)
        self.opened(OTHER_PID, "anon_inode:kvm-vm")
        self.tenants[OTHER_PID] = tenant

    def ram(self, pages: str, *, policy: str = "bind:1", page_kib: int | None = None) -> None:
        """Write numa_maps; `pages` is what stands for guest RAM (`N1=256`)."""
        page_kib = page_kib or self.page_size_kib
        backing = "file=/dev/hugepages/libvirt/qemu/1-vm/ram\\040(deleted) huge" if page_kib > 4 else ""
        self.put(
            f"proc/{PID}/numa_maps",
            f"{HEAP_START} default heap anon=900 N0=900 kernelpagesize_kB=4\n"
            f"{RAM_START} {policy} {backing} anon=1 dirty=1 {pages} kernelpagesize_kB={page_kib}\n"
            "7f1000000000 default file=/usr/lib/libc.so.6 mapped=90 N0=90 kernelpagesize_kB=4\n"
            "7f2000000000 prefer:0 anon=33 N0=33 kernelpagesize_kB=4",
        )

    def mounts(self, pid: str | int, **types: str) -> None:
        """Write mountinfo; all points are on the tree's own device, as the files are."""
        number = (self.root / SEED.lstrip("/")).stat().st_dev
        device = f"{os.major(number)}:{os.minor(number)}"
        points = {
            "/": "ext4",
            "/run": "tmpfs",
            "/run/bulkhead/seeds": "tmpfs",
            "/run/bulkhead/console": "tmpfs",
        }
        points["/var/lib/libvirt/qemu"] = "tmpfs"
        points.update({f"/{name.replace('_', '/')}": kind for name, kind in types.items()})
        lines = [
            f"{index} 1 {device} / {point} rw,relatime shared:1 - {kind} none rw"
            for index, (point, kind) in enumerate(points.items())
        ]
        self.put(f"proc/{pid}/mountinfo", "\n".join(lines))

    def _topology(self) -> None:
        self.put("sys/devices/system/cpu/online", "0-5")
        for cpu in range(6):
            folder = f"sys/devices/system/cpu/cpu{cpu}/topology"
            self.put(f"{folder}/thread_siblings_list", cpu)
            self.put(f"{folder}/physical_package_id", cpu // 3)
            self.put(f"{folder}/core_id", cpu % 3)
        for node, cpus in ((0, "0-2"), (1, "3-5")):
            self.put(f"sys/devices/system/node/node{node}/cpulist", cpus)
            self.put(f"sys/devices/system/node/node{node}/meminfo", f"Node {node} MemTotal: 2097152 kB")

    def _kernel(self) -> None:
        self.put("proc/sys/kernel/core_pattern", "core")
        self.put("proc/swaps", "Filename\tType\tSize\tUsed\tPriority")
        self.put("sys/kernel/mm/ksm/run", 0)
        self.put("sys/kernel/mm/ksm/pages_shared", 0)
        self.put("sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts", "N")
        self.put("sys/module/iommufd/parameters/allow_unsafe_interrupts", "N")
        self.put("sys/module/vfio/parameters/enable_unsafe_noiommu_mode", "N")
        self.link("proc/1/ns/mnt", "mnt:[4026531841]")
        self.mounts("self")
        self.opened(1, "/dev/null")

    def _devices(self) -> None:
        for address, group in ((GPU, GROUP), (OTHER_GPU, OTHER_GROUP)):
            self.sys.function(address, driver="vfio-pci", group=group)
            self.put(f"sys/devices/pci0000:20/{address}/driver_override", "vfio-pci")
        self.sys.function("0000:40:00.0", class_code="0x060400", group=GROUP)

    def _process(self) -> None:
        self.stat(PID)
        self.put(f"proc/{PID}/attr/current", LABEL)
        self.link(f"proc/{PID}/ns/mnt", "mnt:[4026532999]")
        limit = "Limit                     Soft Limit           Hard Limit           Units"
        self.put(f"proc/{PID}/limits", f"{limit}\nMax core file size        0        unlimited        bytes")
        self.put(f"proc/{PID}/ksm_merging_pages", 0)
        size = MEMORY_MIB << 20
        self.put(
            f"proc/{PID}/maps",
            f"{HEAP_START}-{int(HEAP_START, 16) + (900 << 12):x} rw-p 00000000 00:00 0 [heap]\n"
            f"{RAM_START}-{int(RAM_START, 16) + size:x} rw-p 00000000 00:00 0\n"
            "7f2000000000-7f2000021000 rw-p 00000000 00:00 0",
        )
        self.ram(f"N1={MEMORY_MIB * 1024 // self.page_size_kib}")
        self.mounts(PID)
        argv = [
            "/usr/bin/qemu-system-x86_64", "-name", f"guest={VM},debug-threads=on",
            "-object", f'{{"qom-type":"secret","id":"masterKey0","format":"raw","file":"{MASTER_KEY}"}}',
            "-object", '{"qom-type":"secret","id":"s0","data":"c2VhbGVk","keyid":"masterKey0","iv":"aXY="}',
            "-object", '{"qom-type":"memory-backend-file","id":"ram-node0","size":536870912}',
            "-sandbox", ",".join(SANDBOX),
        ]  # fmt: skip
        self.file(f"proc/{PID}/cmdline", b"".join(word.encode() + b"\0" for word in argv))
        self.thread(PID, PID, "qemu-system-x86", "3")
        self.thread(PID, PID + 1, "CPU 0/KVM", "4")
        self.thread(PID, PID + 2, "CPU 1/KVM", "5")
        self.thread(PID, PID + 3, "IO mon_iothread", "3")
        for target in ("/dev/null", "anon_inode:kvm-vm", "/dev/vfio/vfio", f"/dev/vfio/{GROUP}"):
            self.opened(PID, target)
        self.open_volume(PID)
