"""One run of `bulkhead` against the played API, in a home of its own."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from orchestrator.__main__ import app
from orchestrator.cli import session
from orchestrator.client import clock
from tests.cli.fake_api import TOKEN, URL, FakeApi


@dataclass(frozen=True)
class Ran:
    """What a command did."""

    exit_code: int
    stdout: str
    stderr: str


Bulkhead = Callable[..., Ran]


@pytest.fixture
def api() -> FakeApi:
    return FakeApi()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without a profile, and an environment without settings."""
    for name in [*os.environ]:
        if name.startswith(("BULKHEAD_", "FORCE_COLOR", "CLICOLOR", "TTY_", "_BULKHEAD")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    return tmp_path


@pytest.fixture
def anew(api: FakeApi, home: Path, monkeypatch: pytest.MonkeyPatch) -> Bulkhead:
    """Run a command with no settings at all."""
    monkeypatch.setattr(session, "transport", lambda: api.transport)
    # Pauses are not slept.
    monkeypatch.setattr(clock, "sleep", lambda _seconds: None)

    def run(*words: object, stdin: str | bytes | None = None) -> Ran:
        done = CliRunner().invoke(app, [str(word) for word in words], input=stdin, prog_name="bulkhead")
        return Ran(done.exit_code, done.stdout, done.stderr)

    return run


@pytest.fixture
def bulkhead(anew: Bulkhead, monkeypatch: pytest.MonkeyPatch) -> Bulkhead:
    """Run a command with server, token and tenant set."""
    monkeypatch.setenv("BULKHEAD_URL", URL)
    monkeypatch.setenv("BULKHEAD_TOKEN", TOKEN)
    monkeypatch.setenv("BULKHEAD_TENANT", "acme")
    return anew
