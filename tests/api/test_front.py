"""What stands around every request: who is let in, sizes, forms, ids, headers, and the last resort."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest
import structlog
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from starlette.testclient import TestClient

from api.middleware import MAX_BODY_BYTES
from orchestrator.access.tokens import make_token, parse_token
from orchestrator.controller import people
from orchestrator.controller.people import NewPrincipal
from orchestrator.model.actor import CONTROLLER
from orchestrator.model.errors import UnauthenticatedError
from orchestrator.store.tables.people import TokenRow
from tests.api.deployment import Deployment, app_over, key
from tests.api.rows import records

T = "/v1/tenants/acme"
VM = {"name": "train", "type": "small", "image": "debian"}
JSON = {"Content-Type": "application/json"}


def denials(deployed: Deployment) -> list[dict]:
    return [each for each in records(deployed.store) if each["stage"] == "denied"]


def _spoiled(text: str) -> dict[str, list[tuple[str, str]]]:
    parsed = parse_token(text)
    other = make_token(parsed.key_id, bytes(32))
    unknown = make_token("tok_aaaaaaaaaaaaaaaaaaaa", parsed.secret)
    bearer = "authorization"
    return {
        "a wrong secret": [(bearer, f"Bearer {other}")],
        "an unknown key": [(bearer, f"Bearer {unknown}")],
        "a mistyped one": [(bearer, f"Bearer {text[:-1]}x")],
        "half of it": [(bearer, f"Bearer {text[:40]}")],
        "two headers": [(bearer, f"Bearer {text}"), (bearer, f"Bearer {text}")],
        "another scheme": [(bearer, f"Basic {text}")],
        "no scheme": [(bearer, text)],
        "nothing after it": [(bearer, "Bearer ")],
        "a JWT, where no provider is": [(bearer, "Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiJ4In0.")],
        "two in one": [(bearer, f"Bearer {text} {text}")],
        "a comma": [(bearer, f"Bearer {text},{text}")],
    }


KINDS = list(_spoiled(make_token("tok_a", bytes(32))))


@pytest.mark.parametrize("kind", KINDS)
def test_a_spoiled_token_lets_nobody_in_and_is_written_down(deployed: Deployment, kind: str):
    text = deployed.people["acme-admin"].text
    nobody = deployed.client()
    answer = nobody.get(T, headers=_spoiled(text)[kind])
    assert answer.status_code == 401
    assert answer.json()["code"] in ("token.invalid", "token.malformed")
    assert text[10:] not in answer.text
    (denied,) = denials(deployed)
    assert (denied["stream"], denied["details"]["code"]) == ("platform", answer.json()["code"])
    assert nobody.get(T, headers={"Authorization": f"Bearer {text}"}).status_code == 200
    assert nobody.get(T, headers={"Authorization": f"bearer {text}"}).status_code == 200


def test_somebody_shut_out_is_out_at_once(deployed: Deployment):
    member = deployed.client("acme-member")
    assert member.get(T).status_code == 200
    deployed.client("acme-admin").delete(f"{T}/users/acme-member")
    assert member.get(T).json()["code"] == "token.invalid"


def test_a_flood_of_denials_is_counted(deployed: Deployment):
    nobody = deployed.client()
    for _ in range(40):
        assert nobody.get("/v1/hosts").status_code == 401
    assert len(denials(deployed)) == 30
    deployed.clock.now_ms += 60_000
    nobody.get("/v1/hosts")
    more = [each for each in denials(deployed) if each["kind"] == "access.denied_more"]
    assert [each["details"]["count"] for each in more] == [10]


@dataclass(frozen=True)
class _Vouched:
    issuer: str
    subject: str


class _Provider:
    """Vouches for whoever shows the right word."""

    def verify(self, token: str) -> _Vouched:
        if not token.startswith("good."):
            raise UnauthenticatedError("token.invalid", "the token is not valid")
        return _Vouched("https://id.example", token.removeprefix("good."))


def test_whom_a_provider_vouches_for_comes_in(deployed: Deployment):
    with deployed.store.unit_of_work(CONTROLLER) as tx:
        wanted = NewPrincipal("alice", "user", ("member",), "https://id.example", "alice-1")
        people.create(tx, deployed.tenants["acme"], wanted)
    app = app_over(deployed.control, _Provider())
    client = TestClient(app)

    def ask(token: str, path: str = T):
        return client.get(path, headers={"Authorization": f"Bearer {token}"})

    assert ask("good.alice-1", "/v1/whoami").json()["name"] == "alice"
    assert ask("good.alice-1").status_code == 200
    assert ask("good.alice-1", "/v1/tenants/globex").status_code == 404
    assert ask("good.bob-1").json()["code"] == "token.invalid"
    assert ask("bad.alice-1").json()["code"] == "token.invalid"
    assert ask(deployed.people["acme-member"].text).status_code == 200


def test_a_body_is_counted_in_bytes_whatever_its_headers_say(deployed: Deployment):
    member = deployed.client("acme-member")
    frame = len('{"x":""}')

    def chunks(size: int):
        yield b'{"x":"'
        for _ in range(8):
            yield b"y" * ((size - frame) // 8)
        yield b"y" * ((size - frame) % 8)
        yield b'"}'

    def chunked(size: int):
        return member.post(f"{T}/volumes", content=chunks(size), headers={**JSON, **key()})

    assert chunked(MAX_BODY_BYTES).status_code == 422
    refused = chunked(MAX_BODY_BYTES + 1)
    assert (refused.status_code, refused.json()["code"]) == (413, "body.too_large")
    assert refused.headers["content-type"] == "application/problem+json"
    whole = member.post(f"{T}/volumes", content=b"y" * (MAX_BODY_BYTES + 1), headers={**JSON, **key()})
    assert whole.json()["code"] == "body.too_large"


@pytest.mark.parametrize(
    ("content", "headers", "status", "code"),
    [
        (b"{", JSON, 400, "body.unreadable"),
        (b"", JSON, 422, "body.invalid"),
        (b'{"name": "\xff"}', JSON, 400, "body.unreadable"),
        (b"[" * 100_000, JSON, 400, "body.unreadable"),
        (b'{"name": "data", "size_gib": NaN}', JSON, 422, "field.invalid"),
        (b'{"name": "data", "size_gib": 1e400}', JSON, 422, "field.invalid"),
        (b'{"name": "data", "size_gib": ' + b"9" * 5000 + b"}", JSON, 400, "body.unreadable"),
        (b'{"name": "\\ud800", "size_gib": 1}', JSON, 422, "field.invalid"),
        (b'{"name": "data", "size_gib": 1, "\\ud800": 1}', JSON, 422, "body.invalid"),
        (b'{"name": "data", "size_gib": 1}', {"Content-Type": "text/plain"}, 422, "body.invalid"),
        (b'{"name": "data", "size_gib": 1}', {}, 422, "body.invalid"),
        (b"name=data&size_gib=1", {"Content-Type": "application/x-www-form-urlencoded"}, 422, "body.invalid"),
        (b"null", JSON, 422, "body.invalid"),
    ],
)
def test_what_is_no_json_object(deployed: Deployment, content: bytes, headers: dict, status: int, code: str):
    answer = deployed.client("acme-member").post(
        f"{T}/volumes", content=content, headers={**headers, **key()}
    )
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text


def test_a_request_has_an_id_its_own_or_a_new_one(deployed: Deployment):
    member = deployed.client("acme-member")
    own = {"X-Request-Id": "build-4711"}
    begun = member.post(f"{T}/instances", json=VM, headers={**key(), **own})
    assert begun.headers["x-request-id"] == "build-4711"
    assert begun.json()["request_id"] == "build-4711"
    assert [each["request_id"] for each in records(deployed.store) if each["kind"] == "instance.create"] == [
        "build-4711"
    ]
    for bad in ("short", "x" * 65, "with blanks", "läng-genug-id"):
        answer = member.get(T, headers={"X-Request-Id": bad.encode("latin-1")})
        assert re.fullmatch(r"[0-9a-f]{32}", answer.headers["x-request-id"])


def test_every_answer_has_its_headers(deployed: Deployment):
    for answer in (
        deployed.client("acme-member").get(T),
        deployed.client().get(T),
        deployed.client().get("/nowhere"),
        deployed.client().get("/livez"),
    ):
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["content-security-policy"].startswith("default-src 'none'")
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["strict-transport-security"]
        assert "server" not in answer.headers


def test_a_wrong_method_says_which_are_right(deployed: Deployment):
    answer = deployed.client("acme-member").delete(f"{T}/quota")
    assert (answer.status_code, answer.json()["code"]) == (405, "route.method")
    # All that the address takes, not only what its first route does: RFC 9110 §15.5.6.
    assert answer.headers["allow"] == "GET, PUT"
    assert deployed.client().put("/livez").headers["allow"] == "GET"


@pytest.mark.parametrize("shown", [None, "Basic YTpi", "Bearer", "Bearer a b"])
def test_who_shows_no_token_is_not_told_what_else_is_wrong(deployed: Deployment, shown: str | None):
    headers = {} if shown is None else {"Authorization": shown}
    for method, path, sent in (
        ("GET", "/v1/hosts?page_size=none", {}),
        ("POST", "/v1/hosts?dry_run=maybe", {"json": {"name": 7}, "headers": {"Idempotency-Key": "a b"}}),
        ("PUT", "/v1/tenants/acme/quota", {"json": {"limits": []}}),
    ):
        more = {**headers, **sent.pop("headers", {})}
        answer = deployed.client().request(method, path, headers=more, **sent)
        assert answer.status_code == 401, answer.text
        assert answer.json()["code"] == ("token.missing" if shown is None else "token.malformed")
        assert "errors" not in answer.json()
        assert denials(deployed)[-1]["details"]["code"] == answer.json()["code"]
        deployed.clock.now_ms += 60_000
    known = deployed.client("operator").get("/v1/hosts?page_size=none")
    assert (known.status_code, known.json()["code"]) == (422, "field.invalid")


def test_what_nobody_foresaw_tells_its_id_and_nothing_else(deployed: Deployment, monkeypatch):
    def broken(*_arguments, **_more):
        raise RuntimeError("the secret is hunter2")

    monkeypatch.setattr(people, "page", broken)
    with structlog.testing.capture_logs() as told:
        answer = deployed.client("acme-admin").get(f"{T}/users")
    assert answer.status_code == 500
    assert answer.json() == {
        "type": "urn:bulkhead:problem:internal",
        "title": "Internal Server Error",
        "status": 500,
        "code": "internal",
        "detail": "something went wrong here that nobody foresaw",
        "retryable": False,
        "request_id": answer.headers["x-request-id"],
        "hint": "tell an operator the request's id; the log says more",
    }
    assert answer.headers["x-content-type-options"] == "nosniff"
    failed = [each for each in told if each["event"] == "request.failed"]
    assert [each["request_id"] for each in failed] == [answer.headers["x-request-id"]]


def test_the_log_has_one_line_for_each_request_and_no_secret(deployed: Deployment):
    with structlog.testing.capture_logs() as told:
        member = deployed.client("acme-member")
        made = member.post(f"{T}/tokens", json={"name": "ci", "scopes": ["read"]}, headers=key()).json()
        member.post(f"{T}/instances", json={**VM, "user_data": "password: hunter2"}, headers=key())
        member.get(f"{T}/volumes/hunter2")
    assert [each["operation"] for each in told] == ["create_token", "create_instance", "get_volume"]
    assert [each["status"] for each in told] == [201, 202, 404]
    whole = str(told)
    assert "hunter2" not in whole
    assert made["token"] not in whole
    assert deployed.people["acme-member"].text not in whole


def test_a_refused_statement_never_shows_its_parameters(deployed: Deployment):
    """Errors of the database end in the log, and what was to be written may be a secret's hash."""
    member = deployed.people["acme-member"]
    with pytest.raises(IntegrityError) as refused, deployed.store.unit_of_work(CONTROLLER) as tx:
        tx.add(
            TokenRow,
            key_id=member.key_id,
            principal_id=member.who.id,
            name="again",
            scopes=[],
            secret_hash=b"hunter2",
            created_ms=1,
            expires_ms=1,
        )
    assert "hunter2" not in str(refused.value)


def test_a_database_that_does_not_answer_is_told_as_such(deployed: Deployment):
    with deployed.store.database.engine.begin() as connection:
        connection.execute(text("ALTER TABLE principal RENAME TO elsewhere"))
    answer = deployed.client("acme-member").get(T)
    assert (answer.status_code, answer.json()["code"]) == (503, "store.unavailable")
    assert answer.headers["Retry-After"] == "5"
    assert answer.json()["retryable"] is True
    assert "principal" not in answer.text
