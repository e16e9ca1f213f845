"""Consoles and kept logs over both listeners, TLS on each, with simulated hosts that answer what is typed."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import shutil
import threading
import time
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import anyio.to_thread
import httpx2
import pytest
import structlog
from sqlalchemy import select, update
from websockets.exceptions import ConnectionClosed, InvalidStatus

from orchestrator.access.tokens import make_token, parse_token
from orchestrator.agent.link.streams import MESSAGE_BYTES
from orchestrator.agent.sim.consoles import SimConsole
from orchestrator.agent.sim.fleet import SimulatedHost
from orchestrator.model.actor import CONTROLLER
from orchestrator.processes.control import Running, open_parts
from orchestrator.processes.control_settings import ControlFile
from orchestrator.store.store import wall_ms
from orchestrator.store.tables.consoles import ConsoleTicketRow, StreamOrderRow
from orchestrator.store.tables.fleet import HostRow
from orchestrator.store.unit_of_work import table_of
from tests.api.console_ground import (
    BRISK,
    DEADLINE_S,
    PROTOCOL,
    ConsoleGround,
    Dialled,
    console_ground,
    settled,
    until,
)
from tests.api.deployment import key
from tests.api.rows import records
from tests.databases import Postgres

VM = "/v1/tenants/acme/instances"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsoleGround]:
    with console_ground(tmp_path_factory.mktemp("consoles"), hosts=2) as ground:
        ground.run("train")
        ground.run("serve", "globex")
        yield ground


@pytest.fixture
def ground(shared: ConsoleGround) -> Iterator[ConsoleGround]:
    """With nothing open before and after each test: whatever ends a stream, nothing of it stays."""
    shared.quiet()
    yield shared
    shared.quiet()
    with shared.store.reading() as tx:
        assert tx.all(select(table_of(StreamOrderRow))) == []


def refusal(ground: ConsoleGround, ticket: str | None, **more: Any) -> tuple[int, str]:
    """Dial and be refused; return status and code."""
    with pytest.raises(InvalidStatus) as refused, ground.dial(ticket, **more):
        pass
    body = refused.value.response.body
    assert body is not None
    told = json.loads(body)
    assert refused.value.response.headers["content-type"] == "application/problem+json"
    assert told["request_id"] == refused.value.response.headers["x-request-id"]
    return refused.value.response.status_code, told["code"]


def closing(ground: ConsoleGround, ticket: str) -> tuple[int, str]:
    """Open a console and wait for its end; return close code and reason."""
    with ground.dial(ticket) as socket:
        return end_of(socket)


def end_of(socket: Dialled) -> tuple[int, str]:
    with pytest.raises(ConnectionClosed) as ended:
        until(socket, b"what no console says")
    assert ended.value.rcvd is not None, "cut without a word"
    return ended.value.rcvd.code, ended.value.rcvd.reason


def about(ground: ConsoleGround, *kinds: str) -> list[dict[str, Any]]:
    return [each for each in records(ground.store) if each["kind"] in kinds]


def test_what_is_typed_reaches_the_instance_and_its_answers_come_back(ground: ConsoleGround) -> None:
    ticket = ground.ticket("train")
    with ground.dial(ticket, additional_headers={"X-Request-Id": "looking-4711"}) as socket:
        assert socket.socket.subprotocol == PROTOCOL
        assert b"booted, start 1" in until(socket, b"\r\n")
        socket.send(b"hel")
        socket.send(b"lo\r")
        assert until(socket, b"\r\n") == b"echo: hello\r\n"
        socket.send(b"x" * 4000 + b"\r")
        assert until(socket, b"x\r\n") == b"echo: " + b"x" * 4000 + b"\r\n"
    settled(lambda: [each for each in about(ground, "console.open") if each["stage"] == "outcome"])
    made, used, over = about(ground, "console_ticket.create", "console.open")[-3:]
    assert [each["stage"] for each in (made, used, over)] == ["intent", "intent", "outcome"]
    assert {each["stream"] for each in (made, used, over)} == {made["tenant"]}
    assert used["request_id"] == over["request_id"] == "looking-4711"
    assert made["actor"] | {"address": "", "request_id": ""} == used["actor"] | {
        "address": "",
        "request_id": "",
    }
    assert (over["outcome"], over["details"]["typed_bytes"]) == ("ok", 4007)
    assert over["details"]["shown_bytes"] > 4000
    # Neither ticket nor what went through it stands in the database.
    # It may hold underscores of its own.
    secret = ticket.split("_", 3)[3]
    assert secret not in str(records(ground.store))
    with ground.store.reading() as tx:
        assert secret not in str(tx.all(select(table_of(ConsoleTicketRow))))


def test_a_ticket_opens_one_console_once(ground: ConsoleGround) -> None:
    ticket = ground.ticket("train")
    with ground.dial(ticket) as socket:
        until(socket, b"booted")
        assert refusal(ground, ticket) == (401, "console_ticket.invalid")
    assert refusal(ground, ticket) == (401, "console_ticket.invalid")


def test_many_at_once_with_one_ticket_make_one_console(ground: ConsoleGround) -> None:
    ticket, opened, refused = ground.ticket("train"), [], []

    def dial() -> None:
        try:
            with ground.dial(ticket) as socket:
                until(socket, b"booted")
                opened.append(socket)
        except InvalidStatus as exc:
            refused.append(exc.response.status_code)

    threads = [threading.Thread(target=dial) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert (len(opened), refused) == (1, [401] * 7)


def test_a_ticket_expires(ground: ConsoleGround, monkeypatch: pytest.MonkeyPatch) -> None:
    ticket = ground.ticket("train")
    monkeypatch.setattr(ground.store, "clock", lambda: wall_ms() + 30_000)
    assert refusal(ground, ticket) == (401, "console_ticket.invalid")
    denied = about(ground, "access.denied")[-1]
    assert (denied["actor"]["kind"], denied["details"]["code"]) == ("anonymous", "console_ticket.invalid")


@pytest.mark.parametrize("change", ["id", "secret", "token", "nothing", "two", "protocol"])
def test_what_is_no_ticket_opens_nothing(ground: ConsoleGround, change: str) -> None:
    ticket = ground.ticket("train")
    other = parse_token(ground.ticket("train"))
    parsed = parse_token(ticket)
    offered = {
        # The right secret of another ticket, and a wrong secret of this one.
        "id": [PROTOCOL, make_token(other.key_id, parsed.secret)],
        "secret": [PROTOCOL, make_token(parsed.key_id, b"?" * 32)],
        # A token is no ticket.
        "token": [PROTOCOL, ground.tokens["acme-member"]],
        "nothing": [PROTOCOL],
        "two": [PROTOCOL, ticket, make_token(other.key_id, other.secret)],
        "protocol": [ticket],
    }[change]
    status, code = refusal(ground, None, subprotocols=offered)
    assert status == 401
    assert code == (
        "console_ticket.invalid" if change in ("id", "secret", "token") else "console_ticket.missing"
    )
    # Its ticket was not used up by any of them.
    with ground.dial(ticket) as socket:
        until(socket, b"booted")


def test_a_ticket_is_no_token(ground: ConsoleGround) -> None:
    with ground.client("acme-member") as client:
        headers = {"Authorization": f"Bearer {ground.ticket('train')}"}
        answer = client.get(VM, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (401, "token.invalid")


def test_somebody_elses_token_beside_a_ticket_is_refused_and_ones_own_is_not(ground: ConsoleGround) -> None:
    for who, opens in (("globex-member", False), ("acme-auditor", False), ("acme-member", True)):
        ticket = ground.ticket("train")
        beside = {"Authorization": f"Bearer {ground.tokens[who]}"}
        if opens:
            with ground.dial(ticket, additional_headers=beside) as socket:
                until(socket, b"booted")
        else:
            assert refusal(ground, ticket, additional_headers=beside) == (401, "console_ticket.invalid")


@pytest.mark.parametrize(
    ("who", "tenant", "name", "status", "code"),
    [
        ("globex-member", "acme", "train", 404, "tenant.unknown"),
        ("globex-member", "globex", "train", 404, "instance.unknown"),
        ("acme-auditor", "acme", "train", 403, "access.forbidden"),
        ("operator", "acme", "train", 403, "access.forbidden"),
        ("acme-member", "acme", "nothing-here", 404, "instance.unknown"),
    ],
)
def test_who_may_not_gets_no_ticket(
    ground: ConsoleGround, who: str, tenant: str, name: str, status: int, code: str
) -> None:
    answer = ground.ask(name, who, tenant)
    assert (answer.status_code, answer.json()["code"]) == (status, code)


def test_the_same_key_makes_one_ticket_and_shows_it_once(ground: ConsoleGround) -> None:
    same = key()
    first, second = ground.ask("train", **same), ground.ask("train", **same)
    assert first.status_code == second.status_code == 201
    assert first.json()["id"] == second.json()["id"]
    assert (first.json()["ticket"] is None, second.json()["ticket"]) == (False, None)


def test_what_does_not_run_has_no_console_but_keeps_its_log(ground: ConsoleGround) -> None:
    ground.run("brief")
    early = ground.ticket("brief")
    with ground.client("acme-member") as client:
        client.post(f"{VM}/brief/actions/stop", headers=key())
        settled(lambda: client.get(f"{VM}/brief").json()["state"] == "stopped")
        answer = ground.ask("brief")
        assert (answer.status_code, answer.json()["code"]) == (409, "console.not_running")
        # One that was made in time does not help either.
        assert refusal(ground, early) == (409, "console.not_running")
        kept = client.get(f"{VM}/brief/console-log")
        assert (kept.status_code, b"booted, start 1" in kept.content) == (200, True)
        early_too = ground.ticket("train")
        client.delete(f"{VM}/brief")
        settled(lambda: client.get(f"{VM}/brief").status_code == 404)
        assert client.get(f"{VM}/brief/console-log").status_code == 404
    with ground.dial(early_too) as socket:
        until(socket, b"booted")


def test_a_ticket_of_a_deleted_instance_opens_nothing_not_even_its_namesake(ground: ConsoleGround) -> None:
    ground.run("twin")
    ticket = ground.ticket("twin")
    with ground.client("acme-member") as client:
        client.delete(f"{VM}/twin")
        settled(lambda: client.get(f"{VM}/twin").status_code == 404)
    ground.run("twin")
    assert refusal(ground, ticket) == (404, "instance.unknown")


def test_the_kept_log_comes_from_the_host_and_its_reading_is_written_down(ground: ConsoleGround) -> None:
    with ground.client("acme-auditor") as client:
        whole = client.get(f"{VM}/train/console-log", headers={"X-Request-Id": "reading-4711"})
        end = client.get(f"{VM}/train/console-log", params={"last_bytes": 5})
        bad = [
            client.get(f"{VM}/train/console-log", params={"last_bytes": each}) for each in (0, 1 << 30, "x")
        ]
    assert whole.status_code == 200
    assert whole.headers["content-type"].startswith("text/plain")
    assert whole.headers["x-content-type-options"] == "nosniff"
    assert whole.content.endswith(b"booted, start 1\r\n")
    assert end.content == whole.content[-5:]
    assert [each.status_code for each in bad] == [422, 422, 422]
    read = [each for each in about(ground, "console_log.get") if each["request_id"] == "reading-4711"]
    assert [(each["stage"], each["outcome"]) for each in read] == [("read", "ok")]


def test_a_second_console_of_one_instance_is_told_that_it_is_busy(ground: ConsoleGround) -> None:
    with ground.dial(ground.ticket("train")) as socket:
        until(socket, b"booted")
        assert closing(ground, ground.ticket("train")) == (1011, "console.busy")
        socket.send(b"still here\r")
        assert until(socket, b"\r\n") == b"echo: still here\r\n"


def test_text_is_refused(ground: ConsoleGround) -> None:
    with ground.dial(ground.ticket("train")) as socket:
        socket.send("hello")
        assert end_of(socket) == (1003, "stream.text")


def test_an_oversized_message_ends_the_console(ground: ConsoleGround) -> None:
    with ground.dial(ground.ticket("train")) as socket:
        socket.send(b"x" * (64 * 1024 + 1))
        assert end_of(socket)[0] == 1009
    with ground.dial(ground.ticket("train")) as socket:
        socket.send(b"x" * 3000 + b"\r" + b"y" * 3000 + b"\r")
        until(socket, b"y\r\n")


def test_a_console_that_carries_too_much_is_ended(ground: ConsoleGround) -> None:
    with ground.limits(most_bytes=2000), ground.dial(ground.ticket("train")) as socket:
        socket.send(b"x" * 900 + b"\r")
        socket.send(b"x" * 900 + b"\r")
        assert end_of(socket) == (1009, "stream.too_much")


def test_a_console_that_lasts_too_long_is_ended(ground: ConsoleGround) -> None:
    with ground.limits(longest_s=0.2):
        assert closing(ground, ground.ticket("train")) == (1000, "stream.too_long")


@pytest.mark.parametrize("bound", ["per_tenant", "per_host"])
def test_so_many_at_once_and_no_more(ground: ConsoleGround, bound: str) -> None:
    with ground.limits(**{bound: 1}), ground.dial(ground.ticket("train")) as socket:
        until(socket, b"booted")
        assert refusal(ground, ground.ticket("train")) == (429, "console.too_many")
        with ground.client("acme-member") as client:
            answer = client.get(f"{VM}/train/console-log")
        assert (answer.status_code, answer.json()["code"]) == (429, "console.too_many")
        assert int(answer.headers["retry-after"]) >= 1


def test_whoever_may_not_any_more_is_cut_off(ground: ConsoleGround) -> None:
    with ground.client("operator") as client:
        users = "/v1/tenants/acme/users"
        client.post(users, json={"name": "brief", "roles": ["member"]}, headers=key())
        made = client.post(
            "/v1/tenants/acme/tokens",
            json={"user": "brief", "name": "t", "scopes": ["read", "write"]},
            headers=key(),
        ).json()
        ground.tokens["brief"] = made["token"]
        with ground.limits(look_again_s=0.1), ground.dial(ground.ticket("train", "brief")) as socket:
            until(socket, b"booted")
            waiting = ground.ticket("train", "brief")
            assert client.delete(f"/v1/tenants/acme/tokens/{made['key_id']}").status_code == 204
            assert end_of(socket) == (1008, "console_ticket.invalid")
        # Nor does a ticket of before help.
        assert refusal(ground, waiting) == (401, "console_ticket.invalid")


def test_a_user_who_vanishes_leaves_nothing_behind(ground: ConsoleGround) -> None:
    for _ in range(3):
        with ground.dial(ground.ticket("train")) as socket:
            until(socket, b"booted")
            socket.cut()
        ground.quiet()
    # The host let go too, or this would be busy.
    with ground.dial(ground.ticket("train")) as socket:
        until(socket, b"booted")


def test_a_host_that_does_not_answer_is_told_as_such_and_one_that_vanishes_too(ground: ConsoleGround) -> None:
    here = _host_of(ground, "train")
    with ground.dial(ground.ticket("train")) as socket:
        until(socket, b"booted")
        on_fleet(ground, ground.fleet.vanish(here.number))
        assert end_of(socket) == (1011, "stream.broken")
    with ground.limits(dial_s=0.3):
        assert refusal(ground, ground.ticket("train")) == (503, "console.no_answer")
        with ground.client("acme-member") as client:
            answer = client.get(f"{VM}/train/console-log")
        assert (answer.status_code, answer.json()["code"]) == (503, "console.no_answer")
        assert answer.json()["retryable"] is True
    on_fleet(ground, ground.fleet.come_back(here.number))
    with ground.dial(ground.ticket("train")) as socket:
        until(socket, b"booted")


def _host_of(ground: ConsoleGround, name: str) -> SimulatedHost:
    with ground.client("acme-member") as client:
        identity = client.get(f"{VM}/{name}").json()["id"]
    return next(host for host in ground.fleet.hosts if identity in host.world.domains)


def on_fleet(ground: ConsoleGround, work: Coroutine[Any, Any, None]) -> None:
    """Do something on the loop of the hosts' agents; one of them runs always."""
    loop = next(host.task.get_loop() for host in ground.fleet.hosts if host.task is not None)
    asyncio.run_coroutine_threadsafe(work, loop).result(DEADLINE_S)


