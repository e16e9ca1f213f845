"""`ports.Inspector` for real: fills `isolation.facts` from the kernel, and never from our own records.

libvirt is asked for two things that no kernel knows (passphrases it still holds, the tenant of a neighbour),
the switch for its ports. What cannot be read is None. A process that ends or is replaced while it is looked
at leaves no fact at all: its start time is read before and after everything else. The reconciler calls it
before a port opens, and on every later look.
"""

from __future__ import annotations

import re
from pathlib import Path

from hostprep.probe import read_host
from orchestrator.agent.devices.worker import ProcessWorker, Worker
from orchestrator.agent.evidence import memory, process, things
from orchestrator.agent.evidence.argv import read_argv
from orchestrator.agent.evidence.mounts import filesystem_of, read_mounts
from orchestrator.agent.evidence.neighbours import helper_threads, read_neighbours
from orchestrator.agent.evidence.openfiles import OpenFiles, scan
from orchestrator.agent.ports import Hypervisor, Switch
from orchestrator.isolation.facts import InstanceFacts
from orchestrator.model.errors import BulkheadError
from orchestrator.model.gpus import DEFAULT_MODELS
from orchestrator.model.host import HostFacts
from orchestrator.model.launch import LaunchSpec
from orchestrator.model.observed import ObservedDomain, ObservedPort

#: QEMU's thread names: one per vCPU, or one for all of them under the emulator's older scheme.
_VCPU = re.compile(r"^CPU (\d+)/(KVM|TCG)$")
_ALL_VCPUS = "ALL CPUs/TCG"
#: Reading one attribute takes no time unless the device's lock is held.
_READ_DEADLINE_S = 10.0


class KernelInspector:
    """Looks at this host.

    Args:
        host_cpus: CPUs of the host's own share; None takes the first core of each node.
        gpu_models: what counts as a GPU here.
        hypervisor: asked for secrets and tenants only.
        switch: asked for ports only.
        root: where `proc`, `sys` and the host's files are.
        worker: reads what the kernel guards with a device's lock; by default a process of its own.
    """

    def __init__(
        self,
        *,
        host_cpus: frozenset[int] | None,
        gpu_models: tuple[str, ...] = DEFAULT_MODELS,
        hypervisor: Hypervisor,
        switch: Switch,
        root: Path = Path("/"),
        worker: Worker | None = None,
    ) -> None:
        self._root = root
        self._host_cpus = host_cpus
        self._gpu_models = gpu_models
        self._hypervisor = hypervisor
        self._switch = switch
        self._worker: Worker = worker or ProcessWorker(root / "run/bulkhead/binding", _READ_DEADLINE_S)

    def host(self) -> HostFacts:
        """Read topology and devices now.

        Raises:
            HostError: `host.unreadable`.
        """
        return read_host(self._root, self._host_cpus, self._gpu_models)

    def instance(self, spec: LaunchSpec, domain: ObservedDomain) -> InstanceFacts:
        """Read one running instance; no facts at all when its process ends meanwhile."""
        if domain.pid is None:
            return InstanceFacts()
        folder = process.folder(self._root, domain.pid)
        before = process.start_ticks(folder)
        if before is None:
            return InstanceFacts()
        facts = self._read(spec, domain.pid, before)
        return facts if process.start_ticks(folder) == before else InstanceFacts()

    def _read(self, spec: LaunchSpec, pid: int, started: int) -> InstanceFacts:
        root, folder, order = self._root, process.folder(self._root, pid), spec.instance
        volumes = {v.id: things.read_volume(root, spec.volume_paths[v.id]) for v in order.volumes}
        files = scan(root, [each.file for each in volumes.values() if each is not None])
        devices = {d.address: things.read_device(root, self._worker, files, d.address) for d in order.devices}
        threads = process.threads(folder)
        standing = process.standing(threads)
        argv = read_argv(folder)
        vcpus, others, kernels = _split(threads)
        mounts = read_mounts(root / "proc/self")
        return InstanceFacts(
            pid=pid,
            start_ticks=started,
            guest_name=argv.guest_name if argv else None,
            uids=standing.uids,
            gids=standing.gids,
            groups=standing.groups,
            cap_effective=standing.cap_effective,
            cap_permitted=standing.cap_permitted,
            no_new_privs=standing.no_new_privs,
            seccomp=standing.seccomp,
            sandbox=argv.sandbox if argv else None,
            label=process.label(folder),
            own_mount_namespace=process.own_mount_namespace(root, folder),
            core=process.core(root, folder),
            accelerator=_accelerator(threads, files, pid),
            vcpu_threads=vcpus,
            emulator_threads=_with_helpers(others, helper_threads(root, files, pid)),
            kernel_threads=kernels,
            ram=memory.read_ram(folder, [cell.memory_mib * 1024 for cell in order.memory.cells]),
            ksm=memory.read_ksm(root, folder),
            swapped_kib=threads[0].number("VmSwap") if threads else None,
            plain_swaps=memory.plain_swaps(root),
            devices={address: each for address, each in devices.items() if each is not None},
            vfio_held=things.held(root, files, pid),
            unsafe_interrupts=things.unsafe_interrupts(root),
            unsafe_noiommu=things.unsafe_noiommu(root),
            disks={id_: each.facts(files) for id_, each in volumes.items() if each is not None},
            seed_filesystem=filesystem_of(root, mounts, spec.seed_path),
            console_filesystem=filesystem_of(root, mounts, spec.console_path),
            plain_secrets=argv.plain_secrets if argv else None,
            secret_filesystems=self._secret_filesystems(folder, argv.secret_files if argv else None),
            secrets_left=self._secrets_left(),
            neighbours=read_neighbours(root, files, pid, self._tenants()),
            ports=self._ports(spec),
        )

    def _secret_filesystems(self, folder: Path, paths: frozenset[str] | None) -> frozenset[str] | None:
        """Look with the process' own mounts: they are what it opened the files through."""
        mounts = read_mounts(folder)
        found: set[str] = set()
        for path in paths or ():
            filesystem = filesystem_of(self._root, mounts, path)
            if filesystem is None:
                return None
            found.add(filesystem)
        return None if paths is None else frozenset(found)

    def _secrets_left(self) -> frozenset[str] | None:
        try:
            return frozenset(secret.volume for secret in self._hypervisor.secrets())
        except BulkheadError:
            return None

    def _tenants(self) -> dict[int, str]:
        """Tenants by pid; without them every neighbour counts as a stranger."""
        try:
            return {each.pid: each.tenant for each in self._hypervisor.domains() if each.pid is not None}
        except BulkheadError:
            return {}

    def _ports(self, spec: LaunchSpec) -> tuple[ObservedPort, ...] | None:
        """Ports that carry this instance's id or one of its ports' ids, whoever else they say they are of."""
        ordered = {port.id for port in spec.instance.ports}
        try:
            seen = self._switch.observe().ports
        except BulkheadError:
            return None
        return tuple(each for each in seen if each.port in ordered or each.instance == spec.instance.id)


