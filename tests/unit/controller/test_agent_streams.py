"""Streams at the agents' listener over real TLS: who may dial which, and who is told of it."""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidMessage, InvalidStatus

from orchestrator.agent.link.certificates import trusting
from orchestrator.controller import hosts, streams
from orchestrator.controller.switchboard import DONE, Call, Ended, Line, StreamLimits, Wanted
from orchestrator.model.actor import CONTROLLER
from orchestrator.model.errors import HostError, NotFoundError, RateLimitedError
from tests.unit.controller.test_agents_api import HEADERS, Ground, _ready
from tests.unit.link.listener import eventually

SOON_S = 20.0


@pytest.fixture
def ground(sqlite_platform, tmp_path) -> Iterator[Ground]:
    made = Ground(sqlite_platform, tmp_path)
    sqlite_platform.create(sqlite_platform.acme, "train")
    with made.listener:
        yield made


class Host:
    """A host that has come in, with its certificate."""

    def __init__(self, ground: Ground, name: str) -> None:
        self.ground = ground
        self.tls = ground.client(ground.join_token(name))
        with ground.platform.store.reading() as tx:
            self.id = hosts.get(tx, name).id

    def poll(self, wait_s: float) -> list[dict[str, Any]]:
        answer = self.ground.get(self.tls, f"/agent/v1/streams?wait_s={wait_s}")
        return answer.json()["streams"] if answer.status_code == 200 else []


class Asker:
    """Somebody who waits for a host's stream, on a loop of its own, as the public listener's is."""

    def __init__(self, ground: Ground, host: Host, identity: str, **limits: Any) -> None:
        self.ground, self.host, self.identity = ground, host, identity
        ground.control.switchboard.limits = StreamLimits(**{"dial_s": SOON_S, **limits})
        self.told: list[bytes | Ended] = []
        self.failed: list[BaseException] = []
        self._thread = threading.Thread(target=lambda: asyncio.run(self._wait()), daemon=True)

    def __enter__(self) -> Asker:
        self._thread.start()
        eventually(lambda: self.failed or self.host.poll(0))
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join(SOON_S)
        assert not self._thread.is_alive()
        assert self.ground.control.switchboard.open == 0

    async def _wait(self) -> None:
        instance = self.ground.platform.all_instances()[0]
        wanted = Wanted(self.identity, "console", instance.tenant_id, instance.id, self.host.id, "call-4711")
        try:
            with self.ground.control.switchboard.expect(wanted) as call:
                with self.ground.platform.store.unit_of_work(CONTROLLER) as tx:
                    streams.order(tx, wanted, "", SOON_S)
                await self._speak(call)
        except Exception as exc:
            self.failed.append(exc)

    async def _speak(self, call: Call) -> None:
        line: Line = await call.dialled()
        assert await line.send(b"hello") is None
        while not self.told or not isinstance(self.told[-1], Ended):
            self.told.append(await line.receive())


def dial(ground: Ground, tls: ssl.SSLContext, identity: str, *, version: str = "1", **say: Any) -> bytes:
    """Dial as a host, read one message, answer it and leave."""

    async def work() -> bytes:
        url = f"wss{ground.listener.url.removeprefix('https')}/agent/v1/streams/{identity}"
        headers = {"Bulkhead-Protocol": version}
        async with connect(
            url, ssl=tls, additional_headers=headers, proxy=None, open_timeout=SOON_S
        ) as socket:
            heard = await asyncio.wait_for(socket.recv(), SOON_S)
            await socket.send(say.get("data", b"hi"))
            await socket.close(DONE, say.get("reason", ""))
        assert isinstance(heard, bytes)
        return heard

    return asyncio.run(work())


def refused(ground: Ground, tls: ssl.SSLContext, identity: str, **more: Any) -> tuple[int, str]:
    with pytest.raises(InvalidStatus) as told:
        dial(ground, tls, identity, **more)
    body = told.value.response.body
    assert body is not None
    return told.value.response.status_code, json.loads(body)["code"]


def test_a_host_is_told_dials_once_and_speaks_to_who_asked(ground: Ground) -> None:
    host = Host(ground, "node2")
    with Asker(ground, host, "str_one") as asker:
        (order,) = host.poll(0)
        assert (order["id"], order["kind"], order["request_id"]) == ("str_one", "console", "call-4711")
        assert dial(ground, host.tls, "str_one", reason="console.over") == b"hello"
    assert asker.told == [b"hi", Ended(DONE, "console.over")]
    assert host.poll(0) == []
    assert refused(ground, host.tls, "str_one") == (404, "stream.unknown")


def test_a_poll_wakes_when_somebody_asks(ground: Ground) -> None:
    host, found = Host(ground, "node2"), []
    began = time.monotonic()
    assert host.poll(0.3) == []
    assert time.monotonic() - began >= 0.3
    polling = threading.Thread(target=lambda: found.extend(host.poll(SOON_S)))
    polling.start()
    eventually(lambda: ground.control.bell.listeners)
    with Asker(ground, host, "str_two"):
        # Not by its own look: only a ring is in time.
        polling.join(SOON_S / 2)
        assert [order["id"] for order in found] == ["str_two"]
        dial(ground, host.tls, "str_two")