class Flood:
    """A console that says something for ever, as fast as it is listened to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.said = 0

        async def read(_console: SimConsole) -> bytes:
            self.said += 1
            await asyncio.sleep(0)
            return b"x" * MESSAGE_BYTES

        monkeypatch.setattr(SimConsole, "read", read)

    def settled(self) -> int:
        """How much was said when nothing more is."""
        while True:
            before = self.said
            time.sleep(0.5)
            if before and before == self.said:
                return before


def test_whoever_does_not_read_slows_the_instance_and_fills_no_memory(
    ground: ConsoleGround, monkeypatch: pytest.MonkeyPatch
) -> None:
    flood = Flood(monkeypatch)
    with ground.dial(ground.ticket("train"), max_queue=1) as socket:
        said = flood.settled()
        # What kernel, TLS and three hops hold, and no more.
        assert said * MESSAGE_BYTES < 16 << 20
        for _ in range(said):
            socket.recv()
        settled(lambda: flood.said > said)


def test_a_log_that_breaks_off_is_not_taken_for_whole(
    ground: ConsoleGround, monkeypatch: pytest.MonkeyPatch
) -> None:
    Flood(monkeypatch)
    here = _host_of(ground, "train")
    with ground.client("acme-member") as client, client.stream("GET", f"{VM}/train/console-log") as answer:
        pieces = answer.iter_raw()
        assert next(pieces)
        on_fleet(ground, ground.fleet.vanish(here.number))
        with pytest.raises(httpx2.RemoteProtocolError):
            for _ in pieces:
                pass
    ground.quiet()
    monkeypatch.undo()
    on_fleet(ground, ground.fleet.come_back(here.number))


def test_whoever_leaves_a_log_in_the_middle_leaves_nothing_behind(
    ground: ConsoleGround, monkeypatch: pytest.MonkeyPatch
) -> None:
    Flood(monkeypatch)
    with ground.client("acme-member") as client, client.stream("GET", f"{VM}/train/console-log") as answer:
        pieces = answer.iter_raw()
        assert next(pieces)
        assert ground.board.open == 1
    ground.quiet()


def test_one_request_id_joins_the_call_the_agent_and_the_audit_log(ground: ConsoleGround) -> None:
    ticket, named = ground.ticket("train"), {"X-Request-Id": "joined-4711"}
    with structlog.testing.capture_logs() as told:
        with ground.dial(ticket, additional_headers=named) as socket:
            until(socket, b"booted")
        settled(lambda: {"console.closed", "stream.ended", "request"} <= {each["event"] for each in told})
    mine = {each["event"] for each in told if each.get("request_id") == "joined-4711"}
    assert mine == {"stream.ordered", "stream.ended", "console.closed", "request"}
    assert ticket not in str(told)
    audited = [each for each in about(ground, "console.open") if each["request_id"] == "joined-4711"]
    assert [each["stage"] for each in audited] == ["intent", "outcome"]


def test_an_unreachable_host_is_told_at_once(ground: ConsoleGround) -> None:
    hosts = table_of(HostRow)

    def be(state: str) -> None:
        with ground.store.unit_of_work(CONTROLLER) as tx:
            tx.note(update(hosts).values(state=state))

    ticket = ground.ticket("train")
    be("unreachable")
    try:
        answer = ground.ask("train")
        assert (answer.status_code, answer.json()["code"]) == (503, "console.host_unreachable")
        assert refusal(ground, ticket) == (503, "console.host_unreachable")
        with ground.client("acme-member") as client:
            answer = client.get(f"{VM}/train/console-log")
        assert (answer.status_code, answer.json()["code"]) == (503, "console.host_unreachable")
    finally:
        be("ready")


def test_open_consoles_hold_neither_threads_nor_connections(ground: ConsoleGround) -> None:
    names = [f"many-{number}" for number in range(6)]
    for name in names:
        ground.run(name)
    with contextlib.ExitStack() as stack:
        until(stack.enter_context(ground.dial(ground.ticket("train"))), b"booted")
        (call,) = ground.board._calls.values()
        assert call._over is not None
        for loop in (call._asker, call._over[0]):
            allow_threads(loop, 2)
            stack.callback(allow_threads, loop, 40)
        # More than there are threads, on the users' side and on the hosts'.
        sockets = [stack.enter_context(ground.dial(ground.ticket(name))) for name in names]
        for each in sockets:
            until(each, b"booted")
        assert ground.board.open == len(names) + 1
        settled(lambda: ground.store.database._reading.pool.checkedout() == 0)


def allow_threads(loop: asyncio.AbstractEventLoop, count: int) -> None:
    """Let a loop's blocking work run in so many threads."""

    async def allow() -> None:
        anyio.to_thread.current_default_thread_limiter().total_tokens = count

    asyncio.run_coroutine_threadsafe(allow(), loop).result(DEADLINE_S)


