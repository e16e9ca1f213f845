"""Commands in children of a process that has loaded them: as started, killable, gone with who asked."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from images.labhost import build

#: Stands in for the command line: tells its pid, echoes, dies, or says lines and would go on for ever.
PRETENDED = """
import os, sys, time
from images.labhost import inside

def command(argv):
    if argv[0] == "echo":
        sys.stdout.write(sys.stdin.read()); sys.stdout.flush()
    elif argv[0] == "lines":
        for number in range(5):
            os.write(2, b"line\\n"); time.sleep(0.05)
        time.sleep(600)
    elif argv[0] == "leaves-a-child":
        if os.fork() == 0:
            time.sleep(600)
        os.write(1, b"over")
    elif argv[0] == "sleep":
        open(argv[1], "w").write(str(os.getpid()))
        time.sleep(600)
    return 3 if argv[0] == "three" else 0

inside._LOADED = ()
inside._command = command
inside.main()
"""


class Inside:
    """The process, asked over its pipes as ssh would."""

    def __init__(self, program: list[str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *program], cwd=build.REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self.answer()["ready"] > 0

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()

    def ask(self, *argv: str, **more: Any) -> dict[str, Any]:
        self.send(*argv, **more)
        return self.answer()

    def send(self, *argv: str, **more: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"argv": argv, **more}).encode() + b"\n")
        self.process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        return dict(json.loads(self.process.stdout.readline()))


@pytest.fixture
def pretended() -> Iterator[Inside]:
    made = Inside(["-c", PRETENDED])
    yield made
    made.close()


def test_the_real_command_line_answers_again_and_again() -> None:
    made = Inside(["-m", "images.labhost.inside"])
    try:
        first = made.ask("agent", "schema")
        assert (first["rc"], first["stderr"]) == (0, "")
        assert json.loads(first["stdout"])["title"] == "Bulkhead assignment, version 1"
        bad = made.ask("agent", "check", "-", stdin=base64.b64encode(b"{}").decode())
        assert bad["rc"] == 2
        assert "assignment" in bad["stderr"]
        assert made.ask("agent", "schema") == first
    finally:
        made.close()


def test_status_and_much_input_and_output(pretended: Inside) -> None:
    much = b"0123456789" * 100_000
    assert pretended.ask("three")["rc"] == 3
    assert pretended.ask("echo", stdin=base64.b64encode(much).decode())["stdout"].encode() == much
    assert pretended.ask("echo")["stdout"] == ""


def test_a_command_that_does_not_read_gets_its_input_all_the_same(pretended: Inside) -> None:
    much = base64.b64encode(b"x" * 1_000_000).decode()
    assert pretended.ask("three", stdin=much)["rc"] == 3


def test_kill_comes_after_so_many_lines(pretended: Inside) -> None:
    done = pretended.ask("lines", kill_after=3)
    assert done["rc"] == 137
    assert done["stderr"] == "line\n" * 3


def test_a_grandchild_that_lives_on_is_not_waited_for(pretended: Inside) -> None:
    began = time.monotonic()
    assert pretended.ask("leaves-a-child") == {"rc": 0, "stdout": "over", "stderr": ""}
    assert time.monotonic() - began < 60


def test_a_command_goes_when_nobody_waits_for_it(pretended: Inside, tmp_path: Any) -> None:
    mark = tmp_path / "pid"
    pretended.send("sleep", str(mark))
    deadline = time.monotonic() + 30
    while not (mark.exists() and mark.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert pretended.process.stdin is not None
    pretended.process.stdin.close()
    pretended.process.wait(30)
    with pytest.raises(ProcessLookupError):
        os.kill(int(mark.read_text()), 0)
