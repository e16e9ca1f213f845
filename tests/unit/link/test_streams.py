"""Consoles over the link: bytes both ways, and an end to everything that has none of its own."""

from __future__ import annotations

import asyncio
import os
import socket
import tty
from collections.abc import Callable
from pathlib import Path

import pytest
import structlog

from orchestrator.agent.libvirt.consoles import pty_in
from orchestrator.agent.link.consoles import HostConsoles
from orchestrator.agent.link.streams import ConsoleEnd, StreamBounds
from orchestrator.agent.sim.consoles import SimConsole
from orchestrator.model.errors import BulkheadError, NotFoundError
from orchestrator.model.protocol import MAX_LOG_BYTES, StreamOrder
from tests.unit.agent.fleet import Fleet
from tests.unit.link.controller import HOST, Controller
from tests.unit.link.listener import eventually
from tests.unit.link.living import Life

VM = "vm_acme_train"


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    made = Fleet(tmp_path)
    made.apply(made.two_tenants())
    return made


def order(
    controller: Controller, stream: str, *, kind: str = "console", instance: str = VM, **more: object
) -> None:
    made = StreamOrder.model_validate({"id": stream, "kind": kind, "instance": instance, **more})
    controller.streams[HOST] = [*controller.streams.get(HOST, []), made]


def life(controller: Controller, fleet: Fleet, tmp_path: Path, **bounds: float) -> Life:
    limits = StreamBounds(**bounds) if bounds else None  # type: ignore[arg-type]
    return Life(controller, fleet.world, tmp_path, bounds=limits)


def test_console_carries_both_ways_until_its_end(
    controller: Controller, fleet: Fleet, tmp_path: Path
) -> None:
    controller.typed["st_both"] = [b"he", b"llo\r", b"quit\r"]
    order(controller, "st_both")
    with life(controller, fleet, tmp_path):
        eventually(lambda: controller.closed.get("st_both"))

    assert controller.carried["st_both"] == b"vm_acme_train booted, start 1\r\necho: hello\r\necho: quit\r\n"


def test_kept_log_ends_by_itself(controller: Controller, fleet: Fleet, tmp_path: Path) -> None:
    order(controller, "st_log", kind="console-log")
    with life(controller, fleet, tmp_path):
        eventually(lambda: controller.closed.get("st_log"))

    assert controller.carried["st_log"] == b"vm_acme_train booted, start 1\r\n"
    assert controller.closed["st_log"] == (1000, "")


def test_only_the_end_of_a_kept_log_is_sent_when_no_more_is_wanted(
    controller: Controller, fleet: Fleet, tmp_path: Path
) -> None:
    order(controller, "st_end", kind="console-log", last_bytes=9)
    with life(controller, fleet, tmp_path):
        eventually(lambda: controller.closed.get("st_end"))

    assert controller.carried["st_end"] == b"start 1\r\n"


def test_a_stream_is_dialled_where_the_order_says(
    controller: Controller, fleet: Fleet, tmp_path: Path
) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        order(controller, "st_lost", kind="console-log", url=f"https://127.0.0.1:{nobody.getsockname()[1]}")
        order(controller, "st_here", kind="console-log", url=f"{controller.agents.url}/")
        with life(controller, fleet, tmp_path) as living:
            eventually(lambda: controller.closed.get("st_here"))
            eventually(lambda: any("link.stream: st_lost" in line for line in living.said))

    assert "st_lost" not in controller.carried


def test_the_agents_log_names_the_call_that_wanted_the_stream(
    controller: Controller, fleet: Fleet, tmp_path: Path
) -> None:
    order(controller, "st_named", kind="console-log", request_id="call-4711")
    with structlog.testing.capture_logs() as told:
        with life(controller, fleet, tmp_path):
            eventually(lambda: any(line["event"] == "stream.ended" for line in told))

    mine = [line for line in told if line.get("stream") == "st_named"]
    assert [line["event"] for line in mine] == ["stream.ordered", "stream.ended"]
    assert {(line["request_id"], line["instance"]) for line in mine} == {("call-4711", VM)}
    assert mine[1]["code"] == 1000


