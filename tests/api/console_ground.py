"""A controller with both its listeners, simulated hosts whose consoles answer, and people of two tenants."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import httpx2
from websockets.asyncio.client import ClientConnection, connect

from orchestrator.agent.link.certificates import Certificates, FreshKey
from orchestrator.agent.link.client import Link, enrol
from orchestrator.agent.link.pace import Pace
from orchestrator.agent.sim.fleet import FleetThread, SimulatedFleet
from orchestrator.client import Client
from orchestrator.controller.switchboard import StreamLimits, Switchboard
from orchestrator.processes.control import Running, open_parts, operator_token
from orchestrator.processes.control_settings import ControlFile
from orchestrator.store.store import Store
from tests.api.deployment import ALL, key

PROTOCOL = "bulkhead.console.v1"
DIGEST = "sha256:" + "d" * 64
BRISK = Pace(poll_wait_s=5.0, look_s=1.0, heartbeat_s=1.0, retry_first_s=0.05, retry_longest_s=0.2)
DEADLINE_S = 30.0


def settled(check: Callable[[], Any]) -> Any:
    """Wait until something is so."""
    end = time.monotonic() + DEADLINE_S
    while True:
        found = check()
        if found:
            return found
        assert time.monotonic() < end, "it never came to be"
        time.sleep(0.01)


class Dialled:
    """A WebSocket that is used from the test's own thread, and lives on a loop of its own."""

    def __init__(self, socket: ClientConnection, loop: asyncio.AbstractEventLoop) -> None:
        self.socket = socket
        self._loop = loop

    def _do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(DEADLINE_S)

    def send(self, data: bytes | str) -> None:
        self._do(self.socket.send(data))

    def recv(self) -> bytes:
        found = self._do(self.socket.recv())
        assert isinstance(found, bytes)
        return found

    def close(self) -> None:
        self._do(self.socket.close())

    def cut(self) -> None:
        """End it without a goodbye, as when the power goes."""

        async def abort() -> None:
            self.socket.transport.abort()

        self._do(abort())


class ConsoleGround:
    """All of it; `tokens` by person."""

    def __init__(self, running: Running, folder: Path) -> None:
        self.running = running
        self.folder = folder
        self.ca = running.parts.authority.certificate_path
        self.tokens: dict[str, str] = {}
        self.join_tokens: dict[int, str] = {}
        self.fleet: SimulatedFleet

    @property
    def store(self) -> Store:
        return self.running.parts.control.store

    @property
    def board(self) -> Switchboard:
        return self.running.parts.control.switchboard

    @property
    def tls(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.ca))

    @contextlib.contextmanager
    def client(self, who: str) -> Iterator[httpx2.Client]:
        headers = {"Authorization": f"Bearer {self.tokens[who]}"}
        url = self.running.public_url
        with httpx2.Client(base_url=url, headers=headers, verify=self.tls, timeout=DEADLINE_S) as made:
            yield made

    def prepare(self, hosts: int) -> None:
        self.tokens["operator"] = operator_token(self.running.parts, "ops")
        with Client(self.running.public_url, self.tokens["operator"], ca=self.ca) as operator:
            shape = {"vcpus": 1, "memory_mib": 1024, "gpus": 1, "disk_gib": 1}
            operator.instance_types.create({"name": "small", **shape})
            operator.images.create({"name": "probe", "digest": DIGEST, "size_bytes": 1 << 20})
            limits = {"instances": 50, "vcpus": 100, "memory_mib": 100_000, "gpus": 50, "volumes": 100,
                      "disk_gib": 1000, "networks": 10}  # fmt: skip
            for name in ("acme", "globex"):
                operator.tenants.create({"name": name, "limits": limits})
                tenant = operator.tenant(name)
                for role in ("member", "auditor"):
                    who = f"{name}-{role}"
                    tenant.users.create({"name": who, "kind": "user", "roles": [role]})
                    made = tenant.tokens.create({"user": who, "name": "t", "scopes": list(ALL), "days": 7})
                    self.tokens[who] = made.body["token"]
            for number in range(hosts):
                made = operator.hosts.create({"name": f"node{number + 1}", "disk_gib": 1000})
                self.join_tokens[number] = str(made.body["join_token"])

    async def link(self, number: int) -> Link:
        certificates = Certificates(self.folder / "hosts" / f"node{number + 1}")
        if not certificates.enrolled:
            fresh = FreshKey.make()
            answer, authority = await enrol(self.running.public_url, self.join_tokens[number], fresh.csr_pem)
            certificates.enrol(fresh, answer, authority)
        return Link(certificates.identity().agents_url, certificates.tls())

    def run(self, name: str, tenant: str = "acme") -> str:
        """Make an instance and wait until it runs; return its id."""
        with self.client(f"{tenant}-member") as client:
            wanted = {"name": name, "type": "small", "image": "probe"}
            made = client.post(f"/v1/tenants/{tenant}/instances", json=wanted, headers=key())
            assert made.status_code == 202, made.text
            path = f"/v1/tenants/{tenant}/instances/{name}"
            settled(lambda: client.get(path).json()["state"] == "running")
        return str(made.json()["subject_id"])

    def ask(
        self, name: str, who: str = "acme-member", tenant: str = "acme", **headers: str
    ) -> httpx2.Response:
        """Ask for a ticket."""
        with self.client(who) as client:
            path = f"/v1/tenants/{tenant}/instances/{name}/actions/console"
            return client.post(path, headers={**key(), **headers})

    def ticket(self, name: str, who: str = "acme-member") -> str:
        answer = self.ask(name, who)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["ticket"])

    @contextlib.contextmanager
    def dial(self, ticket: str | None, **more: Any) -> Iterator[Dialled]:
        """Open the WebSocket; raises `InvalidStatus` when it is refused."""
        url = f"wss{self.running.public_url.removeprefix('https')}/v1/console"
        offered = [PROTOCOL] if ticket is None else [PROTOCOL, ticket]
        options = {"ssl": self.tls, "subprotocols": offered, "proxy": None, "compression": None, **more}
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, daemon=True)
        thread.start()

        async def opened() -> ClientConnection:
            return await connect(url, open_timeout=DEADLINE_S, **options)

        try:
            made = Dialled(asyncio.run_coroutine_threadsafe(opened(), loop).result(), loop)
            try:
                yield made
            finally:
                made.close()
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join(DEADLINE_S)
            loop.close()

    def quiet(self) -> None:
        """Wait until nothing is open or awaited, on either side."""
        settled(lambda: self.board.open == 0)

    @contextlib.contextmanager
    def limits(self, **changed: Any) -> Iterator[None]:
        """Other limits, for as long as the block lasts."""
        before = self.board.limits
        self.board.limits = StreamLimits(**{"dial_s": DEADLINE_S, **changed})
        try:
            yield
        finally:
            self.board.limits = before


@contextlib.contextmanager
def console_ground(
    folder: Path, *, hosts: int = 1, pace: Pace = BRISK, **settings: Any
) -> Iterator[ConsoleGround]:
    """Make one; simulated hosts have eight GPUs each."""
    state = folder / "controller"
    file = ControlFile(state_dir=state, public_port=0, agents_port=0, allow_keys_in_files=True, **settings)
    with Running(open_parts(file)) as running:
        ground = ConsoleGround(running, folder)
        ground.prepare(hosts)
        ground.fleet = SimulatedFleet(hosts, 8, ground.link, pace=pace, consoles=True)
        with FleetThread(ground.fleet):
            yield ground


def until(socket: Dialled, wanted: bytes) -> bytes:
    """Read until something came."""
    found = b""
    while wanted not in found:
        found += socket.recv()
    return found
