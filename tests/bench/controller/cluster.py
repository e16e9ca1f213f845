"""A controller in a process of its own, as `controller serve` runs it, and a simulated fleet that follows it.

Hosts poll over TLS with a certificate each, as real ones do. What an operator would do before is done in the
database beforehand, so that a thousand hosts are there within a minute.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from api.fresh_secrets import FreshToken
from orchestrator.agent.link.certificates import FreshKey, trusting
from orchestrator.agent.link.client import Link
from orchestrator.agent.sim.fleet import FleetThread, SimulatedFleet
from orchestrator.controller import catalog, enrolment, hosts, networks, people, tenants
from orchestrator.controller.caller import Caller
from orchestrator.controller.networks import VlanRange
from orchestrator.model.actor import CONTROLLER, Actor
from orchestrator.model.join_token import JoinSecret, make_join_token
from orchestrator.processes.control import Parts, open_parts
from orchestrator.processes.control_settings import ControlFile
from tests.api.deployment import key
from tests.bench.controller.measuring import Measured, process

GPUS = 8
DIGEST = "sha256:" + "d" * 64
T = "/v1/tenants/acme"
DEADLINE_S = 900.0


@dataclass
class Cluster:
    """What runs."""

    controller: Measured
    public_url: str
    token: str
    ca: ssl.SSLContext
    fleet: SimulatedFleet

    def client(self) -> Tenant:
        """A new connection of the tenant's."""
        return Tenant(self)


