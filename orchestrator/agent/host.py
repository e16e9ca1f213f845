"""One host as the reconciler sees it: its drivers, and where its files are."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.agent.ports import Devices, Hypervisor, Inspector, Keys, Seeds, Switch, Volumes
from orchestrator.model.gpus import DEFAULT_MODELS


@dataclass(frozen=True)
class Host:
    """The drivers of one host: real ones, or those of `agent.sim`."""

    hypervisor: Hypervisor
    devices: Devices
    switch: Switch
    volumes: Volumes
    seeds: Seeds
    keys: Keys
    inspector: Inspector


@dataclass(frozen=True)
class AgentSettings:
    """What an operator may set; read by `orchestrator.processes.agent` alone."""

    #: Outlives reboots: the journal, the volumes, the image cache.
    state_dir: Path = Path("/var/lib/bulkhead")
    #: tmpfs: lock, seeds, consoles, guest sockets, markers.
    run_dir: Path = Path("/run/bulkhead")
    bridge: str = "br-bulkhead"
    #: Physical interface that carries the tenants' VLANs to other hosts; none on a single host.
    uplink: str | None = None
    vfio_driver: str = "vfio-pci"
    #: One uid per VM from this range, which nothing else on the host may use.
    uid_base: int = 2_100_000
    uid_count: int = 4096
    #: How long a guest may take to power off before the plug is pulled.
    stop_grace_s: float = 60.0
    #: How many instances may be made, started or stopped at once; 1 is one after another.
    at_once: int = 4
    #: How long the kernel may take to rebind a device before it counts as hung.
    bind_deadline_s: float = 30.0
    #: A stray goes only on a second sighting at least so much later.
    sighting_grace_s: float = 60.0
    #: CPUs of the host's own share; empty: the first core of each node.
    host_cpus: frozenset[int] = field(default_factory=frozenset)
    #: What counts as a GPU (`model.gpus`): `data-centre`, `display`, `vendor:device`, `vendor:*`.
    gpu_models: tuple[str, ...] = DEFAULT_MODELS
    #: Checks of the doctor that an operator accepts failing (`K1`, `L8`; `*` is all): told, but no cordon.
    doctor_accepted: tuple[str, ...] = ()

    @property
    def journal_path(self) -> Path:
        """The journal's file."""
        return self.state_dir / "agent" / "journal.json"

    @property
    def lock_path(self) -> Path:
        """The file whose flock makes the agent the only one."""
        return self.run_dir / "agent.lock"

    def console_path(self, instance: str) -> str:
        """Where an instance's console is kept (tmpfs)."""
        return str(self.run_dir / "console" / f"{instance}.log")

    def guest_socket(self, instance: str) -> str:
        """Where an instance's guest channel listens."""
        return str(self.run_dir / "guest" / f"{instance}.sock")
