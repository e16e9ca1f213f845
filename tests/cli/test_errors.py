"""Exit statuses, and what is told of a refusal: code, sentence, every problem, the next step."""

from __future__ import annotations

import httpx2
import pytest

from orchestrator.cli import session
from tests.cli.conftest import Bulkhead
from tests.cli.fake_api import TOKEN, FakeApi, T, problem

LIST = f"GET {T}/instances"

#: Status and code of the answer, exit status.
TABLE: list[tuple[int, str, int]] = [
    (400, "body.unreadable", 2),
    (401, "token.unknown", 4),
    (403, "access.denied", 4),
    (404, "instance.unknown", 3),
    (405, "route.method", 2),
    (409, "instance.name_taken", 5),
    (409, "quota.exceeded", 6),
    (409, "quota.below_use", 5),
    (410, "event.gone", 3),
    (412, "quota.changed", 5),
    (413, "body.too_large", 2),
    (415, "body.type", 2),
    (418, "teapot", 2),
    (422, "field.invalid", 2),
    (426, "protocol.version", 5),
    (428, "match.missing", 2),
    (429, "rate.limited", 6),
    (500, "internal", 1),
    (501, "not_done", 1),
    (502, "gateway.bad", 8),
    (503, "api.not_ready", 8),
    (504, "gateway.timeout", 8),
    (507, "placement.no_gpu", 6),
]


@pytest.mark.parametrize(("status", "code", "exit_code"), TABLE)
def test_exit_statuses(bulkhead: Bulkhead, api: FakeApi, status: int, code: str, exit_code: int) -> None:
    api.reply(LIST, problem(status, code, "what is wrong", field="name", hint="do this"))
    ran = bulkhead("instance", "list")
    assert (ran.exit_code, ran.stdout) == (exit_code, "")
    assert ran.stderr.splitlines() == [
        f"{code} at name: what is wrong",
        "  request: req-77",
        "  next: do this",
    ]


def test_every_problem_of_a_body_is_told(bulkhead: Bulkhead, api: FakeApi) -> None:
    errors = [
        {"field": "name", "code": "field.invalid", "message": "it is too long"},
        {"field": "networks[0]", "code": "field.invalid", "message": "there is no such\x1b[31m network"},
    ]
    api.reply(LIST, problem(422, "field.invalid", "name: it is too long", errors=errors))
    assert bulkhead("instance", "list").stderr.splitlines()[1:3] == [
        "  name: it is too long",
        "  networks[0]: there is no such\\x1b[31m network",
    ]


@pytest.mark.parametrize(
    ("reply", "exit_code", "told"),
    [
        (
            httpx2.Response(502, text="<html>\x1b]0;x\x07bad gateway</html>"),
            8,
            "api.unexpected: the server answered 502",
        ),
        (httpx2.Response(302, headers={"location": "https://evil.test/"}), 1, "api.redirected: "),
        (httpx2.Response(200, text="<html>login</html>"), 1, "api.unexpected: "),
        (httpx2.Response(200, json=[1]), 1, "api.unexpected: "),
        (httpx2.Response(200, json={"items": [1]}), 1, "api.unexpected: "),
        (httpx2.Response(500, json={"code": 7}), 1, "api.unexpected: "),
        (httpx2.Response(500, text="[" * 100_000), 1, "api.unexpected: "),
    ],
)
def test_what_is_no_answer_of_the_api(
    bulkhead: Bulkhead, api: FakeApi, reply: httpx2.Response, exit_code: int, told: str
) -> None:
    api.reply(LIST, reply)
    ran = bulkhead("instance", "list")
    assert (ran.exit_code, ran.stdout) == (exit_code, "")
    assert ran.stderr.startswith(told)
    assert not [mark for mark in ran.stderr if not mark.isprintable() and mark != "\n"]
    assert len(ran.stderr) < 500
    assert {each.url.host for each in api.requests} == {"api.test"}


def test_a_server_that_is_away(bulkhead: Bulkhead, api: FakeApi) -> None:
    def away(_request: httpx2.Request) -> httpx2.Response:
        raise httpx2.ConnectError("Connection refused")

    api.reply(LIST, away)
    ran = bulkhead("instance", "list")
    assert ran.exit_code == 8
    assert ran.stderr.startswith("api.unreachable: the server does not answer: Connection refused\n  next: ")
    assert len(api.requests) == 4


def test_a_fault_of_ours_is_exit_1_and_shows_no_trace(
    bulkhead: Bulkhead, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise RuntimeError(TOKEN)

    monkeypatch.setattr(session, "transport", broken)
    ran = bulkhead("instance", "list")
    assert (ran.exit_code, ran.stdout) == (1, "")
    assert ran.stderr.startswith("internal: something unforeseen: RuntimeError\n")
    assert TOKEN not in ran.stderr


def test_interrupted_is_130(bulkhead: Bulkhead, api: FakeApi) -> None:
    def interrupt(_request: httpx2.Request) -> httpx2.Response:
        raise KeyboardInterrupt

    api.reply(LIST, interrupt)
    assert bulkhead("instance", "list").exit_code == 130


def test_debug_tells_calls_and_no_token(bulkhead: Bulkhead) -> None:
    ran = bulkhead("--debug", "instance", "list")
    assert ran.stderr == f"GET {T}/instances 200\n"
    assert TOKEN not in ran.stdout + ran.stderr


def test_no_colour_without_a_terminal_and_against_no_color(
    bulkhead: Bulkhead, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "\x1b" not in bulkhead("instance", "list").stdout
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b[3" not in bulkhead("instance", "list").stdout
    monkeypatch.delenv("NO_COLOR")
    assert "\x1b[3" in bulkhead("instance", "list").stdout