def test_console_of_what_is_not_here_says_so(controller: Controller, fleet: Fleet, tmp_path: Path) -> None:
    order(controller, "st_none", instance="vm_other")
    with life(controller, fleet, tmp_path):
        eventually(lambda: controller.closed.get("st_none"))

    assert controller.closed["st_none"] == (1011, "console.unknown")
    assert controller.carried["st_none"] == b""


def test_second_console_of_one_instance_is_refused_and_logs_are_not(
    controller: Controller, fleet: Fleet, tmp_path: Path
) -> None:
    order(controller, "st_first")
    with life(controller, fleet, tmp_path):
        eventually(lambda: controller.carried.get("st_first"))
        order(controller, "st_second")
        order(controller, "st_logs", kind="console-log")
        order(controller, "st_else", instance="vm_globex_serve")
        eventually(lambda: controller.closed.get("st_second") and controller.closed.get("st_logs"))
        eventually(lambda: controller.carried.get("st_else"))
        assert "st_first" not in controller.closed
        assert "st_else" not in controller.closed

    assert controller.closed["st_second"] == (1011, "console.busy")
    assert controller.closed["st_logs"] == (1000, "")


def test_stream_that_carries_too_much_is_cut(controller: Controller, fleet: Fleet, tmp_path: Path) -> None:
    controller.typed["st_much"] = [b"x" * 3000] * 2
    order(controller, "st_much")
    with life(controller, fleet, tmp_path, most_bytes=5000):
        eventually(lambda: controller.closed.get("st_much"))

    assert controller.closed["st_much"] == (1009, "stream.too_much")


def test_stream_that_lasts_too_long_is_cut(controller: Controller, fleet: Fleet, tmp_path: Path) -> None:
    order(controller, "st_long")
    with life(controller, fleet, tmp_path, longest_s=0.05):
        eventually(lambda: controller.closed.get("st_long"))

    assert controller.closed["st_long"] == (1000, "stream.too_long")


def test_text_is_no_console_input(controller: Controller, fleet: Fleet, tmp_path: Path) -> None:
    controller.typed["st_text"] = ["hello\r"]
    order(controller, "st_text")
    with life(controller, fleet, tmp_path):
        eventually(lambda: controller.closed.get("st_text"))

    assert controller.closed["st_text"] == (1003, "stream.text")


def test_so_many_streams_at_once_and_no_more(controller: Controller, fleet: Fleet, tmp_path: Path) -> None:
    order(controller, "st_one")
    with life(controller, fleet, tmp_path, at_once=1) as living:
        eventually(lambda: controller.carried.get("st_one"))
        order(controller, "st_two", instance="vm_globex_serve")
        polled = len(controller.beats)
        eventually(lambda: len(controller.beats) > polled + 5)
        assert "st_two" not in controller.carried
        assert living.said == []


def test_stream_that_breaks_harms_no_other(controller: Controller, fleet: Fleet, tmp_path: Path) -> None:
    order(controller, "st_before")
    with life(controller, fleet, tmp_path):
        eventually(lambda: controller.carried.get("st_before"))
        controller.agents.die()
        controller.agents.start()
        order(controller, "st_after")
        eventually(lambda: controller.carried.get("st_after"))


# Real ends: a pty and a file.


def hosts(tmp_path: Path, pty: str = "/nonexistent") -> HostConsoles:
    return HostConsoles(lambda instance: str(tmp_path / f"{instance}.log"), lambda _instance: pty)


def open_and(
    made: HostConsoles, kind: str, use: Callable[[ConsoleEnd], object], last_bytes: int = MAX_LOG_BYTES
) -> object:
    async def work() -> object:
        end = await made.open(VM, kind, last_bytes)
        try:
            return await use(end)  # type: ignore[misc]
        finally:
            await end.close()

    return asyncio.run(work())


async def all_of(end: ConsoleEnd) -> bytes:
    found = b""
    while data := await end.read():
        found += data
    return found


def test_kept_log_is_read_whole_and_then_ends(tmp_path: Path) -> None:
    content = os.urandom(100_000)
    (tmp_path / f"{VM}.log").write_bytes(content)

    assert open_and(hosts(tmp_path), "console-log", all_of) == content


