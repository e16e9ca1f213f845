"""The simulated kernel's answers: what a correct host would show, by the world's state, not by orders."""

from __future__ import annotations

import dataclasses

from orchestrator.agent.sim.world import SimWorld
from orchestrator.isolation.facts import (
    CoreFacts,
    DeviceFacts,
    DiskFacts,
    InstanceFacts,
    KsmFacts,
    Neighbour,
    RamFacts,
)
from orchestrator.isolation.judge_process import SANDBOX
from orchestrator.model.host import HostFacts
from orchestrator.model.launch import LaunchSpec
from orchestrator.model.observed import ObservedDomain


class SimInspector:
    """Looks at a simulated host."""

    def __init__(self, world: SimWorld) -> None:
        self._world = world

    def host(self) -> HostFacts:
        """Read topology and devices."""
        self._world.look("read_host")
        return self._world.facts()

    def instance(self, spec: LaunchSpec, domain: ObservedDomain) -> InstanceFacts:  # noqa: ARG002
        """Read one running instance."""
        self._world.look("inspect")
        running = self._world.domains[domain.instance].spec
        order = running.instance
        pid = domain.pid
        kib = {cell.node: 0 for cell in order.memory.cells}
        for cell in order.memory.cells:
            kib[cell.node] += cell.memory_mib * 1024
        facts = InstanceFacts(
            pid=pid,
            start_ticks=pid,
            guest_name=domain.instance,
            uids=frozenset({running.uid}),
            gids=frozenset({running.uid}),
            groups=frozenset(),
            cap_effective=0,
            cap_permitted=0,
            no_new_privs=True,
            seccomp=2,
            sandbox=",".join(SANDBOX),
            label=f"libvirt-{running.uid:08x}-0000-0000-0000-000000000000 (enforce)",
            own_mount_namespace=True,
            core=CoreFacts(0, 0, "core"),
            accelerator="KVM",
            vcpu_threads={pin.vcpu: frozenset({pin.host_cpu}) for pin in order.cpus.pins},
            emulator_threads={pid or 0: frozenset(order.cpus.emulator)},
            kernel_threads={},
            ram=RamFacts(
                {order.memory.page_size_kib: kib},
                frozenset(f"bind:{cell.node}" for cell in order.memory.cells),
            ),
            ksm=KsmFacts(0, 0, 0),
            swapped_kib=0,
            plain_swaps=(),
            devices={
                device.address: self._device(device.address)
                for device in order.devices
                if device.address in self._world.functions
            },
            vfio_held=frozenset(device.address for device in order.devices),
            unsafe_interrupts=False,
            unsafe_noiommu=False,
            disks={
                volume.id: DiskFacts((), running.uid, running.uid, 0o600, (pid or 0,))
                for volume in order.volumes
            },
            seed_filesystem="tmpfs",
            console_filesystem="tmpfs",
            plain_secrets=0,
            secret_filesystems=frozenset({"tmpfs"}),
            secrets_left=frozenset(self._world.secrets),
            neighbours=self._neighbours(domain.instance),
        )
        if "process.uid" in self._world.misread:
            facts = dataclasses.replace(facts, uids=frozenset({0}))
        return facts

    def _device(self, address: str) -> DeviceFacts:
        function = self._world.functions[address]
        members = [f.address for f in self._world.functions.values() if f.group == function.group]
        holders = [
            other.pid
            for other in self._world.domains.values()
            if other.pid is not None and any(d.address == address for d in other.spec.instance.devices)
        ]
        return DeviceFacts(
            vendor=function.vendor,
            device=function.device,
            node=function.node,
            driver=function.driver,
            driver_override=self._world.overrides.get(address),
            members=frozenset(members),
            holders=tuple(holders),
        )

    def _neighbours(self, instance: str) -> tuple[Neighbour, ...]:
        return tuple(
            Neighbour(
                pid=other.pid,
                uid=other.spec.uid,
                cpus=frozenset(pin.host_cpu for pin in other.spec.instance.cpus.pins),
                label=f"libvirt-{other.spec.uid:08x}-0000-0000-0000-000000000000 (enforce)",
                tenant=other.spec.instance.tenant,
            )
            for name, other in sorted(self._world.domains.items())
            if other.pid is not None and name != instance
        )
