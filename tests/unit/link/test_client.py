"""The agent's end of each message, over real TLS: enrolment by pin, and answers that mean harm."""

from __future__ import annotations

import asyncio
import datetime as dt
import gzip
import json
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest
from fastapi import Request, Response
from fastapi.responses import StreamingResponse

from orchestrator.agent.link.certificates import Certificates, FreshKey
from orchestrator.agent.link.client import Link, LinkRefused, enrol
from orchestrator.agent.link.controller_keys import ControllerKeys
from orchestrator.agent.link.upkeep import renew_if_due
from orchestrator.controller.authority import Authority, host_of
from orchestrator.model.errors import BulkheadError
from orchestrator.model.join_token import JoinSecret, make_join_token
from orchestrator.model.protocol import MAX_SMALL_BYTES, Report
from tests.unit.agent.fleet import Fleet
from tests.unit.link.controller import HOST, Controller, passphrase, said
from tests.unit.link.listener import NOW, link_of, public_listener

T = TypeVar("T")
REPORT = Report("boot-1", "0.1.0", None, None, None)


@pytest.fixture
def link(controller: Controller, tmp_path: Path) -> Link:
    return link_of(controller.authority, HOST, controller.agents.url, tmp_path, answer_s=5.0)


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


def refusal(work: Coroutine[Any, Any, Any]) -> BulkheadError:
    with pytest.raises(BulkheadError) as refused:
        run(work)
    return refused.value


def join(controller: Controller, token: str, folder: Path) -> Certificates:
    key, made = FreshKey.make(), Certificates(folder)
    answer, authority_pem = run(enrol(controller.public.url, token, key.csr_pem))
    made.enrol(key, answer, authority_pem)
    return made


def test_token_enrols_once(controller: Controller, tmp_path: Path) -> None:
    token = controller.join_token("hst_new")
    made = join(controller, token, tmp_path / "first")
    identity = made.identity()

    run(Link(identity.agents_url, made.tls()).heartbeat("boot-1"))

    assert controller.beats == [("hst_new", "boot-1")]
    with pytest.raises(LinkRefused) as refused:
        join(controller, token, tmp_path / "second")
    assert refused.value.said == "join_token.used"
    assert token not in refused.value.explain()
    assert not (tmp_path / "second").exists()


def test_wrong_secret_enrols_nobody(controller: Controller) -> None:
    controller.join_token("hst_new")
    forged = make_join_token(JoinSecret("jt_0", b"x" * 32, controller.authority.fingerprint))

    assert refusal(enrol(controller.public.url, forged, FreshKey.make().csr_pem)).code == "link.refused"


def test_whoever_cannot_show_the_pinned_authority_hears_nothing(
    controller: Controller, tmp_path: Path
) -> None:
    """Somebody between agent and controller, with a certificate of another authority."""
    heard: list[str] = []

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        heard.append(scope["path"])

    other = Authority.create(tmp_path / "other", NOW)
    with public_listener(app, other, tmp_path / "between") as between:
        problem = refusal(enrol(between.url, controller.join_token("hst_new"), FreshKey.make().csr_pem))

    assert (problem.code, problem.retryable) == ("link.untrusted", False)
    assert heard == []


def test_authority_in_the_chain_is_not_enough_without_its_signature(
    controller: Controller, tmp_path: Path
) -> None:
    """The authority's certificate is no secret: anybody can put it behind a leaf of his own."""
    heard: list[str] = []

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        heard.append(scope["path"])

    other = Authority.create(tmp_path / "other", NOW)
    with public_listener(app, other, tmp_path / "between") as between:
        between.die()
        chain = tmp_path / "between" / "server.pem"
        chain.write_text(chain.read_text() + controller.authority.certificate_pem)
        between.start()
        problem = refusal(enrol(between.url, controller.join_token("hst_new"), FreshKey.make().csr_pem))

    assert problem.code == "link.untrusted"
    assert heard == []


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1", "127.0.0.1:8443", "https://", "https://a:b@c", "https://c?x=1", "https://c:x"]
)
def test_controllers_address_is_https(url: str, controller: Controller) -> None:
    assert refusal(enrol(url, controller.join_token("hst_new"), "x")).code == "link.url"


