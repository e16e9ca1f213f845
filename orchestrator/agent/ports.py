"""What the reconciler needs from a host, as ports. Real drivers and the simulated host have the same.

Every verb is an `ensure`: it can be repeated, and a crash between any two of them loses nothing. Every
failure is a `BulkheadError`. `tests/contract` says what an implementation must do and runs against both.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

from orchestrator.isolation.flows import FlowProgram
from orchestrator.isolation.verdicts import InstanceFacts
from orchestrator.model.assignment import Volume
from orchestrator.model.host import HostFacts
from orchestrator.model.launch import LaunchSpec
from orchestrator.model.observed import (
    ObservedDevice,
    ObservedDomain,
    ObservedSecret,
    ObservedSeed,
    ObservedSwitch,
    ObservedVolume,
    ResetEvidence,
)


class Hypervisor(Protocol):
    """libvirt, seen from outside."""

    def domains(self) -> tuple[ObservedDomain, ...]:
        """All domains with our metadata, running or not."""

    def define(self, spec: LaunchSpec) -> None:
        """Define or redefine the stopped domain; refuses (`domain.running`) while it runs."""

    def start(self, instance: str) -> None:
        """Start it; done when QEMU runs. A running domain is left as it is."""

    def stop(self, instance: str, grace_s: float) -> None:
        """Ask the guest to power off; after `grace_s` seconds pull the plug. Stopped or unknown is fine."""

    def undefine(self, instance: str) -> None:
        """Forget the stopped domain with its NVRAM and logs. Unknown is fine."""

    def secrets(self) -> tuple[ObservedSecret, ...]:
        """Secrets of ours that exist now."""

    def put_secret(self, volume: str, passphrase: bytes) -> None:
        """Hold a volume's passphrase in an ephemeral, private secret."""

    def drop_secret(self, volume: str) -> None:
        """Forget it. Unknown is fine."""


class Devices(Protocol):
    """VFIO binding and reset of PCI functions."""

    def observe(self, address: str) -> ObservedDevice | None:
        """Read one function; None when there is none at that address."""

    def bind(self, address: str, driver: str) -> None:
        """Make `driver` own the function, and read back that it does.

        Raises:
            DeviceError: `device.bind_timeout` (the kernel hangs; a marker stays until it comes back),
                `device.bind_in_flight` (an earlier attempt still hangs), `device.bind_failed`.
        """

    def give_back(self, address: str, driver: str | None) -> None:
        """Clear the override and let `driver` (None: the kernel's choice, or none) have the function."""

    def reset(self, address: str) -> ResetEvidence:
        """Reset the function by the kernel's best method and look whether it still answers."""


class Switch(Protocol):
    """Our own Open vSwitch bridge."""

    def kept(self) -> AbstractContextManager[None]:
        """Let calls within share what connecting costs; what each of them reads is as fresh as without."""

    def ensure_bridge(self) -> None:
        """Make the bridge: secure fail mode, no in-band control, no flows; uplink joined if configured."""

    def observe(self) -> ObservedSwitch:
        """Read bridge and ports from the database."""

    def label_port(self, port: str, *, instance: str, deployment: str, interface_id: str) -> None:
        """Mark the interface that libvirt plugged under this `iface-id` as ours, and see that it is closed.

        One transaction: our ids on the interface, the dead VLAN on the port, no mark that says open.

        Raises:
            NotFoundError: `network.port_not_found`.
            ConflictError: `network.port_taken`: the interface carries other ids of ours.
        """

    def open_port(self, port: str, vlan: int) -> None:
        """In one transaction: access mode, the tag, and the mark that says open."""

    def close_port(self, port: str) -> None:
        """In one transaction: the dead VLAN as trunk, tag gone, mark gone."""

    def remove_port(self, port: str) -> None:
        """Take a port away that no domain holds any more. Unknown is fine."""

    def replace_flows(self, program: FlowProgram) -> None:
        """Make the switch's flows equal to the program in one bundle: all of it or nothing."""

    def drift(self, program: FlowProgram) -> tuple[str, ...]:
        """Differences between the switch's flows and the program, one line each; empty when equal."""


class Volumes(Protocol):
    """Encrypted volumes and the image cache."""

    def observe(self) -> tuple[ObservedVolume, ...]:
        """All volume files with our names, finished or not."""

    def create(self, volume: Volume, *, deployment: str, tenant: str, passphrase: bytes) -> None:
        """Make the LUKS file, verify the image and write it in, and only then give it its name."""

    def erase(self, volume: str) -> None:
        """Overwrite the header, punch out the data, unlink. Unknown is fine."""

    def path(self, volume: str, generation: int) -> str:
        """Where a finished volume's file is."""


class Seeds(Protocol):
    """NoCloud seeds on tmpfs."""

    def observe(self) -> tuple[ObservedSeed, ...]:
        """All seeds that exist now."""

    def write(self, instance: str, generation: int, files: Mapping[str, bytes]) -> None:
        """Write the ISO labelled `cidata` with these files, atomically."""

    def remove(self, instance: str) -> None:
        """Take it away. Unknown is fine."""

    def path(self, instance: str) -> str:
        """Where an instance's seed is."""


class Keys(Protocol):
    """Where volume keys come from; the controller later, a descriptor passed in now."""

    def passphrase(self, volume: str, generation: int) -> bytes:
        """The volume's LUKS passphrase: base64 text of 32 random bytes.

        Raises:
            NotFoundError: `key.unknown`.
        """


class Inspector(Protocol):
    """Looks at the host's kernel, never at our own records."""

    def host(self) -> HostFacts:
        """Topology and devices now."""

    def instance(self, spec: LaunchSpec, domain: ObservedDomain) -> InstanceFacts:
        """What the kernel says about one running instance."""


class Guest(Protocol):
    """Talks to what runs inside an instance; its answers are hostile bytes until parsed by the worker."""

    def ask(self, socket_path: str, request: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """Send one request over the guest channel and return its bounded, parsed answer.

        Raises:
            HostError: `guest.no_answer`, `guest.bad_answer`.
        """
