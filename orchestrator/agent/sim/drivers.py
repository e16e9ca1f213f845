"""The simulated host's drivers: each port of `agent.ports`, over a `SimWorld`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

from orchestrator.agent.host import Host
from orchestrator.agent.ports import Keys
from orchestrator.agent.sim.inspector import SimInspector
from orchestrator.agent.sim.world import SimDomain, SimPort, SimWorld
from orchestrator.isolation.flows import FlowProgram
from orchestrator.model.assignment import Volume
from orchestrator.model.errors import ConflictError, DeviceError, HostError, NotFoundError
from orchestrator.model.launch import LaunchSpec
from orchestrator.model.naming import interface_id, tap_name
from orchestrator.model.observed import (
    DomainState,
    GroupMember,
    ObservedDevice,
    ObservedDomain,
    ObservedPort,
    ObservedSecret,
    ObservedSeed,
    ObservedSwitch,
    ObservedVolume,
    ResetEvidence,
)

GIB = 1 << 30


class SimHypervisor:
    """libvirt of a simulated host."""

    def __init__(self, world: SimWorld) -> None:
        self._world = world

    def domains(self) -> tuple[ObservedDomain, ...]:
        """List all domains."""
        self._world.look("domains")
        return tuple(self._observed(name, self._world.domains[name]) for name in sorted(self._world.domains))

    def define(self, spec: LaunchSpec) -> None:
        """Define or redefine a stopped domain."""
        self._world.act("define")
        present = self._world.domains.get(spec.instance.id)
        if present is not None and present.pid is not None:
            raise ConflictError("domain.running", f"{spec.instance.id} runs")
        self._world.domains[spec.instance.id] = SimDomain(spec)

    def start(self, instance: str) -> None:
        """Start a domain: its disks need their secrets, its devices vfio, its taps appear closed."""
        self._world.act("start")
        domain = self._get(instance)
        if domain.pid is not None:
            return
        spec = domain.spec
        for volume in spec.instance.volumes:
            if self._world.secrets.get(volume.id) != self._world.volume_keys.get(volume.id, b""):
                raise HostError("domain.start_failed", f"{volume.id} cannot be opened: no or wrong secret")
        for device in spec.instance.devices:
            if self._world.functions[device.address].driver != "vfio-pci":
                raise HostError("domain.start_failed", f"{device.address} is not on vfio-pci")
            if self._holder(device.address) is not None:
                raise HostError("domain.start_failed", f"{device.address} is in use")
        if instance not in self._world.seeds:
            raise HostError("domain.start_failed", f"{spec.seed_path} does not exist")
        # As libvirt does it: taps before QEMU, each in place of one that an earlier try left.
        names = {tap_name(port.id) for port in spec.instance.ports}
        with self._world.libvirtd:
            self._world.ports = [port for port in self._world.ports if port.interface not in names] + [
                SimPort(interface_id(port.id), tap_name(port.id), self._world.next_ofport())
                for port in spec.instance.ports
            ]
        self._world.inside("start_domain")
        with self._world.libvirtd:
            domain.pid = self._world.next_pid()
        domain.started += 1

    def stop(self, instance: str, grace_s: float) -> None:  # noqa: ARG002 - guests here obey at once
        """Stop a domain; libvirt takes its taps away."""
        self._world.act("stop")
        domain = self._world.domains.get(instance)
        if domain is None or domain.pid is None:
            return
        domain.pid = None
        self._world.inside("stop_domain")
        taps = {tap_name(port.id) for port in domain.spec.instance.ports}
        with self._world.libvirtd:
            self._world.ports = [port for port in self._world.ports if port.interface not in taps]

    def undefine(self, instance: str) -> None:
        """Forget a stopped domain."""
        self._world.act("undefine")
        domain = self._world.domains.get(instance)
        if domain is not None and domain.pid is not None:
            raise ConflictError("domain.running", f"{instance} runs")
        self._world.domains.pop(instance, None)

    def secrets(self) -> tuple[ObservedSecret, ...]:
        """List secrets."""
        self._world.look("secrets")
        return tuple(ObservedSecret(volume) for volume in sorted(self._world.secrets))

    def put_secret(self, volume: str, passphrase: bytes) -> None:
        """Hold a passphrase."""
        self._world.act("put_secret")
        self._world.secrets[volume] = passphrase

    def drop_secret(self, volume: str) -> None:
        """Forget a passphrase."""
        self._world.act("drop_secret")
        self._world.secrets.pop(volume, None)

    def _get(self, instance: str) -> SimDomain:
        domain = self._world.domains.get(instance)
        if domain is None:
            raise NotFoundError("domain.not_found", f"{instance} is not defined")
        return domain

    def _holder(self, address: str) -> int | None:
        for domain in self._world.domains.values():
            if domain.pid is not None and any(d.address == address for d in domain.spec.instance.devices):
                return domain.pid
        return None

    def _observed(self, name: str, domain: SimDomain) -> ObservedDomain:
        spec = domain.spec
        return ObservedDomain(
            instance=name,
            tenant=spec.instance.tenant,
            deployment=spec.deployment,
            generation=spec.instance.generation,
            digest=spec.digest(),
            state=DomainState.SHUTOFF if domain.pid is None else DomainState.RUNNING,
            pid=domain.pid,
            uid=spec.uid,
            cpus=frozenset(pin.host_cpu for pin in spec.instance.cpus.pins),
            devices=tuple(device.address for device in spec.instance.devices),
            volumes=tuple(volume.id for volume in spec.instance.volumes),
            ports=tuple(port.id for port in spec.instance.ports),
        )


class SimDevices:
    """The simulated kernel's PCI drivers."""

    def __init__(self, world: SimWorld) -> None:
        self._world = world

    def observe(self, address: str) -> ObservedDevice | None:
        """Read one function."""
        self._world.look("observe_device")
        function = self._world.functions.get(address)
        if function is None:
            return None
        members = [f for f in self._world.functions.values() if f.group == function.group]
        holders = [
            domain.pid
            for domain in self._world.domains.values()
            if domain.pid is not None and any(d.address == address for d in domain.spec.instance.devices)
        ]
        return ObservedDevice(
            address=address,
            vendor=function.vendor,
            device=function.device,
            class_code=function.class_code,
            node=function.node,
            driver=function.driver,
            driver_override=self._world.overrides.get(address),
            group=function.group,
            members=tuple(
                GroupMember(f.address, f.class_code, f.driver)
                for f in sorted(members, key=lambda f: f.address)
            ),
            reset_methods=function.reset_methods,
            holders=tuple(holders),
            serial=function.serial,
            responds=address not in self._world.wedged,
        )

    def bind(self, address: str, driver: str) -> None:
        """Rebind, or hang as `world.hangs` says."""
        self._world.act("bind")
        if address not in self._world.functions:
            raise DeviceError("device.missing", f"there is no PCI function at {address}")
        if address in self._world.hung:
            raise DeviceError("device.bind_in_flight", f"an earlier bind of {address} still hangs")
        if address in self._world.hangs:
            self._world.hung.add(address)
            raise DeviceError("device.bind_timeout", f"the kernel does not let go of {address}")
        self._world.overrides[address] = driver
        self._world.inside("bind_device")
        self._world.set_driver(address, driver)

    def give_back(self, address: str, driver: str | None) -> None:
        """Clear the override; the old driver comes back."""
        self._world.act("give_back")
        self._world.overrides.pop(address, None)
        self._world.inside("give_back_device")
        self._world.set_driver(address, driver)

    def reset(self, address: str) -> ResetEvidence:
        """Reset one function."""
        self._world.act("reset")
        method = self._world.functions[address].reset_methods[0]
        return ResetEvidence(address, method, 0.0, address not in self._world.wedged)