def test_another_hosts_certificate_opens_no_stream_of_this_one(ground: Ground) -> None:
    host, stranger = Host(ground, "node2"), Host(ground, "node3")
    with Asker(ground, host, "str_mine"):
        assert stranger.poll(0) == []
        assert refused(ground, stranger.tls, "str_mine") == (404, "stream.unknown")
        # It is still there for its own.
        assert dial(ground, host.tls, "str_mine") == b"hello"


def test_without_a_certificate_there_is_no_word(ground: Ground) -> None:
    host = Host(ground, "node2")
    with Asker(ground, host, "str_mine"):
        with pytest.raises((ssl.SSLError, ConnectionError, InvalidMessage)):
            dial(ground, trusting(ground.authority.certificate_pem), "str_mine")
        dial(ground, host.tls, "str_mine")


def test_a_fenced_hosts_certificate_dials_nothing(ground: Ground) -> None:
    host = Host(ground, "node2")
    with Asker(ground, host, "str_mine", dial_s=1.0) as asker:
        with ground.platform.store.unit_of_work(CONTROLLER) as tx:
            tx.note(_ready("node2"))
            hosts.change_state(tx, "node2", "cordon", "stolen")
            hosts.change_state(tx, "node2", "fence", "stolen")
        assert refused(ground, host.tls, "str_mine") == (401, "certificate.revoked")
    assert [type(each) for each in asker.failed] == [HostError]


def test_another_version_of_the_protocol_is_refused_a_stream(ground: Ground) -> None:
    host = Host(ground, "node2")
    with Asker(ground, host, "str_mine"):
        assert refused(ground, host.tls, "str_mine", version="3") == (426, "protocol.version")
        dial(ground, host.tls, "str_mine")
    answer = ground.get(host.tls, "/agent/v1/streams?wait_s=0", headers={**HEADERS, "Bulkhead-Protocol": "3"})
    assert answer.status_code == 426


def test_an_order_that_another_controller_holds_is_left_to_it(ground: Ground) -> None:
    """Dialled here by mistake, it stays for whoever waits elsewhere."""
    host = Host(ground, "node2")
    instance = ground.platform.all_instances()[0]
    elsewhere = Wanted("str_far", "console", instance.tenant_id, instance.id, host.id, "")
    with ground.platform.store.unit_of_work(CONTROLLER) as tx:
        streams.order(tx, elsewhere, "https://elsewhere:1", SOON_S)
    assert refused(ground, host.tls, "str_far") == (404, "stream.unknown")
    assert [order["url"] for order in host.poll(0)] == ["https://elsewhere:1"]


def test_a_host_that_speaks_text_is_not_listened_to(ground: Ground) -> None:
    host = Host(ground, "node2")
    with Asker(ground, host, "str_text") as asker:
        dial(ground, host.tls, "str_text", data="text")
    assert asker.told == [Ended(1003, "stream.text")]


def test_a_host_that_sends_too_much_is_not_listened_to(ground: Ground) -> None:
    host = Host(ground, "node2")
    with Asker(ground, host, "str_much", most_bytes=100) as asker:
        dial(ground, host.tls, "str_much", data=b"x" * 101)
    assert asker.told == [Ended(1009, "stream.too_much")]


def test_whoever_waits_gives_up_in_the_end(ground: Ground) -> None:
    host = Host(ground, "node2")
    with Asker(ground, host, "str_late", dial_s=0.2) as asker:
        eventually(lambda: asker.failed)
    assert isinstance(asker.failed[0], HostError)
    assert asker.failed[0].code == "console.no_answer"
    assert refused(ground, host.tls, "str_late") == (404, "stream.unknown")


def test_the_switchboard_counts_and_knows_its_hosts(ground: Ground) -> None:
    board = ground.control.switchboard
    board.limits = StreamLimits(per_tenant=2, per_host=1)

    def wanted(number: int, tenant: str, host: str) -> Wanted:
        return Wanted(f"str_{number}", "console", tenant, "vm_a", host, "")

    async def work() -> None:
        with board.expect(wanted(1, "ten_a", "hst_a")):
            with pytest.raises(RateLimitedError), board.expect(wanted(2, "ten_b", "hst_a")):
                pass
            with board.expect(wanted(3, "ten_a", "hst_b")):
                with pytest.raises(RateLimitedError), board.expect(wanted(4, "ten_a", "hst_c")):
                    pass
                with board.expect(wanted(5, "ten_b", "hst_c")):
                    assert board.open == 3
            assert board.waiting("str_1", "hst_a").wanted.tenant_id == "ten_a"
            for stream, host in (("str_1", "hst_b"), ("str_3", "hst_b")):
                with pytest.raises(NotFoundError):
                    board.waiting(stream, host)
        assert board.open == 0

    asyncio.run(work())
