"""Accepted creates a second, beside an endpoint that only writes the same rows; on both databases."""

from __future__ import annotations

import http.client
import itertools
import json
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from orchestrator.store.engine import Database
from orchestrator.store.store import Store
from tests.api.deployment import PLENTY, Deployment, deploy, key
from tests.bench.controller.measuring import FOUND, Found, Measured, process

pytestmark = pytest.mark.bench

CLIENTS = 8
CREATES = 320
ROUNDS = 5
WANTED = 0.5
T = "/v1/tenants/acme"
_numbers = itertools.count()


class Door:
    """A front door in a process of its own."""

    def __init__(self, measured: Measured, port: int, headers: dict[str, str]) -> None:
        self.measured = measured
        self._port = port
        self._headers = {**headers, "Content-Type": "application/json"}

    def round(self) -> tuple[float, float]:
        """Let all clients create at once; return creates a second, and processor milliseconds of one."""
        names = iter([f"vm-{next(_numbers)}" for _ in range(CREATES)])
        began, used = time.monotonic(), self.measured.cpu_s()
        with ThreadPoolExecutor(CLIENTS) as pool:
            list(pool.map(lambda _: self._client(names), range(CLIENTS)))
        return CREATES / (time.monotonic() - began), (self.measured.cpu_s() - used) / CREATES * 1000

    def _client(self, names) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port)
        for name in names:
            body = json.dumps({"name": name, "type": "small", "image": "debian", "networks": ["lan"]})
            connection.request("POST", f"{T}/instances", body, {**self._headers, **key()})
            answer = connection.getresponse()
            told = answer.read()
            assert answer.status == 202, told
        connection.close()


def _prepared(url: str) -> Deployment:
    database = Database(url)
    deployed = deploy(Store(database))
    limits = dict.fromkeys(PLENTY, 1_000_000)
    operator = deployed.client("operator")
    operator.put(f"{T}/quota", json={"limits": limits}, headers={"If-Match": "*"}).raise_for_status()
    member = deployed.client("acme-member")
    network = {"name": "lan", "cidr": "10.0.0.0/16"}
    member.post(f"{T}/networks", json=network, headers=key()).raise_for_status()
    database.dispose()
    return deployed


@pytest.mark.timeout(900)
def test_accepted_creates_beside_bare_inserts(database_url: str, tmp_path: Path, request):
    headers = _prepared(database_url).people["acme-member"].headers
    kind = "SQLite" if database_url.startswith("sqlite") else "PostgreSQL"
    module = "tests.bench.controller.front_door"
    with (
        process("-m", module, "ours", database_url, log=tmp_path / "ours.log") as (ours, first),
        process("-m", module, "bare", database_url, log=tmp_path / "bare.log") as (bare, second),
    ):
        doors = [
            Door(measured, int(started.stdout.readline()), headers)
            for measured, started in ((ours, first), (bare, second))
        ]
        for door in doors:
            door.round()
        # One after the other, so that both meet the same machine.
        rounds = [[door.round() for door in doors] for _ in range(ROUNDS)]
    rates = [statistics.median(each[place][0] for each in rounds) for place in range(2)]
    costs = [statistics.median(each[place][1] for each in rounds) for place in range(2)]
    FOUND.append(
        Found(
            f"accepted creates a second, {CLIENTS} clients, {kind}",
            f"{rates[0]:.0f}",
            f"{rates[1]:.0f}",
            f"{rates[0] / rates[1]:.2f}",
            f"at least {WANTED}",
        )
    )
    FOUND.append(
        Found(
            f"processor time of a create, {kind}",
            f"{costs[0]:.2f} ms",
            f"{costs[1]:.2f} ms",
            f"{costs[0] / costs[1]:.2f}",
            f"at most {1 / WANTED:.0f}",
        )
    )