class SimSwitch:
    """The simulated switch."""

    def __init__(self, world: SimWorld) -> None:
        self._world = world

    def kept(self) -> AbstractContextManager[None]:
        """Nothing is connected to."""
        return nullcontext()

    def ensure_bridge(self) -> None:
        """Make the bridge once."""
        self._world.look("ensure_bridge")
        if self._world.bridge_mode is None:
            self._world.act("make_bridge")
            self._world.bridge_mode = "secure"
            self._world.flows = FlowProgram(())

    def observe(self) -> ObservedSwitch:
        """Read all ports."""
        self._world.look("observe_switch")
        ours = [port for port in self._world.ports if port.port is not None]
        return ObservedSwitch(
            exists=self._world.bridge_mode is not None,
            fail_mode=self._world.bridge_mode or "",
            ports=tuple(self._observed(port) for port in sorted(ours, key=lambda p: p.interface)),
            foreign=tuple(sorted(port.interface for port in self._world.ports if port.port is None)),
        )

    def label_port(self, port: str, *, instance: str, deployment: str, interface_id: str) -> None:
        """Say whose a tap is; it stays closed."""
        self._world.act("label_port")
        found = next((each for each in self._world.ports if each.interface_id == interface_id), None)
        if found is None:
            raise NotFoundError("network.port_not_found", f"no interface carries the id of {port}")
        found.port, found.instance, found.deployment = port, instance, deployment
        found.vlan_mode, found.vlan, found.trunks, found.open = "trunk", None, (4095,), False

    def open_port(self, port: str, vlan: int) -> None:
        """Set tag and mark together."""
        self._world.act("open_port")
        found = self._find(port)
        found.vlan_mode, found.vlan, found.trunks, found.open = "access", vlan, (), True

    def close_port(self, port: str) -> None:
        """Back to the dead VLAN."""
        self._world.act("close_port")
        found = self._find(port)
        found.vlan_mode, found.vlan, found.trunks, found.open = "trunk", None, (4095,), False

    def remove_port(self, port: str) -> None:
        """Take it away."""
        self._world.act("remove_port")
        self._world.ports = [each for each in self._world.ports if each.port != port]

    def replace_flows(self, program: FlowProgram) -> None:
        """Swap the whole program."""
        self._world.act("replace_flows")
        self._world.flows = program

    def drift(self, program: FlowProgram) -> tuple[str, ...]:
        """Compare line by line."""
        self._world.look("drift")
        have = set(self._world.flows.flows) if self._world.flows else set()
        want = set(program.flows)
        return tuple(sorted([f"+{line}" for line in want - have] + [f"-{line}" for line in have - want]))

    def _find(self, port: str) -> SimPort:
        found = next((each for each in self._world.ports if each.port == port), None)
        if found is None:
            raise NotFoundError("network.port_not_found", f"{port} is not on the bridge")
        return found

    def _observed(self, port: SimPort) -> ObservedPort:
        return ObservedPort(
            port=port.port or "",
            instance=port.instance or "",
            deployment=port.deployment or "",
            interface=port.interface,
            ofport=port.ofport,
            vlan_mode=port.vlan_mode,
            vlan=port.vlan,
            trunks=port.trunks,
            open=port.open,
        )


