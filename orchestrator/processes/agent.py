"""The agent process: joins the real drivers to the reconciler. Nothing here decides.

Imports of drivers stand inside the function that needs them, so that `bulkhead agent schema` runs where
there is no libvirt.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from orchestrator.agent.host import AgentSettings, Host
from orchestrator.agent.ports import Keys
from orchestrator.model.doctor import Finding

Findings = tuple[Finding, ...]

if TYPE_CHECKING:
    from orchestrator.agent.link.streams import Consoles


def real_host(settings: AgentSettings, keys: Keys) -> Host:
    """Make the drivers of this machine.

    Raises:
        HostError: libvirt or the switch cannot be reached.
    """
    from orchestrator.agent.devices import ProcessWorker, VfioDevices
    from orchestrator.agent.evidence import KernelInspector
    from orchestrator.agent.libvirt import LibvirtHypervisor
    from orchestrator.agent.network import OvsSwitch
    from orchestrator.agent.volumes import ImageCache, IsoSeeds, LuksVolumes

    settings.run_dir.mkdir(parents=True, exist_ok=True)
    for folder in (settings.run_dir, *(settings.run_dir / name for name in ("console", "guest", "seeds"))):
        folder.mkdir(exist_ok=True)
        # Every QEMU has a uid of its own: it may pass to its own file and list nothing.
        folder.chmod(0o711)
    hypervisor = LibvirtHypervisor()
    worker = ProcessWorker(settings.run_dir / "binding", settings.bind_deadline_s)
    switch = OvsSwitch(bridge=settings.bridge, uplink=settings.uplink)
    return Host(
        hypervisor=hypervisor,
        devices=VfioDevices(worker=worker),
        switch=switch,
        volumes=LuksVolumes(settings.state_dir / "volumes", ImageCache(settings.state_dir / "images")),
        seeds=IsoSeeds(settings.run_dir / "seeds"),
        keys=keys,
        inspector=KernelInspector(
            host_cpus=settings.host_cpus or None,
            gpu_models=settings.gpu_models,
            hypervisor=hypervisor,
            switch=switch,
            worker=worker,
        ),
    )


def simulated_host() -> tuple[Callable[[AgentSettings, Keys], Host], Consoles, Callable[..., Findings]]:
    """Make drivers, consoles and doctor of a host that is gone with this process, its VMs with it."""
    from orchestrator.agent.sim.consoles import SimConsoles
    from orchestrator.agent.sim.doctor import SOUND
    from orchestrator.agent.sim.drivers import sim_host
    from orchestrator.agent.sim.fleet import single_world

    world = single_world()
    return lambda _settings, keys: sim_host(world, keys), SimConsoles(world), lambda _facts: SOUND
