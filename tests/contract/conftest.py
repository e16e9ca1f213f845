"""One set of promises, two kinds of host: the simulated one, and, inside the lab host, the real drivers.

`BULKHEAD_CONTRACT` says which: unset is the simulated host; otherwise a JSON object with the image's digest
and size, given by the lab tests, which run this folder inside the lab host. The real run uses a bridge,
folders and a GPU stand-in of its own and leaves nothing behind.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from images.labhost.tenants import DEPLOYMENT, Tenancy, instance_for
from orchestrator.agent.host import AgentSettings, Host
from orchestrator.agent.sim import everyday_world, sim_host
from orchestrator.model.assignment import ImageRef, Instance
from orchestrator.model.launch import LaunchSpec

UID = 2_199_999


class ContractKeys:
    """A fixed key: the passphrase of every volume here."""

    def passphrase(self, volume: str, generation: int) -> bytes:
        return base64.b64encode(volume.encode().ljust(32, b"!"))


@dataclass(frozen=True)
class Target:
    """A host under contract and one instance that fits it."""

    host: Host
    instance: Instance
    settings: AgentSettings
    real: bool

    def spec(self, instance: Instance | None = None) -> LaunchSpec:
        chosen = instance or self.instance
        return LaunchSpec(
            instance=chosen,
            deployment=DEPLOYMENT,
            uid=UID,
            volume_paths={v.id: self.host.volumes.path(v.id, v.generation) for v in chosen.volumes},
            seed_path=self.host.seeds.path(chosen.id),
            console_path=self.settings.console_path(chosen.id),
            guest_socket=self.settings.guest_socket(chosen.id),
            bridge=self.settings.bridge,
        )


@pytest.fixture(scope="module")
def target(tmp_path_factory) -> Iterator[Target]:
    told = os.environ.get("BULKHEAD_CONTRACT")
    made = _simulated(tmp_path_factory.mktemp("sim")) if told is None else _real(json.loads(told))
    yield made
    host, instance = made.host, made.instance
    host.hypervisor.stop(instance.id, 1.0)
    host.hypervisor.undefine(instance.id)
    for port in host.switch.observe().ports:
        host.switch.remove_port(port.port)
    for volume in instance.volumes:
        host.hypervisor.drop_secret(volume.id)
        host.volumes.erase(volume.id)
    host.seeds.remove(instance.id)
    host.devices.give_back(instance.devices[0].address, None)


def _simulated(tmp: Path) -> Target:
    world = everyday_world()
    image = ImageRef(digest="sha256:" + "1" * 64, size_bytes=1 << 20)
    world.images.add(image.digest)
    settings = AgentSettings(state_dir=tmp / "state", run_dir=tmp / "run")
    host = dataclasses.replace(sim_host(world), keys=ContractKeys())
    return Target(host, _instance(dataclasses.asdict(world.facts()), image), settings, real=False)


def _real(told: dict[str, object]) -> Target:
    from hostprep.probe import read_host
    from orchestrator.processes.agent import real_host

    settings = AgentSettings(
        state_dir=Path("/var/lib/bulkhead/contract"),
        run_dir=Path("/run/bulkhead-contract"),
        bridge="br-contract",
    )
    images = settings.state_dir / "images"
    images.parent.mkdir(parents=True, exist_ok=True)
    if not images.exists():
        images.symlink_to("/var/lib/bulkhead/images")
    image = ImageRef(digest=str(told["digest"]), size_bytes=int(str(told["size_bytes"])))
    probe = dataclasses.asdict(read_host(Path("/"), None))
    return Target(real_host(settings, ContractKeys()), _instance(probe, image), settings, real=True)


def _instance(probe: dict[str, object], image: ImageRef) -> Instance:
    """A VM on the last core and stand-in of node 1, where nothing else of the lab tests runs."""
    return instance_for(Tenancy("contract", "one", 1, 199, 9), probe, image, core=1)