def test_nobody_there_is_worth_another_try(controller: Controller) -> None:
    controller.public.die()
    try:
        problem = refusal(
            enrol(controller.public.url, controller.join_token("hst_new"), FreshKey.make().csr_pem)
        )
    finally:
        controller.public.start()

    assert (problem.code, problem.retryable) == ("link.unreachable", True)


def test_poll_brings_what_is_newer_and_nothing_else(
    controller: Controller, link: Link, tmp_path: Path
) -> None:
    wanted = Fleet(tmp_path).two_tenants(revision=3)
    controller.assign(wanted)

    async def ask() -> None:
        assert await link.next_assignment(1, 2, 5.0) == wanted
        assert await link.next_assignment(0, 9, 5.0) == wanted
        assert await link.next_assignment(1, 3, 0.05) is None

    run(ask())


def test_host_gets_only_its_own_assignment(controller: Controller, tmp_path: Path) -> None:
    controller.assign(Fleet(tmp_path).two_tenants())
    other = link_of(controller.authority, "hst_other", controller.agents.url, tmp_path)

    assert run(other.next_assignment(0, 0, 0.05)) is None


def test_key_is_fetched_each_time_and_refused_by_its_name(controller: Controller, link: Link) -> None:
    async def ask() -> None:
        keys = ControllerKeys(link, asyncio.get_running_loop())
        for _ in range(2):
            found = await asyncio.to_thread(keys.passphrase, "vol_a", 1)
            assert found == passphrase("vol_a", 1).encode()
        controller.no_keys.add("vol_a")
        with pytest.raises(BulkheadError) as refused:
            await asyncio.to_thread(keys.passphrase, "vol_a", 1)
        assert refused.value.code == "key.unknown"

    run(ask())

    assert controller.keys_given == [(HOST, "vol_a")] * 2
    # Nothing of a key stays in the objects that fetched it.
    assert passphrase("vol_a", 1) not in str(vars(link))


def test_key_that_does_not_come_is_an_error_in_time(link: Link) -> None:
    class Never:
        async def passphrase(self, volume: str, generation: int) -> bytes:
            await asyncio.Event().wait()
            return b""

    async def ask() -> None:
        keys = ControllerKeys(Never(), asyncio.get_running_loop(), wait_s=0.05)
        with pytest.raises(BulkheadError) as refused:
            await asyncio.to_thread(keys.passphrase, "vol_a", 1)
        assert refused.value.code == "link.timeout"

    run(ask())


@pytest.mark.parametrize(
    "hook",
    [
        lambda _request: said(b"", 204, version="3"),
        lambda _request: Response(status_code=204),
        lambda _request: said(b'{"code": "protocol.version"}', 426, version="3"),
    ],
    ids=["newer", "mute", "refused"],
)
def test_other_protocol_version_is_told_as_such(controller: Controller, link: Link, hook: Any) -> None:
    controller.answer_instead = hook

    assert refusal(link.heartbeat("b")).code == "protocol.version"
    assert controller.beats == []


def test_request_says_its_version(controller: Controller, link: Link) -> None:
    seen: list[str | None] = []

    def look(request: Request) -> None:
        seen.append(request.headers.get("bulkhead-protocol"))

    controller.answer_instead = look
    run(link.heartbeat("b"))

    assert seen == ["1"]


def long(_request: Request) -> Response:
    async def pieces() -> Any:
        for _ in range(64):
            yield b"x" * 65536
            await asyncio.sleep(0)

    return StreamingResponse(pieces(), headers={"Bulkhead-Protocol": "1"})


def bomb(_request: Request) -> Response:
    packed = gzip.compress(b"x" * (1 << 20))
    return Response(packed, headers={"Bulkhead-Protocol": "1", "Content-Encoding": "gzip"})


