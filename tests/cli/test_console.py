"""`instance console` on a terminal of its own, and `instance log`, against a whole controller and a host."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator

import pytest
import structlog
from typer.testing import CliRunner

from orchestrator.__main__ import app
from tests.api.console_ground import DEADLINE_S, ConsoleGround, console_ground, settled, until
from tests.api.deployment import key

VM = "/v1/tenants/acme/instances"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsoleGround]:
    # The controller logs in this process too, and not onto what commands print.
    with structlog.testing.capture_logs(), console_ground(tmp_path_factory.mktemp("consoles")) as ground:
        ground.run("train")
        yield ground


@pytest.fixture
def ground(shared: ConsoleGround, home: object, monkeypatch: pytest.MonkeyPatch) -> Iterator[ConsoleGround]:
    """With settings in the environment, so that commands are acme's member's."""
    settings = {"URL": shared.running.public_url, "CA": str(shared.ca), "TENANT": "acme"}
    for name, value in {**settings, "TOKEN": shared.tokens["acme-member"]}.items():
        monkeypatch.setenv(f"BULKHEAD_{name}", value)
    yield shared
    shared.quiet()


class Terminal:
    """A terminal with one command on it."""

    def __init__(self, *words: str) -> None:
        self.near, self.far = pty.openpty()
        self.before = termios.tcgetattr(self.far)
        self.seen = b""
        self.running = subprocess.Popen(
            [sys.executable, "-m", "orchestrator", *words],
            stdin=self.far,
            stdout=self.far,
            stderr=self.far,
            start_new_session=True,
        )

    def type(self, data: bytes) -> None:
        os.write(self.near, data)

    def until(self, wanted: bytes) -> None:
        """Read until something is shown, and forget what was."""
        end = time.monotonic() + DEADLINE_S
        while wanted not in self.seen:
            assert time.monotonic() < end, self.seen
            if select.select([self.near], [], [], 0.1)[0]:
                self.seen += os.read(self.near, 4096)
        self.seen = self.seen.partition(wanted)[2]

    def end(self) -> int:
        """Wait for the command's end; the terminal must be as it was before."""
        code = self.running.wait(DEADLINE_S)
        assert termios.tcgetattr(self.far) == self.before
        return code

    @property
    def raw(self) -> bool:
        return not termios.tcgetattr(self.far)[3] & (termios.ICANON | termios.ECHO | termios.ISIG)


@contextlib.contextmanager
def terminal(*words: str) -> Iterator[Terminal]:
    made = Terminal(*words)
    try:
        yield made
    finally:
        if made.running.poll() is None:
            made.running.kill()
            made.running.wait()
        os.close(made.near)
        os.close(made.far)


def test_what_is_typed_goes_to_the_instance_until_the_key_that_leaves(ground: ConsoleGround) -> None:
    with terminal("instance", "console", "train") as shown:
        shown.until(b"console of train; Ctrl-] leaves")
        shown.until(b"booted, start 1\r\n")
        assert shown.raw
        shown.type(b"hello\r")
        shown.until(b"echo: hello\r\n")
        # What would end a program here ends nothing: the instance gets it.
        shown.type(b"\x03\x1a\x04ok\r")
        shown.until(b"echo: \x03\x1a\x04ok\r\n")
        shown.type(b"last\r\x1dnot this\r")
        assert shown.end() == 0
        assert b"echo: not this" not in shown.seen


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_the_terminal_as_it_was(ground: ConsoleGround, number: signal.Signals) -> None:
    with terminal("instance", "console", "train") as shown:
        shown.until(b"booted")
        settled(lambda: shown.raw)
        shown.running.send_signal(number)
        assert shown.end() == 128 + number


def test_the_end_of_the_instance_is_the_end_of_its_console(ground: ConsoleGround) -> None:
    ground.run("brief")
    with terminal("instance", "console", "brief") as shown:
        shown.until(b"booted")
        with ground.client("acme-member") as client:
            client.post(f"{VM}/brief/actions/stop", headers=key())
        shown.until(b"the console has ended")
        assert shown.end() == 0
    with terminal("instance", "console", "brief") as shown:
        settled(lambda: shown.running.poll() is not None or ground.board.open)
        shown.until(b"console.not_running")
        assert shown.end() == 5


def test_a_console_that_is_open_elsewhere_is_a_conflict(ground: ConsoleGround) -> None:
    with ground.dial(ground.ticket("train")) as socket:
        until(socket, b"booted")
        with terminal("instance", "console", "train") as shown:
            shown.until(b"console.busy: somebody has this console open already")
            assert shown.end() == 5


def test_without_a_terminal_there_is_no_console(ground: ConsoleGround) -> None:
    ran = CliRunner().invoke(app, ["instance", "console", "train"], prog_name="bulkhead")
    assert (ran.exit_code, ran.stderr.partition(":")[0]) == (2, "console.no_terminal")


@pytest.mark.parametrize(("name", "code"), [("nothing-here", 3), ("no such name", 2)])
def test_what_is_not_there_has_no_console_and_no_log(ground: ConsoleGround, name: str, code: int) -> None:
    with terminal("instance", "console", name) as shown:
        shown.until(b"instance")
        assert shown.end() == code
    ran = CliRunner().invoke(app, ["instance", "log", name], prog_name="bulkhead")
    assert (ran.exit_code, ran.stdout) == (code, "")


def test_a_log_is_the_bytes_that_were_kept_or_their_last_lines(ground: ConsoleGround) -> None:
    # As if it had been restarted from inside.
    ground.fleet.hosts[0].world.domains[ground.run("twice")].started = 2

    def log(*words: str) -> bytes:
        ran = CliRunner().invoke(app, ["instance", "log", "twice", *words], prog_name="bulkhead")
        assert (ran.exit_code, ran.stderr) == (0, "")
        return ran.stdout_bytes

    first, second = log().splitlines(keepends=True)
    assert (first.endswith(b"start 1\r\n"), second.endswith(b"start 2\r\n")) == (True, True)
    assert log("--tail", "1") == second
    assert log("--tail", "9") == first + second


def test_a_log_does_not_steer_the_terminal_that_shows_it(
    ground: ConsoleGround, monkeypatch: pytest.MonkeyPatch
) -> None:
    hostile = b"\x1b]0;owned\x07\x1b[2Jplain \xff text\r\nsecond\tline\r\n"
    monkeypatch.setattr(
        "orchestrator.client.Client.console_log", lambda *_args, **_more: iter([hostile[:9], hostile[9:]])
    )
    ran = CliRunner().invoke(app, ["instance", "log", "train"], prog_name="bulkhead")
    assert ran.stdout_bytes == hostile
    monkeypatch.setattr("orchestrator.cli.nouns.instance._to_terminal", lambda: True)
    ran = CliRunner().invoke(app, ["instance", "log", "train"], prog_name="bulkhead")
    assert ran.stdout == "\\x1b]0;owned\\x07\\x1b[2Jplain \ufffd text\nsecond\tline\n"