class Tenant:
    """One connection to the public API, kept open."""

    def __init__(self, cluster: Cluster) -> None:
        parts = urlsplit(cluster.public_url)
        self._connection = http.client.HTTPSConnection(
            parts.hostname or "", parts.port, context=cluster.ca, timeout=120
        )
        self._headers = {"Authorization": f"Bearer {cluster.token}", "Content-Type": "application/json"}

    def ask(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        """Ask once; wait and try again where the rate limit says so."""
        while True:
            sent = None if body is None else json.dumps(body)
            try:
                self._connection.request(method, path, sent, {**self._headers, **key()})
                answer = self._connection.getresponse()
            except (http.client.RemoteDisconnected, ConnectionError):
                # On a busy machine we may speak into a connection that was idle for too long.
                self._connection.close()
                if method != "GET":
                    raise
                continue
            told = answer.read()
            if answer.status != 429:
                assert answer.status < 400, told
                return json.loads(told) if told else {}
            time.sleep(float(answer.headers["Retry-After"]))

    def create(self, name: str) -> str:
        """Ask for an instance; return its operation's id."""
        wanted = {"name": name, "type": "small", "image": "probe", "networks": ["lan"]}
        return str(self.ask("POST", f"{T}/instances", wanted)["id"])

    def delete(self, name: str) -> str:
        """Ask for an instance to go; return its operation's id."""
        return str(self.ask("DELETE", f"{T}/instances/{name}")["id"])

    def over(self, operation: str) -> None:
        """Wait until an operation is over, and well."""
        end = time.monotonic() + DEADLINE_S
        while time.monotonic() < end:
            found = self.ask("GET", f"{T}/operations/{operation}?wait=30s")
            if found["state"] != "running":
                assert found["state"] == "succeeded", found
                return
        raise AssertionError(f"{operation} is not over")


def _people(parts: Parts, tenant_id: str) -> tuple[Caller, str]:
    fresh = FreshToken.draw(parts.control.pepper)
    scopes = ("read", "write", "admin", "audit")
    with parts.control.store.unit_of_work(CONTROLLER) as tx:
        wanted = people.NewPrincipal(name="admin", kind="user", roles=("tenant-admin",))
        who = people.create(tx, tenant_id, wanted)
        people.add_token(tx, who, people.NewToken(fresh.key_id, fresh.secret_hash, "bench", scopes, 9))
        tenant = tenants.get(tx, tenant_id)
    return Caller(who, frozenset(scopes), tenant, Actor(kind="user", id=who.id, tenant=tenant_id)), fresh.text


def _host(parts: Parts, number: int, folder: Path) -> Path:
    """Let one host in; return the file of its key and certificate."""
    fresh, secret = FreshKey.make(), b"s" * 32
    with parts.control.store.unit_of_work(CONTROLLER) as tx:
        host = hosts.create(tx, f"node{number}", 4000)
        made = hosts.add_join_token(tx, host, secret)
        text = make_join_token(JoinSecret(made.id, secret, parts.authority.fingerprint))
        enrolled = enrolment.enrol(tx, parts.authority, text, fresh.csr_pem)
    from cryptography import x509

    certificate = x509.load_pem_x509_certificate(enrolled.certificate_pem.encode())
    path = folder / f"{number}.pem"
    path.write_bytes(fresh.with_certificate(certificate))
    return path


def prepare(parts: Parts, count: int, folder: Path) -> tuple[list[Path], str]:
    """Make a tenant, a type, an image and hosts; return the hosts' certificates and the tenant's token."""
    store = parts.control.store
    plenty = {"instances": 5000, "vcpus": 9000, "memory_mib": 9_000_000, "gpus": 9000, "volumes": 5000,
              "disk_gib": 90_000, "networks": 5}  # fmt: skip
    with store.unit_of_work(CONTROLLER) as tx:
        tenant = tenants.create(tx, "acme", plenty)
        catalog.create_type(
            tx, name="small", vcpus=1, memory_mib=256, page_size_kib=2048, threads_per_core=1, gpus=1,
            gpu_model=None, disk_gib=1, isolation="dedicated",
        )  # fmt: skip
        catalog.create_image(
            tx, name="probe", digest=DIGEST, size_bytes=1 << 20, firmware="uefi", tenant_id=None
        )
    caller, token = _people(parts, tenant.id)
    with store.unit_of_work(caller.actor) as tx:
        networks.create(tx, caller, "lan", "10.0.0.0/16", VlanRange())
    return [_host(parts, number, folder) for number in range(count)], token


@contextlib.contextmanager
def running(folder: Path, database: str, count: int, latencies: dict[str, float]) -> Iterator[Cluster]:
    """Run a controller with so many simulated hosts; all have reported when this is handed out."""
    state = folder / "state"
    lines = {"state_dir": str(state), "database": database, "public_port": 0, "agents_port": 0}
    file = folder / "controller.toml"
    file.write_text(
        "".join(f"{name} = {json.dumps(value)}\n" for name, value in lines.items())
        + "allow_keys_in_files = true\n"
    )
    settings = ControlFile(state_dir=state, database=database, allow_keys_in_files=True)
    parts = open_parts(settings)
    certificates, token = prepare(parts, count, folder)
    authority = parts.authority.certificate_pem
    parts.control.store.database.dispose()
    log = folder / "controller.log"
    with process("-m", "orchestrator", "controller", "serve", "--settings", str(file), log=log) as (
        measured,
        _,
    ):
        public_url, agents_url = _urls(log)

        async def link(number: int) -> Link:
            tls = trusting(authority)
            tls.load_cert_chain(certificates[number])
            return Link(agents_url, tls)

        fleet = SimulatedFleet(count, GPUS, link, latencies)
        with FleetThread(fleet):
            cluster = Cluster(measured, public_url, token, trusting(authority), fleet)
            _all_ready(settings, count)
            yield cluster


def _urls(log: Path) -> tuple[str, str]:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        found = re.findall(r"^(?:public|agents') API +(\S+)$", log.read_text(), re.MULTILINE)
        if len(found) == 2:
            return found[0], found[1]
        time.sleep(0.05)
    raise AssertionError(log.read_text())


def _all_ready(settings: ControlFile, count: int) -> None:
    """Wait until all hosts have said what they are and their GPUs are clean."""
    parts = open_parts(settings)
    end = time.monotonic() + DEADLINE_S
    from sqlalchemy import func, select

    from orchestrator.store.tables.fleet import GpuRow
    from orchestrator.store.unit_of_work import table_of

    gpus = table_of(GpuRow)
    while time.monotonic() < end:
        with parts.control.store.reading() as tx:
            clean = tx.scalar(select(func.count()).select_from(gpus).where(gpus.c.state == "clean"))
        if clean == count * GPUS:
            parts.control.store.database.dispose()
            return
        time.sleep(0.5)
    raise AssertionError(f"{clean} of {count * GPUS} GPUs are clean")