class SimVolumes:
    """The simulated disk."""

    def __init__(self, world: SimWorld) -> None:
        self._world = world

    def observe(self) -> tuple[ObservedVolume, ...]:
        """List volumes."""
        self._world.look("volumes")
        return tuple(self._world.volumes[name] for name in sorted(self._world.volumes))

    def create(self, volume: Volume, *, deployment: str, tenant: str, passphrase: bytes) -> None:
        """Write a volume; what is cut off stays incomplete."""
        self._world.act("create_volume")
        if volume.image is not None and volume.image.digest not in self._world.images:
            raise NotFoundError("image.not_found", f"{volume.image.digest} is not on this host")
        size_bytes = volume.size_gib * GIB
        unfinished = ObservedVolume(volume.id, deployment, volume.generation, tenant, size_bytes, False)
        self._world.volumes[volume.id] = unfinished
        self._world.inside("create_volume")
        self._world.volume_keys[volume.id] = passphrase
        self._world.volumes[volume.id] = dataclasses.replace(unfinished, complete=True)

    def erase(self, volume: str) -> None:
        """Erase a volume: unreadable first, gone second."""
        self._world.act("erase_volume")
        self._world.volume_keys.pop(volume, None)
        found = self._world.volumes.get(volume)
        if found is not None:
            self._world.volumes[volume] = dataclasses.replace(found, complete=False)
        self._world.inside("erase_volume")
        self._world.volumes.pop(volume, None)

    def path(self, volume: str, generation: int) -> str:
        """Name a volume's file."""
        return f"/sim/volumes/{volume}/{generation}"


class SimSeeds:
    """The simulated tmpfs of seeds."""

    def __init__(self, world: SimWorld) -> None:
        self._world = world

    def observe(self) -> tuple[ObservedSeed, ...]:
        """List seeds."""
        self._world.look("seeds")
        return tuple(self._world.seeds[name] for name in sorted(self._world.seeds))

    def write(self, instance: str, generation: int, files: Mapping[str, bytes]) -> None:  # noqa: ARG002
        """Write a seed."""
        self._world.act("write_seed")
        self._world.inside("write_seed")
        self._world.seeds[instance] = ObservedSeed(instance, generation)

    def remove(self, instance: str) -> None:
        """Remove a seed."""
        self._world.act("remove_seed")
        self._world.seeds.pop(instance, None)

    def path(self, instance: str) -> str:
        """Name a seed's file."""
        return f"/sim/seeds/{instance}.iso"


class SimKeys:
    """Keys made from the volume's name, as a test can predict them; never used outside simulation."""

    def passphrase(self, volume: str, generation: int) -> bytes:
        """Return this volume's passphrase."""
        return f"sim-{volume}-{generation}".encode()


def sim_host(world: SimWorld, keys: Keys | None = None) -> Host:
    """Make the drivers of one simulated host. Cost: O(1); a new set after each simulated crash."""
    return Host(
        hypervisor=SimHypervisor(world),
        devices=SimDevices(world),
        switch=SimSwitch(world),
        volumes=SimVolumes(world),
        seeds=SimSeeds(world),
        keys=keys or SimKeys(),
        inspector=SimInspector(world),
    )
