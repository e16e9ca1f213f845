from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from orchestrator.agent.guest import GuestChannel, worker
from orchestrator.model.errors import HostError, InvalidInputError


@contextmanager
def guest(behave: Callable[[socket.socket, int], None], path: Path):
    """A guest behind a socket: reads the question, then behaves as told."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(1)
    asked: list[bytes] = []

    def serve() -> None:
        connection, _ = listener.accept()
        with connection, suppress(OSError):
            stream = connection.makefile("rb")
            while not (line := stream.readline()).strip():
                if not line:
                    return
            asked.append(line)
            behave(connection, json.loads(line)["id"])
            connection.settimeout(10)
            connection.recv(1)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield asked
    listener.close()
    thread.join(15)


def answer(number: int, **fields: object) -> bytes:
    return json.dumps({"id": number, "ok": True, **fields}).encode() + b"\n"


def ask(tmp_path: Path, behave: Callable[[socket.socket, int], None], timeout_s: float = 5.0) -> dict:
    with guest(behave, tmp_path / "s"):
        return GuestChannel().ask(str(tmp_path / "s"), {"op": "ping"}, timeout_s)


def refused(
    tmp_path: Path, behave: Callable[[socket.socket, int], None], timeout_s: float = 5.0
) -> HostError:
    with pytest.raises(HostError) as found:
        ask(tmp_path, behave, timeout_s)
    return found.value


def test_answer_comes_back_with_its_fields(tmp_path):
    found = ask(tmp_path, lambda c, n: c.sendall(answer(n, report={"cpus": [1, 2.5, None, "x"]})))

    assert found["ok"] is True
    assert found["report"] == {"cpus": [1, 2.5, None, "x"]}


def test_question_is_preceded_by_an_empty_line_and_carries_its_fields(tmp_path):
    with guest(lambda c, n: c.sendall(answer(n)), tmp_path / "s") as asked:
        GuestChannel().ask(str(tmp_path / "s"), {"op": "run", "script": "a\nb" * 50_000}, 5)

    assert json.loads(asked[0])["script"] == "a\nb" * 50_000


def test_answers_to_others_and_noise_are_passed_over(tmp_path):
    def behave(c: socket.socket, n: int) -> None:
        c.sendall(b'rest of a line"}\n\n' + answer(n + 1) + b'{"id":true,"ok":true}\n' + answer(n, right=1))

    assert ask(tmp_path, behave)["right"] == 1


def test_failure_told_by_the_guest_is_an_answer(tmp_path):
    found = ask(
        tmp_path, lambda c, n: c.sendall(json.dumps({"id": n, "ok": False, "error": "e"}).encode() + b"\n")
    )

    assert (found["ok"], found["error"]) == (False, "e")


def test_strings_lose_what_terminals_obey(tmp_path):
    evil = "a\x1b[31mb\x07\x9b\u202ec\ud800\n"
    found = ask(tmp_path, lambda c, n: c.sendall(answer(n, **{"k\x1b": [evil]})))

    assert found["k"] == ["a[31mbc"]


#: Each nests as deep as may be, or one deeper: by what stands outside strings.
OUTSIDE_STRINGS = {
    b"[" * 16 + b"]" * 16: True,
    b"[" * 17 + b"]" * 17: False,
    b"[[]," * 16 + b"[" + b"]" * 17: False,
    b'["' + b"[{" * 40 + b'"]': True,
    b'["\\"' + b"[" * 40 + b'"]': True,
    b'["\\\\"' + b",[" * 16 + b"]" * 17: False,
    b'["a\\\\\\"' + b"[" * 40 + b'"]': True,
}


@pytest.mark.parametrize("text", OUTSIDE_STRINGS)
def test_brackets_nest_so_deep_outside_strings_and_not_within(text):
    if OUTSIDE_STRINGS[text]:
        worker._expect_shallow(text)
    else:
        with pytest.raises(worker.BadAnswer, match="nested too deeply"):
            worker._expect_shallow(text)


HOSTILE = {
    "deep nesting": b'{"id":%d,"ok":true,"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}\n",
    "a little too deep": b'{"id":%d,"ok":true,"x":' + b"[" * 16 + b"]" * 16 + b"}\n",
    "duplicate keys": b'{"id":%d,"ok":true,"ok":false}\n',
    "keys equal once cleaned": b'{"id":%d,"ok":true,"o\\u001bk":false}\n',
    "NaN": b'{"id":%d,"ok":true,"x":NaN}\n',
    "infinity": b'{"id":%d,"ok":true,"x":1e999}\n',
    "huge integer": b'{"id":%d,"ok":true,"x":' + b"9" * 100_000 + b"}\n",
    "integer past 64 bits": b'{"id":%d,"ok":true,"x":9223372036854775808}\n',
    "invalid UTF-8": b'{"id":%d,"ok":true,"x":"\xff\xfe"}\n',
    "raw escape": b'{"id":%d,"ok":true,"x":"\x1b[31m"}\n',
    "too many values": b'{"id":%d,"ok":true,"x":[' + b"1," * 30_000 + b"1]}\n",
    "ok of another type": b'{"id":%d,"ok":1}\n',
    "no ok": b'{"id":%d}\n',
    "an array": b'[{"id":%d,"ok":true}]\n',
    "line too long": b'{"id":%d,"ok":true,"x":"' + b"a" * (256 * 1024) + b'"}\n',
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_answer_is_refused(tmp_path, name):
    def behave(c: socket.socket, n: int) -> None:
        c.sendall(HOSTILE[name].replace(b"%d", str(n).encode()))
        # No more will come: the worker need not wait for a better answer.
        c.shutdown(socket.SHUT_WR)

    error = refused(tmp_path, behave, 30.0)

    assert error.code == "guest.bad_answer"
    assert error.message.isprintable()


def test_flood_without_newline_ends_soon(tmp_path):
    sent = [0]

    def behave(c: socket.socket, n: int) -> None:
        while sent[0] < 1 << 30:
            sent[0] += c.send(b"x" * 65536)

    error = refused(tmp_path, behave, 30.0)

    assert error.code == "guest.bad_answer"
    assert sent[0] < 16 << 20


@pytest.mark.parametrize("line", [b"\n", b'{"id":0}\n', b'{"id":0,"x":"' + b"x" * 200_000 + b'"}\n'])
def test_flood_of_lines_ends_soon(tmp_path, line):
    sent = [0]

    def behave(c: socket.socket, n: int) -> None:
        while sent[0] < 1 << 30:
            sent[0] += c.send(line * max(1, 65536 // len(line)))

    assert refused(tmp_path, behave, 60.0).code == "guest.bad_answer"
    assert sent[0] < 32 << 20


def test_slow_drip_ends_at_the_deadline(tmp_path):
    def behave(c: socket.socket, n: int) -> None:
        for byte in answer(n) * 20:
            c.sendall(bytes([byte]))
            time.sleep(0.2)

    started = time.monotonic()
    error = refused(tmp_path, behave, 1.0)

    assert error.code == "guest.no_answer"
    assert time.monotonic() - started < 4


def test_closing_midway_is_no_answer(tmp_path):
    def behave(c: socket.socket, n: int) -> None:
        c.sendall(answer(n)[:-5])
        c.shutdown(socket.SHUT_RDWR)

    assert refused(tmp_path, behave).code == "guest.no_answer"


def test_silence_and_absence_are_no_answer(tmp_path):
    assert refused(tmp_path, lambda c, n: None, 0.5).code == "guest.no_answer"
    with pytest.raises(HostError) as found:
        GuestChannel().ask(str(tmp_path / "nothing"), {"op": "ping"}, 1.0)
    assert found.value.code == "guest.no_answer"


def test_guest_that_does_not_read_is_no_answer():
    here, there = socket.socketpair()
    here.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    with here, there, pytest.raises(HostError) as found:
        GuestChannel().ask_connected(here, {"op": "run", "script": "x" * 200_000}, 0.5)
    assert found.value.code == "guest.no_answer"


@pytest.mark.parametrize("request_", [{"x": float("nan")}, {"x": b"1"}, {"x": "a" * 300_000}])
def test_question_that_cannot_be_asked_is_refused(tmp_path, request_):
    here, there = socket.socketpair()
    with here, there, pytest.raises(InvalidInputError):
        GuestChannel().ask_connected(here, request_, 1.0)


def workers() -> list[Path]:
    """The workers that this process has started and not yet waited for."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            ours = f"\nPPid:\t{os.getpid()}\n" in (process / "status").read_text()
            if ours and b"guest/worker.py" in (process / "cmdline").read_bytes():
                found.append(process)
    return found


