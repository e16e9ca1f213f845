"""Waiting for an operation and following events, over a real server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest
import uvicorn

from orchestrator.controller import operations
from orchestrator.model.actor import CONTROLLER
from orchestrator.store.store import Store
from tests.api.deployment import Deployment, deploy, key

T = "/v1/tenants/acme"
VM = {"name": "train", "type": "small", "image": "debian"}
#: Nothing below waits so long but for a ring: whoever looks by themselves would run out of time.
NEVER_S = 600.0
DEADLINE_S = 30.0


@dataclass
class Served:
    deployed: Deployment
    url: str

    def client(self, who: str, **more: Any) -> httpx2.Client:
        headers = {**self.deployed.people[who].headers, **more}
        return httpx2.Client(base_url=self.url, headers=headers, timeout=DEADLINE_S)

    def create(self, name: str) -> dict[str, Any]:
        with self.client("acme-member") as client:
            return client.post(f"{T}/instances", json={**VM, "name": name}, headers=key()).json()

    def settle(self, check: Any) -> None:
        """Wait until something is so."""
        end = time.monotonic() + DEADLINE_S
        while not check():
            assert time.monotonic() < end, "it never came to be"
            time.sleep(0.01)


@contextlib.contextmanager
def serving(store: Store, **settings: Any) -> Iterator[Served]:
    deployed = deploy(store, settings={"look_again_s": NEVER_S, **settings})
    config = uvicorn.Config(deployed.app, host="127.0.0.1", port=0, log_config=None, lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    end = time.monotonic() + DEADLINE_S
    while not server.started:
        assert time.monotonic() < end
        time.sleep(0.005)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield Served(deployed, f"http://127.0.0.1:{port}")
    finally:
        server.should_exit = server.force_exit = True
        thread.join(DEADLINE_S)


@pytest.fixture
def served(sqlite_store: Store) -> Iterator[Served]:
    with serving(sqlite_store) as made:
        yield made


@dataclass
class Told:
    id: str
    event: str
    data: Any


@contextlib.contextmanager
def following(served: Served, who: str, path: str, **headers: str) -> Iterator[Iterator[Told]]:
    with served.client(who, **headers) as client, client.stream("GET", path) as answer:
        assert answer.status_code == 200, answer.read()
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = answer.iter_lines()
        assert next(lines) == ": connected"
        yield _told(lines)


def _told(lines: Iterator[str]) -> Iterator[Told]:
    found: dict[str, str] = {}
    for line in lines:
        if line and not line.startswith(":"):
            name, _, value = line.partition(": ")
            found[name] = value
        elif found and not line:
            yield Told(found.get("id", ""), found["event"], json.loads(found["data"]))
            found = {}


def test_a_wait_ends_when_the_operation_does(served: Served):
    begun = served.create("train")
    path, answers = f"{T}/operations/{begun['id']}", []

    def wait() -> None:
        with served.client("acme-member") as client:
            answers.append(client.get(path, params={"wait": "30s"}).json())

    waiting = threading.Thread(target=wait)
    waiting.start()
    served.settle(lambda: served.deployed.control.bell.listeners == 1)
    with served.deployed.store.unit_of_work(CONTROLLER) as tx:
        operations.advance(tx, begun["id"], "placed")
        tx.record("instance.place", ("instance", begun["subject_id"]), tenant=begun["tenant_id"])
    # A step wakes it, and it goes on waiting for the end.
    assert waiting.is_alive()
    with served.deployed.store.unit_of_work(CONTROLLER) as tx:
        operations.advance(tx, begun["id"], "running")
        tx.record("instance.running", ("instance", begun["subject_id"]), tenant=begun["tenant_id"])
    waiting.join(DEADLINE_S)
    assert [(each["state"], each["steps_done"]) for each in answers] == [("succeeded", 4)]
    served.settle(lambda: served.deployed.control.bell.listeners == 0)


def test_a_wait_that_is_over_says_how_far_it_is(served: Served):
    begun = served.create("train")
    with served.client("acme-member") as client:
        asked = time.monotonic()
        answer = client.get(f"{T}/operations/{begun['id']}", params={"wait": "1s"})
        assert time.monotonic() - asked >= 1
    assert (answer.status_code, answer.json()["state"]) == (200, "running")


def test_many_waits_hold_neither_threads_nor_connections(served: Served):
    begun = served.create("train")
    path, before = f"{T}/operations/{begun['id']}", threading.active_count()
    many, answers = 100, []

    def wait_all() -> None:
        async def all_() -> None:
            limits = httpx2.Limits(max_connections=many)
            headers = served.deployed.people["acme-member"].headers
            async with httpx2.AsyncClient(
                base_url=served.url, headers=headers, timeout=DEADLINE_S, limits=limits
            ) as client:
                asked = (client.get(path, params={"wait": "30s"}) for _ in range(many))
                answers.extend(await asyncio.gather(*asked))

        asyncio.run(all_())

    waiting = threading.Thread(target=wait_all)
    waiting.start()
    control = served.deployed.control
    served.settle(lambda: control.bell.listeners == many)
    # Of 100 waits none keeps one of the pool's 40 threads or 30 connections.
    served.settle(lambda: control.store.database._reading.pool.checkedout() == 0)
    assert threading.active_count() <= before + 41
    with served.client("acme-member") as client:
        assert client.get(f"{T}/instances").status_code == 200
        client.delete(f"{T}/instances/train")
    waiting.join(DEADLINE_S)
    assert {answer.json()["state"] for answer in answers} == {"cancelled"}


def test_events_come_as_they_happen_without_gap_and_without_secrets(served: Served):
    with following(served, "acme-member", f"{T}/events") as events:
        served.create("one")
        served.create("two")
        first, second = next(events), next(events)
    assert (first.event, first.data["details"]["name"]) == ("instance.create", "one")
    assert (second.event, second.data["details"]["name"]) == ("instance.create", "two")
    stream = served.deployed.tenants["acme"]
    assert first.id == f"{stream}:{first.data['seq']}"
    assert second.data["seq"] == first.data["seq"] + 1
    assert first.data["actor"] == {"kind": "user", "id": served.deployed.people["acme-member"].who.id}
    assert served.deployed.people["acme-member"].key_id not in str(first.data)
    assert "127.0.0.1" not in str(first.data)


def test_events_of_one_kind_come_alone_and_keep_their_positions(served: Served):
    served.create("one")
    for kind, wanted in (("instance.create", "instance.create"), ("instance", "instance.create")):
        with following(served, "acme-member", f"{T}/events?from_start=true&kind={kind}") as events:
            served.create(f"later-{kind.replace('.', '-')}")
            first, second = next(events), next(events)
        assert (first.event, first.data["details"]["name"]) == (wanted, "one")
        assert second.event == wanted
        # What was left out in between still counts.
        assert first.data["seq"] > 0


def test_a_reader_who_comes_back_misses_nothing_and_sees_nothing_twice(served: Served):
    with following(served, "acme-member", f"{T}/events") as events:
        served.create("one")
        last = next(events)
    served.create("two")
    served.create("three")
    with following(served, "acme-member", f"{T}/events", **{"Last-Event-ID": last.id}) as events:
        missed = [next(events) for _ in range(2)]
        served.create("four")
        missed.append(next(events))
    assert [each.data["details"]["name"] for each in missed] == ["two", "three", "four"]
    assert [each.data["seq"] for each in missed] == [last.data["seq"] + step for step in (1, 2, 3)]


def test_the_whole_stream_from_its_start_is_gapless(served: Served, monkeypatch):
    # Smaller batches, so that several are needed.
    monkeypatch.setattr("api.event_stream.BATCH", 2)
    for number in range(5):
        served.create(f"vm-{number}")
    with following(served, "acme-auditor", f"{T}/events?from_start=true") as events:
        found = [next(events) for _ in range(9)]
    assert [each.data["seq"] for each in found] == list(range(9))
    assert found[0].event == "tenant.create"


def test_a_position_of_another_database_is_told(served: Served):
    stream = served.deployed.tenants["acme"]
    with served.client("acme-member") as client:
        answer = client.get(f"{T}/events", headers={"Last-Event-ID": f"{stream}:999"})
    assert (answer.status_code, answer.json()["code"]) == (409, "event.from_the_future")


def test_a_stopped_token_stops_its_streams(served: Served):
    served.deployed.second_token("brief", "acme-member")
    with following(served, "brief", f"{T}/events") as events:
        with served.client("acme-member") as client:
            gone = client.delete(f"{T}/tokens/{served.deployed.people['brief'].key_id}")
            assert gone.status_code == 204
        last = list(events)
    assert [(each.event, each.data["code"]) for each in last] == [("error", "token.invalid")]


def test_the_platform_follows_its_own_stream(served: Served):
    with following(served, "operator", "/v1/events") as events:
        served.create("not-the-platforms")
        with served.client("operator") as client:
            client.post("/v1/hosts", json={"name": "node9", "disk_gib": 1}, headers=key())
        told = [next(events), next(events)]
    assert [each.event for each in told] == ["host.create", "host.join_token"]
    assert {each.data["stream"] for each in told} == {"platform"}


def test_a_silent_stream_says_that_it_lives(sqlite_store: Store):
    with serving(sqlite_store, look_again_s=0.02, keep_alive_s=0.02) as served:
        with served.client("acme-member") as client, client.stream("GET", f"{T}/events") as answer:
            lines = answer.iter_lines()
            found = [next(lines) for _ in range(3)]
    assert found == [": connected", "", ": still here"]


def test_what_another_controller_commits_is_seen_too(sqlite_store: Store):
    """It rings no bell here; looking again finds it."""
    with serving(sqlite_store, look_again_s=0.02) as served:
        other = Store(served.deployed.store.database, clock=served.deployed.clock)
        with following(served, "acme-member", f"{T}/events") as events:
            with other.unit_of_work(CONTROLLER) as tx:
                tx.record("instance.stop", ("instance", "vm_x"), tenant=served.deployed.tenants["acme"])
            assert next(events).event == "instance.stop"