def trickle(_request: Request) -> Response:
    async def pieces() -> Any:
        for _ in range(200):
            yield b" "
            await asyncio.sleep(0.01)

    return StreamingResponse(pieces(), headers={"Bulkhead-Protocol": "1"})


@pytest.mark.parametrize(
    ("hook", "code", "retryable"),
    [
        (long, "link.bad_answer", True),
        (bomb, "link.bad_answer", True),
        (trickle, "link.timeout", True),
        (lambda _r: said(b"<html>"), "protocol.bad_message", False),
        (lambda _r: said(b'{"passphrase": "short"}'), "protocol.bad_message", False),
        (lambda _r: said(b'{"passphrase": 1, "more": 2}'), "protocol.bad_message", False),
        (lambda _r: said(b"x" * (MAX_SMALL_BYTES + 1)), "link.bad_answer", True),
        (lambda _r: said(b"", 204), "protocol.bad_message", False),
        (lambda _r: said(b"no", 500), "link.unavailable", True),
        (lambda _r: said(b'{"code": "rate.limited", "detail": ""}', 429), "link.unavailable", True),
        (
            lambda _r: Response(status_code=302, headers={"Location": "https://127.0.0.1:1/"}),
            "key.unknown",
            False,
        ),
    ],
    ids=["long", "bomb", "trickle", "html", "short", "wrong", "large", "empty", "500", "429", "redirect"],
)
def test_hostile_answers_are_refused_in_bounded_time_and_memory(
    controller: Controller, tmp_path: Path, hook: Any, code: str, retryable: bool
) -> None:
    link = link_of(
        controller.authority, HOST, controller.agents.url, tmp_path, answer_s=0.5 if hook is trickle else 10.0
    )
    controller.answer_instead = hook

    problem = refusal(link.passphrase("vol_a", 1))

    assert (problem.code, problem.retryable) == (code, retryable)


def test_assignment_that_cannot_be_read_is_refused_with_reasons(controller: Controller, link: Link) -> None:
    body = {"assignment": {"version": 1, "host": HOST, "surprise": 1}}
    controller.answer_instead = lambda _request: said(json.dumps(body).encode())

    problem = refusal(link.next_assignment(0, 0, 1.0))

    assert problem.code == "assignment.refused"
    assert "assignment.unknown_field at surprise" in problem.explain()


def test_controller_with_another_authority_is_not_believed(controller: Controller, tmp_path: Path) -> None:
    other = Authority.create(tmp_path / "other", NOW)
    link = link_of(other, HOST, controller.agents.url, tmp_path)

    assert refusal(link.report(REPORT)).code == "link.untrusted"
    assert controller.reports == []


def test_listener_of_another_name_is_not_believed(controller: Controller, tmp_path: Path) -> None:
    link = link_of(
        controller.authority, HOST, controller.agents.url.replace("127.0.0.1", "127.0.0.2"), tmp_path
    )

    # Nothing listens there, or the certificate does not name it: never a word either way.
    assert refusal(link.report(REPORT)).code in ("link.untrusted", "link.unreachable")
    assert controller.reports == []


def test_certificate_is_renewed_when_due_and_used_at_once(controller: Controller, tmp_path: Path) -> None:
    controller.issued_days = 3
    made = join(controller, controller.join_token(HOST), tmp_path / "link")
    controller.issued_days = 30
    shown: list[bytes] = []

    async def live() -> None:
        link = Link(made.identity().agents_url, made.tls())
        assert await renew_if_due(made, link, NOW + dt.timedelta(days=1)) is False
        before = made.identity().not_after
        assert await renew_if_due(made, link, NOW + dt.timedelta(days=2)) is True
        assert made.identity().not_after > before
        controller.answer_instead = lambda request: shown.append(request.scope["bulkhead.peer"])  # type: ignore[func-returns-value]
        await link.heartbeat("boot-1")
        await link.close()

    run(live())

    assert host_of(shown[0]).not_after == made.identity().not_after


def test_closed_link_is_an_error_of_ours(link: Link) -> None:
    async def ask() -> None:
        await link.close()
        await link.heartbeat("b")

    assert refusal(ask()).code == "link.broken"
