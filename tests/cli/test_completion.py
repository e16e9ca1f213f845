"""Completion: nouns and verbs without a server, names with one, and silence when it is away."""

from __future__ import annotations

import httpx2
import pytest
from typer.testing import CliRunner

from orchestrator.__main__ import app
from tests.cli import objects
from tests.cli.conftest import Bulkhead
from tests.cli.fake_api import FakeApi, T, problem


def completed(monkeypatch: pytest.MonkeyPatch, typed: str) -> list[str]:
    """What bash is offered after `typed`."""
    monkeypatch.setenv("COMP_WORDS", typed)
    monkeypatch.setenv("COMP_CWORD", str(typed.count(" ")))
    done = CliRunner().invoke(app, [], prog_name="bulkhead", env={"_BULKHEAD_COMPLETE": "complete_bash"})
    assert done.stderr == ""
    return done.stdout.split()


def test_nouns_verbs_and_options_need_no_server(
    bulkhead: Bulkhead, api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert completed(monkeypatch, "bulkhead inst") == ["instance"]
    assert completed(monkeypatch, "bulkhead instance st") == ["start", "stop"]
    assert "--cidr" in completed(monkeypatch, "bulkhead network create --c")
    assert api.requests == []


def test_names_come_from_the_server(
    bulkhead: Bulkhead, api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert completed(monkeypatch, "bulkhead instance show ") == ["train", objects.LONG_NAME, "serve"]
    assert completed(monkeypatch, "bulkhead instance stop tr") == ["train"]
    assert completed(monkeypatch, "bulkhead host cordon gpu-0") == ["gpu-01", "gpu-02"]
    assert completed(monkeypatch, "bulkhead gpu release gpu_k") == ["gpu_k2l3m4n5o6p7q2r3s4t5"]
    assert set(api.calls) == {f"GET {T}/instances", "GET /v1/hosts", "GET /v1/gpus"}


def test_what_is_no_name_is_not_offered(
    bulkhead: Bulkhead, api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a b", "$(id)", "a\n", "\x1b[2J", "fine"):
        api.lists[f"{T}/instances"].append(objects.instance(name, objects.VM1))
    assert "fine" in completed(monkeypatch, "bulkhead instance show ")
    assert completed(monkeypatch, "bulkhead instance show a")[1:] == []


def test_a_server_that_is_away_or_refuses_is_silence(
    bulkhead: Bulkhead, api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(_request: httpx2.Request) -> httpx2.Response:
        raise httpx2.ConnectTimeout("away")

    for reply in (away, problem(401, "token.expired"), problem(503, "api.not_ready")):
        api.replies.clear()
        api.requests.clear()
        api.reply(f"GET {T}/instances", reply)
        assert completed(monkeypatch, "bulkhead instance show ") == []
        # One try: nobody waits at a prompt.
        assert len(api.requests) == 1


def test_without_settings_it_is_silence(anew: Bulkhead, monkeypatch: pytest.MonkeyPatch) -> None:
    assert completed(monkeypatch, "bulkhead instance show ") == []