def test_a_controller_that_ends_closes_its_consoles(tmp_path: Path) -> None:
    with console_ground(tmp_path) as ground:
        ground.run("train")
        with ground.dial(ground.ticket("train")) as socket:
            until(socket, b"booted")
            began = time.monotonic()
            told: list[tuple[int, str]] = []
            watching = threading.Thread(target=lambda: told.append(end_of(socket)))
            watching.start()
            ground.running.__exit__()
            watching.join(DEADLINE_S)
        assert [code for code, _ in told] == [1012]
        assert time.monotonic() - began < DEADLINE_S
        assert ground.board.open == 0


def test_with_two_controllers_the_host_dials_the_one_that_the_user_is_at(
    postgres: Postgres, tmp_path: Path
) -> None:
    database = postgres.make()
    # A poll that nobody wakes would come too late.
    pace = dataclasses.replace(BRISK, poll_wait_s=50.0)
    with console_ground(tmp_path, database=database, pace=pace) as first:
        first.run("train")
        # Controllers of one deployment share the authority and the keys of their hashes.
        shutil.copytree(tmp_path / "controller", tmp_path / "second")
        file = ControlFile(
            state_dir=tmp_path / "second",
            public_port=0,
            agents_port=0,
            allow_keys_in_files=True,
            database=database,
        )
        with Running(open_parts(file)) as running:
            second = ConsoleGround(running, tmp_path)
            second.tokens = first.tokens
            # The host's agent polls the first.
            with second.dial(first.ticket("train")) as socket:
                until(socket, b"booted")
                socket.send(b"over there\r")
                assert until(socket, b"\r\n") == b"echo: over there\r\n"
                assert (first.board.open, second.board.open) == (0, 1)
            with second.client("acme-auditor") as client:
                assert b"booted" in client.get(f"{VM}/train/console-log").content
            # What makes it so: without the address, the host dials where nobody waits.
            second.board.url = ""
            with second.limits(dial_s=1.0):
                assert refusal(second, first.ticket("train")) == (503, "console.no_answer")