_Threads = dict[int, frozenset[int]] | None


def _split(threads: tuple[process.Thread, ...] | None) -> tuple[_Threads, _Threads, _Threads]:
    """Part vCPU threads (by vCPU number), QEMU's others and the kernel's (by tid).

    All None where one of them does not say its CPUs.
    """
    if threads is None:
        return None, None, None
    vcpus: dict[int, frozenset[int]] = {}
    others: dict[int, frozenset[int]] = {}
    kernels: dict[int, frozenset[int]] = {}
    for thread in threads:
        if thread.cpus is None or thread.name is None:
            return None, None, None
        match = _VCPU.match(thread.name)
        if thread.is_kernels:
            kernels[thread.tid] = thread.cpus
        elif match is None:
            others[thread.tid] = thread.cpus
        else:
            # Two threads of one number are both looked at: neither may run elsewhere.
            number = int(match.group(1))
            vcpus[number] = vcpus.get(number, frozenset()) | thread.cpus
    return vcpus, others, kernels


def _with_helpers(others: _Threads, helpers: _Threads) -> _Threads:
    return None if others is None or helpers is None else {**others, **helpers}


def _accelerator(threads: tuple[process.Thread, ...] | None, files: OpenFiles, pid: int) -> str | None:
    """Say what runs the vCPUs; a name alone does not prove KVM, the machine's descriptor does."""
    names = [thread.name or "" for thread in threads or ()]
    kinds = {match.group(2) for match in map(_VCPU.match, names) if match}
    if "TCG" in kinds or _ALL_VCPUS in names:
        return "TCG"
    if not kinds or not files.complete:
        return None
    return "KVM" if pid in files.machines else "no kvm-vm descriptor"
