"""The client by itself: what is sent again and what is not, paths that cannot be left, events that go on."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from orchestrator.client import Client, clock
from orchestrator.client.errors import ServerError, UnreachableError, WaitTimeoutError
from orchestrator.client.events import Event
from orchestrator.client.http import Call, check_url, segment
from orchestrator.model.errors import (
    BulkheadError,
    HostError,
    InvalidInputError,
    NotFoundError,
    RateLimitedError,
    UnauthenticatedError,
)
from tests.cli import objects
from tests.cli.fake_api import TOKEN, URL, FakeApi, T, problem

Lost = type[httpx2.HTTPError]
OK = httpx2.Response(200, json={"ok": True})


@pytest.fixture
def api() -> FakeApi:
    return FakeApi()


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    found: list[float] = []
    monkeypatch.setattr(clock, "sleep", found.append)
    return found


@pytest.fixture
def client(api: FakeApi, slept: list[float]) -> Iterator[Client]:
    with Client(URL, TOKEN, transport=api.transport) as made:
        yield made


def lose(kind: Lost) -> Callable[[httpx2.Request], httpx2.Response]:
    def handler(_request: httpx2.Request) -> httpx2.Response:
        raise kind("it broke")

    return handler


CALLS = {
    "GET": Call("GET", "/v1/x", repeatable=True),
    "keyed POST": Call("POST", "/v1/x", body={}, repeatable=True),
    "bare POST": Call("POST", "/v1/x", body={}),
    "PUT": Call("PUT", "/v1/x", body={}),
    "DELETE": Call("DELETE", "/v1/x"),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("kind", [httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout])
def test_what_nobody_began_is_sent_again(client: Client, api: FakeApi, call: Call, kind: Lost) -> None:
    api.reply(f"{call.method} /v1/x", lose(kind), lose(kind), OK)
    assert client.http.call(call).body == {"ok": True}
    assert len(api.requests) == 3


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("status", [429, 503])
def test_what_the_server_did_not_begin_is_sent_again(
    client: Client, api: FakeApi, call: Call, status: int
) -> None:
    api.reply(f"{call.method} /v1/x", problem(status, "later"), OK)
    assert client.http.call(call).body == {"ok": True}


@pytest.mark.parametrize(("name", "call"), CALLS.items(), ids=CALLS)
@pytest.mark.parametrize(
    "kind", [httpx2.ReadError, httpx2.ReadTimeout, httpx2.RemoteProtocolError, httpx2.WriteError]
)
def test_a_lost_answer_is_asked_again_only_where_that_does_nothing_twice(
    client: Client, api: FakeApi, name: str, call: Call, kind: Lost
) -> None:
    api.reply(f"{call.method} /v1/x", lose(kind), OK)
    if name in ("GET", "keyed POST"):
        assert client.http.call(call).body == {"ok": True}
        assert len(api.requests) == 2
    else:
        with pytest.raises(UnreachableError) as caught:
            client.http.call(call)
        assert caught.value.code == "api.answer_lost"
        assert len(api.requests) == 1


@pytest.mark.parametrize(("name", "call"), CALLS.items(), ids=CALLS)
@pytest.mark.parametrize("status", [502, 504])
def test_a_gateways_failure_is_a_lost_answer(
    client: Client, api: FakeApi, name: str, call: Call, status: int
) -> None:
    api.reply(f"{call.method} /v1/x", httpx2.Response(status), OK)
    if name in ("GET", "keyed POST"):
        assert client.http.call(call).body == {"ok": True}
    else:
        with pytest.raises(UnreachableError):
            client.http.call(call)
        assert len(api.requests) == 1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 412, 422, 500, 507])
def test_a_decision_is_asked_for_once(client: Client, api: FakeApi, status: int) -> None:
    api.reply("GET /v1/x", problem(status, "thing.no"), OK)
    with pytest.raises(BulkheadError):
        client.http.call(CALLS["GET"])
    assert len(api.requests) == 1


def test_what_the_server_calls_final_is_final(client: Client, api: FakeApi) -> None:
    final = {**problem(503, "keys.lost").json(), "retryable": False}
    api.reply("GET /v1/x", httpx2.Response(503, json=final), OK)
    with pytest.raises(HostError):
        client.http.call(CALLS["GET"])
    assert len(api.requests) == 1


def test_tries_end_and_pauses_grow(client: Client, api: FakeApi, slept: list[float]) -> None:
    api.reply("GET /v1/x", lose(httpx2.ConnectError))
    with pytest.raises(UnreachableError) as caught:
        client.http.call(CALLS["GET"])
    assert caught.value.code == "api.unreachable"
    assert len(api.requests) == 4
    assert slept == [0.2, 0.4, 0.8]


def test_retry_after_is_kept_to_and_a_long_one_is_told(
    client: Client, api: FakeApi, slept: list[float]
) -> None:
    def limited(after: str) -> httpx2.Response:
        return httpx2.Response(429, json=problem(429, "rate.limited").json(), headers={"retry-after": after})

    api.reply("GET /v1/x", limited("3"), OK)
    client.http.call(CALLS["GET"])
    assert slept == [3]
    api.reply("GET /v1/y", limited("3600"))
    with pytest.raises(RateLimitedError) as caught:
        client.http.call(Call("GET", "/v1/y", repeatable=True))
    assert caught.value.retry_after_s == 3600
    assert slept == [3]


@pytest.mark.parametrize("text", ["", ".", "..", "a\nb", "\x00"])
def test_a_name_that_is_none_is_no_path(text: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        segment(text)
    assert caught.value.code == "api.path"


@pytest.mark.parametrize("text", ["a/b", "a?b", "a#b", "../x", "a b", "a%2fb", "\u00e9"])
def test_a_name_never_leaves_its_place_in_the_path(client: Client, api: FakeApi, text: str) -> None:
    with pytest.raises(NotFoundError):
        client.tenant("acme").instances[text].get()
    raw = api.requests[-1].url.raw_path.decode()
    assert raw.startswith(f"{T}/instances/")
    assert raw.count("/") == 5
    assert "?" not in raw


@pytest.mark.parametrize(
    ("url", "kept"),
    [
        ("https://a.test", "https://a.test"),
        ("https://a.test/", "https://a.test"),
        ("https://a.test:8443/", "https://a.test:8443"),
        ("https://[::1]:8443", "https://[::1]:8443"),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("http://[::1]:8080", "http://[::1]:8080"),
        ("http://localhost:8080", "http://localhost:8080"),
    ],
)
def test_addresses(url: str, kept: str) -> None:
    assert check_url(url) == kept


@pytest.mark.parametrize("token", ["a b", "a\nHost: evil", "a\r", "\u00e9", "\x00"])
def test_a_token_cannot_write_headers(api: FakeApi, token: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        Client(URL, token, transport=api.transport)
    assert caught.value.code == "token.malformed"


def test_certificates_are_checked(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_text("no certificate")
    with pytest.raises(InvalidInputError) as caught:
        Client(URL, TOKEN, ca=file)
    assert caught.value.code == "api.ca"
    made = Client(URL, TOKEN)
    context = made.http._inner._transport._pool._ssl_context  # type: ignore[attr-defined]
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    made.close()


def test_an_answer_without_end_is_not_kept(
    client: Client, api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.client.http.MAX_ANSWER_BYTES", 1000)
    api.reply("GET /v1/x", httpx2.Response(200, content=b"[" + b"1," * 1000 + b"1]"))
    with pytest.raises(InvalidInputError, match="larger than any of ours"):
        client.http.call(CALLS["GET"])


def test_a_wait_uses_the_location_but_only_of_this_api(client: Client, api: FakeApi) -> None:
    running = objects.operation(state="running")
    for where in ("https://evil.test/x", "/elsewhere", ""):
        api.reply(f"POST {T}/instances", httpx2.Response(202, json=running, headers={"location": where}))
        answer = client.tenant("acme").instances.create({})
        client.wait(answer, client.tenant("acme").operations)
        assert api.calls[-1] == f"GET {T}/operations/{objects.OP1}"
        assert api.requests[-1].url.host == "api.test"
        api.replies.clear()
    answer = client.http.call(Call("POST", f"{T}/instances", body={}))
    client.wait(answer, client.tenant("acme").operations)
    assert api.calls[-1] == f"GET /v1/tenants/{objects.ACME}/operations/{objects.OP1}"


def test_work_without_an_operation_is_a_fault_of_the_server(client: Client, api: FakeApi) -> None:
    api.reply(f"POST {T}/instances", httpx2.Response(202))
    with pytest.raises(ServerError):
        client.wait(client.tenant("acme").instances.create({}), client.tenant("acme").operations)


def test_a_server_that_holds_no_poll_is_not_hammered(
    client: Client, api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(clock, "now", lambda: now[0])
    monkeypatch.setattr(clock, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    running = httpx2.Response(200, json=objects.operation(state="running"))
    api.reply(f"GET {T}/operations/{objects.OP1}", running)
    with pytest.raises(WaitTimeoutError):
        client.wait_for(client.tenant("acme").operations[objects.OP1], timeout_s=10)
    assert len(api.requests) <= 22


def stream(*texts: str) -> httpx2.Response:
    return httpx2.Response(200, text="".join(texts), headers={"content-type": "text/event-stream"})


def event(number: int) -> str:
    return f'id: ten_a:{number}\nevent: instance.create\ndata: {{"seq": {number}}}\n\n'


def test_events_go_on_where_they_broke_off(client: Client, api: FakeApi) -> None:
    path = f"GET {T}/events"
    api.reply(
        path,
        stream(": connected\n\n", event(7), event(8)),
        lose(httpx2.ReadError),
        problem(503, "api.not_ready"),
        stream(event(8), event(9), "id: ten_a:10\nevent: x\nda"),
        stream(event(10)),
    )
    events = client.events("acme", after="ten_a:6")
    found = [next(events) for _ in range(4)]
    assert [each.id for each in found] == ["ten_a:7", "ten_a:8", "ten_a:9", "ten_a:10"]
    assert found[0] == Event("ten_a:7", "instance.create", {"seq": 7})
    assert [each.headers.get("last-event-id") for each in api.requests] == [
        "ten_a:6",
        *["ten_a:8"] * 3,
        "ten_a:9",
    ]


def test_events_from_the_start_are_asked_for_once(client: Client, api: FakeApi) -> None:
    api.reply(f"GET {T}/events", stream(event(0)), stream(event(1)))
    events = client.events("acme", from_start=True)
    assert [next(events).id, next(events).id] == ["ten_a:0", "ten_a:1"]
    assert [each.url.params.get("from_start") for each in api.requests] == ["true", None]


@pytest.mark.parametrize(("status", "kind"), [(401, UnauthenticatedError), (404, NotFoundError)])
def test_a_refusal_ends_events(client: Client, api: FakeApi, status: int, kind: type[BulkheadError]) -> None:
    last_word = 'event: error\ndata: {"code": "token.revoked"}\n\n'
    api.reply(f"GET {T}/events", stream(event(1), last_word), problem(status, "token.revoked"))
    events = client.events("acme")
    assert next(events).id == "ten_a:1"
    with pytest.raises(kind):
        next(events)
    assert len(api.requests) == 2


def test_a_server_that_stays_away_ends_events(client: Client, api: FakeApi, slept: list[float]) -> None:
    api.reply("GET /v1/events", lose(httpx2.ConnectError))
    with pytest.raises(UnreachableError):
        next(client.events(None))
    assert len(api.requests) == 8
    assert slept == sorted(slept)
    assert max(slept) <= 10


@pytest.mark.parametrize("body", ["", "<html>", '{"x": 1}'])
def test_what_is_no_event_stream_is_not_taken_for_one(client: Client, api: FakeApi, body: str) -> None:
    api.reply(f"GET {T}/events", httpx2.Response(200, text=body))
    with pytest.raises(UnreachableError):
        next(client.events("acme"))


def test_lines_come_one_by_one_and_whole(client: Client, api: FakeApi) -> None:
    api.reply(f"GET {T}/audit", httpx2.Response(200, content='{"a":1}\n{"b":"\u2028\u00e9"}\nlast'.encode()))
    assert list(client.audit("acme", {"kind": "x"})) == ['{"a":1}', '{"b":"\u2028\u00e9"}', "last"]
    assert api.requests[-1].url.params["kind"] == "x"


def test_a_line_without_end_is_not_kept(
    client: Client, api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.client.http.MAX_LINE_BYTES", 100)
    api.reply("GET /v1/audit", httpx2.Response(200, content=b"x" * 1000))
    with pytest.raises(InvalidInputError):
        list(client.audit(None))


def test_a_stream_that_breaks_off_is_no_end(client: Client, api: FakeApi) -> None:
    def broken(_request: httpx2.Request) -> httpx2.Response:
        def parts() -> Iterator[bytes]:
            yield b'{"a":1}\n'
            raise httpx2.ReadError("reset")

        return httpx2.Response(200, content=parts())

    api.reply("GET /v1/audit", broken)
    lines = client.audit(None)
    assert next(lines) == '{"a":1}'
    with pytest.raises(UnreachableError) as caught:
        next(lines)
    assert caught.value.code == "api.answer_lost"


def test_iterating_is_all_of_it(client: Client, api: FakeApi) -> None:
    found: list[dict[str, Any]] = list(client.tenant("acme").instances)
    assert found == api.lists[f"{T}/instances"]
