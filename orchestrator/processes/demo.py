"""A fleet to play with: a controller and eight simulated hosts of eight GPUs, three tenants and some load.

Needs no root and touches nothing outside its folder. Everything goes the way of the product: hosts enrol by
token over TLS and poll, instances are asked for over the API, placed by the scheduler and reported by agents.
Only the hosts are simulated. Called by `make demo`.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

from orchestrator.agent.link.certificates import Certificates, FreshKey
from orchestrator.agent.link.client import Link, enrol
from orchestrator.agent.sim.fleet import FleetThread, SimulatedFleet
from orchestrator.cli.profiles import Profile, Profiles, write_profiles
from orchestrator.client import Client
from orchestrator.processes import logs
from orchestrator.processes.control import Running, open_parts, operator_token
from orchestrator.processes.control_settings import ControlFile

HOSTS = 8
GPUS = 8
#: Seconds that steps take on a simulated host; about those of a fast real one.
LATENCIES = {"create_volume": 0.4, "start": 0.6, "bind": 0.2, "stop": 0.3}
#: Name, GPUs of its quota, and its instances by type.
TENANTS = (
    ("acme", 40, {"train": ("gpu-8", 3), "notebook": ("gpu-1", 4)}),
    ("globex", 24, {"serve": ("gpu-2", 6)}),
    ("initech", 32, {"sweep": ("gpu-4", 5)}),
)
TYPES = (("gpu-1", 4, 1), ("gpu-2", 8, 2), ("gpu-4", 16, 4), ("gpu-8", 48, 8))
IMAGE = "sha256:" + "d" * 64


def folder() -> Path:
    """Where the demo keeps its state; BULKHEAD_DEMO_DIR puts it elsewhere."""
    return Path(os.environ.get("BULKHEAD_DEMO_DIR", ".demo")).resolve()


class Demo:
    """What the demo does, step by step, as an operator and tenants would."""

    def __init__(self, running: Running, state: Path) -> None:
        self.running = running
        self.state = state
        self.ca = running.parts.authority.certificate_path
        self.operator_token = operator_token(running.parts, "demo")
        self.operator = Client(running.public_url, self.operator_token, ca=self.ca)
        self.tokens: dict[str, str] = {}
        self.join_tokens: list[str] = []

    def prepare(self) -> None:
        """Make types, the image and the tenants."""
        for name, vcpus, gpus in TYPES:
            self.operator.instance_types.create(
                {"name": name, "vcpus": vcpus, "memory_mib": vcpus * 4096, "gpus": gpus, "disk_gib": 50}
            )
        self.operator.images.create({"name": "probe", "digest": IMAGE, "size_bytes": 1 << 24})
        for name, gpus, _load in TENANTS:
            limits = {"instances": 50, "vcpus": 400, "memory_mib": 2_000_000, "gpus": gpus, "volumes": 100,
                      "disk_gib": 10_000, "networks": 5}  # fmt: skip
            self.operator.tenants.create({"name": name, "limits": limits})
            tenant = self.operator.tenant(name)
            tenant.users.create({"name": f"{name}-admin", "kind": "user", "roles": ["tenant-admin"]})
            scopes = ["read", "write", "admin", "audit"]
            made = tenant.tokens.create(
                {"user": f"{name}-admin", "name": "demo", "scopes": scopes, "days": 7}
            )
            self.tokens[name] = str(made.body["token"])

    def host_token(self, number: int) -> str:
        """Make one host and return its join token."""
        made = self.operator.hosts.create({"name": f"node{number + 1}", "disk_gib": 4000})
        return str(made.body["join_token"])

    async def link(self, number: int) -> Link:
        """Let one simulated host in, as `bulkhead agent enrol` does."""
        certificates = Certificates(self.state / "hosts" / f"node{number + 1}")
        key = FreshKey.make()
        token = self.join_tokens[number]
        answer, authority = await enrol(self.running.public_url, token, key.csr_pem)
        certificates.enrol(key, answer, authority)
        return Link(answer.agents_url, certificates.tls())

    def load(self) -> int:
        """Ask for the tenants' instances; return how many."""
        asked = 0
        for name, _gpus, load in TENANTS:
            with Client(self.running.public_url, self.tokens[name], ca=self.ca) as client:
                tenant = client.tenant(name)
                tenant.networks.create({"name": "lan", "cidr": "10.0.0.0/24"})
                for prefix, (kind, count) in load.items():
                    for number in range(1, count + 1):
                        wanted = {"type": kind, "image": "probe", "networks": ["lan"]}
                        tenant.instances.create({"name": f"{prefix}-{number}", **wanted})
                        asked += 1
        return asked

    def write_profiles(self) -> Path:
        """Write the operator's and the tenants' profiles; return the folder for XDG_CONFIG_HOME."""
        url, ca = self.running.public_url, str(self.ca)
        profiles = Profiles().having("operator", Profile(url=url, token=self.operator_token, ca=ca))
        for name, token in self.tokens.items():
            profiles = profiles.having(name, Profile(url=url, token=token, ca=ca, tenant=name))
        path = self.state / "config" / "bulkhead" / "config.toml"
        path.parent.mkdir(parents=True, mode=0o700)
        write_profiles(path, profiles)
        return path.parent.parent

    def states(self) -> dict[str, int]:
        """Count instances by state, over all tenants."""
        found: dict[str, int] = {}
        for name, _gpus, _load in TENANTS:
            for each in self.operator.tenant(name).instances:
                found[each["state"]] = found.get(each["state"], 0) + 1
        return found


def main() -> int:
    """Run until Ctrl-C."""
    began = time.monotonic()
    logs.configure(logging.WARNING)
    state = folder()
    if state.exists():
        sys.stderr.write(f"{state} is there already: another demo runs, or take it away first\n")
        return 5
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    settings = ControlFile(state_dir=state, public_port=0, agents_port=0, allow_keys_in_files=True)
    try:
        with Running(open_parts(settings)) as running:
            return _play(Demo(running, state), ended, began)
    finally:
        _remove(state)


def _play(demo: Demo, ended: threading.Event, began: float) -> int:
    say = sys.stderr.write
    demo.prepare()
    demo.join_tokens = [demo.host_token(number) for number in range(HOSTS)]
    say(f"controller  {demo.running.public_url}\n")
    with FleetThread(SimulatedFleet(HOSTS, GPUS, demo.link, LATENCIES, consoles=True)):
        say(f"hosts       {HOSTS} simulated of {GPUS} GPUs, after {time.monotonic() - began:.0f} s\n")
        asked = demo.load()
        while not ended.is_set() and time.monotonic() - began < 60:
            states = demo.states()
            if states.get("running", 0) + states.get("pending", 0) == asked and states.get("running", 0) > 0:
                break
            ended.wait(0.5)
        told = ", ".join(f"{count} {state}" for state, count in sorted(demo.states().items()))
        say(f"instances   {told}, after {time.monotonic() - began:.0f} s\n\n")
        sys.stdout.write(_hints(demo))
        sys.stdout.flush()
        ended.wait()
    return 0


def _hints(demo: Demo) -> str:
    config = demo.write_profiles()
    return (
        f"export XDG_CONFIG_HOME={config}\n"
        "bulkhead status\n"
        "bulkhead host list\n"
        "bulkhead instance list --tenant acme\n"
        "bulkhead --profile acme instance console notebook-1    (Ctrl-] leaves)\n"
        "bulkhead --profile globex instance create big --type gpu-8 --image probe --network lan\n"
        "Ctrl-C ends the demo and takes its folder away.\n"
    )


def _remove(state: Path) -> None:
    shutil.rmtree(state, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