def test_of_a_long_log_the_end_is_read(tmp_path: Path) -> None:
    (tmp_path / f"{VM}.log").write_bytes(b"a" * 50 + b"0123456789")

    assert open_and(hosts(tmp_path), "console-log", all_of, last_bytes=10) == b"0123456789"


def test_log_that_grows_meanwhile_has_an_end_nevertheless(tmp_path: Path) -> None:
    log = tmp_path / f"{VM}.log"
    log.write_bytes(b"first")

    async def use(end: ConsoleEnd) -> bytes:
        log.write_bytes(b"first and more")
        return await all_of(end)

    assert open_and(hosts(tmp_path), "console-log", use) == b"first"


def test_log_that_is_missing_or_a_link_is_not_opened(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError) as missing:
        open_and(hosts(tmp_path), "console-log", all_of)
    secret = tmp_path / "secret"
    secret.write_text("hunter2")
    (tmp_path / f"{VM}.log").symlink_to(secret)
    with pytest.raises(BulkheadError) as linked:
        open_and(hosts(tmp_path), "console-log", all_of)

    assert (missing.value.code, linked.value.code) == ("console.unknown", "console.failed")


def test_pty_is_spoken_to_raw_and_ends_with_its_owner() -> None:
    master, slave = os.openpty()
    tty.setraw(master)
    path = os.ttyname(slave)
    os.close(slave)

    async def use(end: ConsoleEnd) -> tuple[bytes, bytes, bytes]:
        await end.write(b"ls\x03\r")
        typed = await asyncio.to_thread(os.read, master, 100)
        os.write(master, b"boot\n")
        shown = await end.read()
        os.close(master)
        return typed, shown, await end.read()

    assert open_and(hosts(Path("/"), path), "console", use) == (b"ls\x03\r", b"boot\n", b"")


def test_waiting_for_a_silent_pty_can_be_given_up() -> None:
    master, slave = os.openpty()
    try:

        async def use(end: ConsoleEnd) -> str:
            reading = asyncio.create_task(end.read())
            await asyncio.sleep(0)
            reading.cancel()
            await asyncio.wait([reading])
            os.write(master, b"x")
            return (await end.read()).decode()

        assert open_and(hosts(Path("/"), os.ttyname(slave)), "console", use) == "x"
    finally:
        os.close(master)
        os.close(slave)


def test_what_is_no_terminal_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    for path in (str(file), "/nonexistent"):
        with pytest.raises(BulkheadError) as refused:
            open_and(hosts(tmp_path, path), "console", all_of)
        assert refused.value.code == "console.failed"


DOMAIN = """<domain type='kvm' id='3'><name>vm_a</name>
<metadata><b:instance xmlns:b='https://bulkhead.example/domain/1' id='vm_a'/></metadata>
<devices><serial type='pty'><source path='{path}'/></serial></devices></domain>"""


def test_pty_is_found_in_our_live_definition_alone() -> None:
    from orchestrator.agent.libvirt.xml.metadata import TAG

    space, name = TAG[1:].split("}")
    ours = DOMAIN.replace("https://bulkhead.example/domain/1", space).replace("b:instance", f"b:{name}")
    assert pty_in(ours.format(path="/dev/pts/7"), "vm_a") == "/dev/pts/7"
    foreign = ours.replace(space, "urn:other").format(path="/dev/pts/7")
    stopped = ours.replace("<source path='{path}'/>", "")
    for bad in ("", foreign, stopped, ours.format(path="/etc/shadow"), ours.format(path="/dev/pts/../sda")):
        with pytest.raises(NotFoundError) as refused:
            pty_in(bad, "vm_a")
        assert refused.value.code == "console.unknown"


def test_simulated_console_does_not_keep_a_line_without_an_end() -> None:
    async def use() -> bytes:
        end = SimConsole(b"", runs=lambda: True)
        for _ in range(3):
            await end.write(b"x" * 4000)
        return await end.read()

    assert len(asyncio.run(use())) > 4096