def test_worker_has_no_rights_no_environment_and_few_descriptors(tmp_path):
    seen: dict[str, str] = {}

    def behave(c: socket.socket, n: int) -> None:
        for process in workers():
            seen["status"] = (process / "status").read_text()
            seen["limits"] = (process / "limits").read_text()
            if os.geteuid() == 0:
                seen["environ"] = (process / "environ").read_text()
                seen["fds"] = " ".join(sorted(os.listdir(process / "fd")))
        c.sendall(answer(n))

    ask(tmp_path, behave)

    fields = dict(line.split(":\t", 1) for line in seen["status"].splitlines())
    assert fields["NoNewPrivs"] == "1"
    for kind, limit in (
        ("Max address space", 256 << 20),
        ("Max cpu time", 15),
        ("Max file size", 0),
        ("Max open files", 1),
    ):
        line = next(line for line in seen["limits"].splitlines() if line.startswith(kind))
        assert line.removeprefix(kind).split()[:2] == [str(limit)] * 2
    if os.geteuid() == 0:
        assert fields["Uid"].split() == ["65534"] * 4
        assert fields["Gid"].split() == ["65534"] * 4
        assert fields["Groups"].strip() == ""
        assert {fields[f"Cap{kind}"] for kind in ("Inh", "Prm", "Eff", "Amb")} == {"0" * 16}
        assert seen["environ"] == ""
        assert len(seen["fds"].split()) == 4


def test_no_worker_is_left_after_any_outcome(tmp_path):
    refused(tmp_path, lambda c, n: None, 0.3)

    assert workers() == []


@pytest.mark.parametrize(
    ("script", "timeout_s", "code"),
    [
        ("import time; time.sleep(60)", 0.1, "guest.no_answer"),
        ("import os\nwhile True: os.write(1, b'x' * 65536)", 30.0, "guest.bad_answer"),
        ('print(\'{"id": 1, "ok": true}\')', 30.0, "guest.bad_answer"),
        ("print('[' * 100000)", 30.0, "guest.bad_answer"),
        ("import os; os.kill(os.getpid(), 9)", 30.0, "guest.bad_answer"),
        ("import sys; print('\\x1b[31m'); sys.exit(4)", 30.0, "guest.bad_answer"),
    ],
)
def test_overcome_worker_is_not_believed(tmp_path, monkeypatch, script, timeout_s, code):
    evil = tmp_path / "evil.py"
    evil.write_text(script)
    monkeypatch.setattr(worker, "__file__", str(evil))
    monkeypatch.setattr("orchestrator.agent.guest.channel._GRACE_S", 0.5)
    here, there = socket.socketpair()

    with here, there, pytest.raises(HostError) as found:
        GuestChannel().ask_connected(here, {"op": "ping"}, timeout_s)

    assert found.value.code == code
    assert "\x1b" not in found.value.message
