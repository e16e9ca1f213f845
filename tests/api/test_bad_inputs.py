"""Bad inputs as a table: each is refused whole, with its code and field, and changes no row."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from orchestrator.store.engine import Database
from orchestrator.store.store import Store
from tests.api.deployment import Deployment, deploy, key
from tests.api.rows import heads, records, rows

T = "/v1/tenants/acme"
VM = {"name": "train", "type": "small", "image": "debian"}
TYPE = {"name": "big", "vcpus": 2, "memory_mib": 512, "disk_gib": 1}
IMAGE = {"name": "own", "digest": "sha256:" + "2" * 64, "size_bytes": 4096}
USER = {"name": "eve", "roles": ["member"]}
TOKEN = {"name": "ci", "scopes": ["read"]}
NETWORK = {"name": "wan", "cidr": "10.1.0.0/24"}
VOLUME = {"name": "data", "size_gib": 1}
HOST = {"name": "node2", "disk_gib": 1}
INVALID, MISSING, UNKNOWN = "field.invalid", "field.missing", "field.unknown"
GONE = object()


@dataclass(frozen=True)
class Bad:
    """One call: what is sent, and what must come of it."""

    name: str
    method: str
    path: str
    body: Any
    status: int
    code: str
    field: str | None = None
    who: str = "acme-admin"
    headers: dict[str, str] | None = None


def post(path: str, good: dict[str, Any], change: dict[str, Any], code: str, where: str, **more: Any) -> Bad:
    body = {name: value for name, value in {**good, **change}.items() if value is not GONE}
    title = f"{path.rsplit('/', 1)[-1]} {json.dumps(change, default=lambda _: 'left out')[:60]}"
    return Bad(title, "POST", path, body, more.pop("status", 422), code, where, **more)


def names(path: str, good: dict[str, Any], **more: Any) -> list[Bad]:
    """What no name may be."""
    bad = ["", "A", "1a", "-a", "a-", "a_b", "a b", "a" * 64, "ä", "a\n", "a\x00", "../a", 5, None, ["a"]]
    return [post(path, good, {"name": each}, INVALID, "name", **more) for each in bad]


OPERATOR = {"who": "operator"}
CASES: list[Bad] = [
    *names(f"{T}/volumes", VOLUME),
    *[
        post(f"{T}/volumes", VOLUME, {"size_gib": each}, INVALID, "size_gib")
        for each in (0, -1, 1.5, "1", True, 2**20 + 1, 10**30, None, [])
    ],
    post(f"{T}/volumes", VOLUME, {"size_gib": GONE}, MISSING, "size_gib"),
    post(f"{T}/volumes", VOLUME, {"host_id": "hst_1"}, UNKNOWN, "host_id"),
    post(f"{T}/volumes", VOLUME, {"tenant_id": "ten_1"}, UNKNOWN, "tenant_id"),
    post(f"{T}/volumes", VOLUME, {"size_gib": 10**6}, "quota.exceeded", None, status=409),
    post(f"{T}/volumes", VOLUME, {"name": "taken"}, "volume.name_taken", "name", status=409),
    post(f"{T}/instances", VM, {"type": GONE}, MISSING, "type"),
    post(f"{T}/instances", VM, {"image": GONE}, MISSING, "image"),
    post(f"{T}/instances", VM, {"type": "huge"}, "instance_type.unknown", None, status=404),
    post(f"{T}/instances", VM, {"image": "plan9"}, "image.unknown", None, status=404),
    post(f"{T}/instances", VM, {"networks": ["none"]}, "network.unknown", None, status=404),
    post(f"{T}/instances", VM, {"networks": ["lan", "lan"]}, "instance.network_twice", "networks"),
    post(f"{T}/instances", VM, {"networks": "lan"}, INVALID, "networks"),
    post(f"{T}/instances", VM, {"networks": ["lan"] * 9}, INVALID, "networks"),
    post(f"{T}/instances", VM, {"networks": ["lan", "L"]}, INVALID, "networks[1]"),
    post(f"{T}/instances", VM, {"volumes": ["none"]}, "volume.unknown", None, status=404),
    post(f"{T}/instances", VM, {"volumes": ["taken", "taken"]}, "instance.volume_twice", "volumes"),
    post(f"{T}/instances", VM, {"volumes": ["there-boot"]}, "volume.in_use", "volumes", status=409),
    post(f"{T}/instances", VM, {"volumes": "taken"}, INVALID, "volumes"),
    post(f"{T}/instances", VM, {"volumes": [f"v{each}" for each in range(32)]}, INVALID, "volumes"),
    post(f"{T}/instances", VM, {"volumes": ["taken", "V"]}, INVALID, "volumes[1]"),
    *[
        post(f"{T}/instances/there/actions/{verb}-volume", {"volume": "taken"}, change, code, where, **more)
        for verb in ("attach", "detach")
        for change, code, where, more in (
            ({"volume": GONE}, MISSING, "volume", {}),
            ({"volume": "A"}, INVALID, "volume", {}),
            ({"volume": None}, INVALID, "volume", {}),
            ({"device": "/dev/sdb"}, UNKNOWN, "device", {}),
            # It waits for a place; only what is stopped is changed.
            ({}, "instance.not_stopped", None, {"status": 409}),
        )
    ],
    post(
        f"{T}/instances/none/actions/attach-volume",
        {"volume": "taken"},
        {},
        "instance.unknown",
        None,
        status=404,
    ),
    Bad("deleting a boot volume", "DELETE", f"{T}/volumes/there-boot", None, 409, "volume.in_use"),
    post(f"{T}/instances", VM, {"user_data": "x" * 65537}, INVALID, "user_data"),
    post(f"{T}/instances", VM, {"user_data": "a\x00b"}, INVALID, "user_data"),
    post(f"{T}/instances", VM, {"user_data": "\x1b[2J"}, INVALID, "user_data"),
    post(f"{T}/instances", VM, {"user_data": 5}, INVALID, "user_data"),
    post(f"{T}/instances", VM, {"on_no_capacity": "cry"}, INVALID, "on_no_capacity"),
    post(f"{T}/instances", VM, {"vcpus": 64}, UNKNOWN, "vcpus"),
    post(f"{T}/instances", VM, {"state": "running"}, UNKNOWN, "state"),
    post(f"{T}/instances", VM, {"name": "there"}, "instance.name_taken", "name", status=409),
    post(f"{T}/instances", VM, {"name": "blocked"}, "volume.name_taken", "name", status=409),
    *[
        post(f"{T}/networks", NETWORK, {"cidr": each}, code, "cidr")
        for each, code in (
            ("10.0.0.1/24", "network.cidr"),
            ("10.0.0.0/28", "network.cidr"),
            ("10.0.0.0/15", "network.cidr"),
            ("8.8.8.0/24", "network.cidr"),
            ("127.0.0.0/24", "network.cidr"),
            ("169.254.0.0/16", "network.cidr"),
            ("240.0.0.0/24", "network.cidr"),
            ("172.32.0.0/16", "network.cidr"),
            ("256.0.0.0/24", "network.cidr"),
            ("10.0.0.0/33", "network.cidr"),
            ("10.0.0.0", INVALID),
            ("fd00::/64", INVALID),
            ("10.0.0.0/24 ", INVALID),
            (None, INVALID),
        )
    ],
    post(f"{T}/networks", NETWORK, {"name": "lan"}, "network.name_taken", "name", status=409),
    post(f"{T}/networks", NETWORK, {"vlan": 5}, UNKNOWN, "vlan"),
    post(f"{T}/users", USER, {"roles": []}, INVALID, "roles"),
    post(f"{T}/users", USER, {"roles": ["operator"]}, INVALID, "roles[0]"),
    post(f"{T}/users", USER, {"roles": ["root"]}, INVALID, "roles[0]"),
    post(f"{T}/users", USER, {"roles": "member"}, INVALID, "roles"),
    post(f"{T}/users", USER, {"roles": ["member"] * 4}, INVALID, "roles"),
    post(f"{T}/users", USER, {"kind": "host"}, INVALID, "kind"),
    post(f"{T}/users", USER, {"subject": "x"}, "user.subject", "subject"),
    post(f"{T}/users", USER, {"issuer": "https://id.example"}, "user.subject", "subject"),
    post(f"{T}/users", USER, {"issuer": "a b", "subject": "x"}, INVALID, "issuer"),
    post(f"{T}/users", USER, {"issuer": "https://id.example", "subject": ""}, INVALID, "subject"),
    post(f"{T}/users", USER, {"name": "acme-member"}, "user.name_taken", "name", status=409),
    post(f"{T}/users", USER, {"disabled": False}, UNKNOWN, "disabled"),
    *[post(f"{T}/tokens", TOKEN, {"days": each}, INVALID, "days") for each in (0, -1, 367, 1.5, "9", None)],
    post(f"{T}/tokens", TOKEN, {"scopes": []}, INVALID, "scopes"),
    post(f"{T}/tokens", TOKEN, {"scopes": ["root"]}, INVALID, "scopes[0]"),
    post(f"{T}/tokens", TOKEN, {"user": "nobody"}, "user.unknown", None, status=404),
    post(f"{T}/tokens", TOKEN, {"user": "A"}, INVALID, "user"),
    post(f"{T}/tokens", TOKEN, {"token": "bh_x"}, UNKNOWN, "token"),
    *[
        post("/v1/instance-types", TYPE, change, INVALID, where, **OPERATOR)
        for change, where in (
            ({"vcpus": 0}, "vcpus"),
            ({"vcpus": 10**6}, "vcpus"),
            ({"memory_mib": 1}, "memory_mib"),
            ({"page_size_kib": 64}, "page_size_kib"),
            ({"threads_per_core": 4}, "threads_per_core"),
            ({"gpus": -1}, "gpus"),
            ({"gpus": 1000}, "gpus"),
            ({"gpus": 1, "gpu_model": "H100"}, "gpu_model"),
            ({"gpus": 1, "gpu_model": "10DE:2330"}, "gpu_model"),
            ({"disk_gib": 0}, "disk_gib"),
            ({"isolation": "hope"}, "isolation"),
        )
    ],
    post(
        "/v1/instance-types",
        TYPE,
        {"vcpus": 3, "threads_per_core": 2},
        "instance_type.half_core",
        "vcpus",
        **OPERATOR,
    ),
    post(
        "/v1/instance-types",
        TYPE,
        {"memory_mib": 513},
        "instance_type.broken_page",
        "memory_mib",
        **OPERATOR,
    ),
    post(
        "/v1/instance-types",
        TYPE,
        {"gpu_model": "10de:2330"},
        "instance_type.no_gpu",
        "gpu_model",
        **OPERATOR,
    ),
    post(
        "/v1/instance-types",
        TYPE,
        {"name": "small"},
        "instance_type.name_taken",
        "name",
        status=409,
        **OPERATOR,
    ),
    *[
        post("/v1/images", IMAGE, change, INVALID, where, **OPERATOR)
        for change, where in (
            ({"digest": "sha256:" + "G" * 64}, "digest"),
            ({"digest": "md5:" + "0" * 32}, "digest"),
            ({"digest": "sha256:" + "2" * 64 + "\n"}, "digest"),
            ({"size_bytes": 511}, "size_bytes"),
            ({"size_bytes": 2**50}, "size_bytes"),
            ({"firmware": "coreboot"}, "firmware"),
            ({"tenant": "A"}, "tenant"),
        )
    ],
    post("/v1/images", IMAGE, {"tenant": "nobody"}, "tenant.unknown", None, status=404, **OPERATOR),
    post("/v1/images", IMAGE, {"name": "debian"}, "image.name_taken", "name", status=409, **OPERATOR),
    post("/v1/hosts", HOST, {"disk_gib": -1}, INVALID, "disk_gib", **OPERATOR),
    post("/v1/hosts", HOST, {"disk_gib": 10**6 + 1}, INVALID, "disk_gib", **OPERATOR),
    post("/v1/hosts", HOST, {"name": "node1"}, "host.name_taken", "name", status=409, **OPERATOR),
    post("/v1/hosts", HOST, {"state": "ready"}, UNKNOWN, "state", **OPERATOR),
    *[
        Bad(f"reason {each!r:.20}", "POST", path, body, 422, code, "reason", "operator")
        for path in ("/v1/hosts/node1/actions/cordon", "/v1/gpus/gpu_1/actions/quarantine")
        for each, body, code in (
            ("left out", {}, MISSING),
            ("", {"reason": ""}, INVALID),
            ("blank", {"reason": "   "}, INVALID),
            ("two lines", {"reason": "a\nb"}, INVALID),
            ("long", {"reason": "x" * 401}, INVALID),
            ("number", {"reason": 1}, INVALID),
        )
    ],
    post("/v1/tenants", {"name": "new"}, {"limits": {"gpus": -1}}, INVALID, "limits.gpus", **OPERATOR),
    post("/v1/tenants", {"name": "new"}, {"limits": {"gpus": 10**10}}, INVALID, "limits.gpus", **OPERATOR),
    post("/v1/tenants", {"name": "new"}, {"limits": {"cats": 1}}, UNKNOWN, "limits.cats", **OPERATOR),
    post("/v1/tenants", {"name": "acme"}, {}, "tenant.name_taken", "name", status=409, **OPERATOR),
    post("/v1/operators", {"name": "bob"}, {"roles": ["member"]}, INVALID, "roles[0]", **OPERATOR),
    post(
        "/v1/operators",
        {"name": "operator", "roles": ["operator"]},
        {},
        "user.name_taken",
        "name",
        status=409,
        **OPERATOR,
    ),
    Bad(
        "quota, nothing named", "PUT", f"{T}/quota", {"limits": {}}, 422, "quota.empty", "limits", "operator"
    ),
    Bad(
        "quota, null",
        "PUT",
        f"{T}/quota",
        {"limits": {"gpus": None}},
        422,
        INVALID,
        "limits.gpus",
        "operator",
    ),
    Bad("quota, no body", "PUT", f"{T}/quota", None, 422, "body.invalid", None, "operator"),
    Bad(
        "quota, no version",
        "PUT",
        f"{T}/quota",
        {"limits": {"gpus": 1}},
        428,
        "if_match.missing",
        "If-Match",
        "operator",
    ),
    *[
        Bad(
            f"quota, version {each}",
            "PUT",
            f"{T}/quota",
            {"limits": {"gpus": 1}},
            status,
            code,
            where,
            "operator",
            {"If-Match": each},
        )
        for each, status, code, where in (
            ('"77"', 412, "if_match.stale", None),
            ('W/"1"', 412, "if_match.stale", None),
            ("1", 400, "if_match.malformed", "If-Match"),
            ('"1', 400, "if_match.malformed", "If-Match"),
            ('"1",', 400, "if_match.malformed", "If-Match"),
        )
    ],
    *[
        Bad(f"a list asked {query}", "GET", f"{T}/volumes?{query}", None, 422, code, where)
        for query, code, where in (
            ("page_size=0", INVALID, "page_size"),
            ("page_size=1001", INVALID, "page_size"),
            ("page_size=ten", INVALID, "page_size"),
            ("page_token=!", "page.token", "page_token"),
            ("page_token=ZZZZ", "page.token", "page_token"),
            ("page_token=" + "A" * 101, INVALID, "page_token"),
            ("order=random", INVALID, "order"),
            ("colour=red", UNKNOWN, "colour"),
            ("State=available", UNKNOWN, "State"),
            ("state=free", INVALID, "state"),
            ("state=", INVALID, "state"),
            ("instance=A", INVALID, "instance"),
            ("dry_run=true", UNKNOWN, "dry_run"),
        )
    ],
    *[
        Bad(f"{path} asked {query}", "GET", f"{path}?{query}", None, status, code, where, who)
        for path, query, status, code, where, who in (
            (f"{T}/volumes", "instance=none", 404, "instance.unknown", None, "acme-admin"),
            (f"{T}/instances", "state=gone", 422, INVALID, "state", "acme-admin"),
            (f"{T}/instances", "type=A", 422, INVALID, "type", "acme-admin"),
            (f"{T}/instances", "host=node1", 403, "host.hidden", "host", "acme-admin"),
            (f"{T}/instances", "host=none", 404, "host.unknown", None, "operator"),
            (f"{T}/instances", "name_prefix=%25", 422, INVALID, "name_prefix", "acme-admin"),
            (f"{T}/instances", "name_prefix=a_", 422, INVALID, "name_prefix", "acme-admin"),
            (f"{T}/instances", "name=there", 422, UNKNOWN, "name", "acme-admin"),
            (f"{T}/instances/there", "wide=1", 422, UNKNOWN, "wide", "acme-admin"),
            (f"{T}/operations", "state=over", 422, INVALID, "state", "acme-admin"),
            (f"{T}/operations", "kind=instance", 422, "operation.kind", "kind", "acme-admin"),
            (f"{T}/operations", "kind=instance.explode", 422, "operation.kind", "kind", "acme-admin"),
            (f"{T}/operations", "subject=A", 422, INVALID, "subject", "acme-admin"),
            (f"{T}/requests", "state=late", 422, INVALID, "state", "acme-admin"),
            (f"{T}/events", "kind=A", 422, INVALID, "kind", "acme-admin"),
            (f"{T}/events", "since=now", 422, UNKNOWN, "since", "acme-admin"),
            ("/v1/hosts", "state=tired", 422, INVALID, "state", "operator"),
            ("/v1/gpus", "state=new", 422, INVALID, "state", "operator"),
            ("/v1/gpus", "model=H100", 422, INVALID, "model", "operator"),
            ("/v1/gpus", "host=none", 404, "host.unknown", None, "operator"),
            ("/v1/operations", "kind=host.explode", 422, "operation.kind", "kind", "operator"),
        )
    ],
    *[
        Bad(f"an export asked {query}", "GET", f"{T}/audit?{query}", None, 422, code, where)
        for query, code, where in (
            ("from=yesterday", "audit.time", "from"),
            ("from=2027-01-01T00:00:00", "audit.time", "from"),
            ("until=9999-99-99T00:00:00Z", "audit.time", "until"),
            ("outcome=great", INVALID, "outcome"),
            ("kind=A", INVALID, "kind"),
        )
    ],
    *[
        Bad(f"a wait of {each}", "GET", f"{T}/operations/op_1?wait={each}", None, 422, code, "wait")
        for each, code in (("61s", "wait.invalid"), ("-1", "wait.invalid"), ("1m", "wait.invalid"))
    ],
    *[
        Bad(
            f"events after {each}", "GET", f"{T}/events", None, status, code, "Last-Event-ID", headers=headers
        )
        for each, status, code, headers in (
            ("words", 422, "event.position", {"Last-Event-ID": "words"}),
            ("another's", 409, "event.other_stream", {"Last-Event-ID": "platform:1"}),
        )
    ],
    *[
        Bad(
            f"key {each!r:.20}", "POST", f"{T}/volumes", VOLUME, status, code, "Idempotency-Key", headers=sent
        )
        for each, status, code, sent in (
            ("left out", 400, "idempotency.missing", {"Idempotency-Key": ""}),
            ("with blanks", 422, "idempotency.key", {"Idempotency-Key": "a b"}),
            ("long", 422, "idempotency.key", {"Idempotency-Key": "k" * 129}),
        )
    ],
    Bad("no such route", "GET", "/v1/unicorns", None, 404, "route.unknown"),
    Bad("a path with a slash more", "GET", f"{T}/volumes/", None, 404, "route.unknown"),
    Bad("no such method", "PATCH", f"{T}/volumes", VOLUME, 405, "route.method"),
    Bad("a tenant with capitals", "GET", "/v1/tenants/ACME", None, 422, INVALID, "tenant"),
    Bad("a volume named as no name is", "GET", f"{T}/volumes/%00", None, 422, INVALID, "volume"),
    Bad("a volume that is none", "GET", f"{T}/volumes/none", None, 404, "volume.unknown"),
    Bad("an operation by a name", "GET", f"{T}/operations/first", None, 404, "operation.unknown"),
    Bad("a list as a body", "POST", f"{T}/volumes", [VOLUME], 422, "body.invalid"),
    Bad("a word as a body", "POST", f"{T}/volumes", "volume", 422, "body.invalid"),
]


@pytest.fixture(scope="module")
def place(sqlite_template, tmp_path_factory) -> Iterator[Deployment]:
    """One for all: nothing bad may change it, which each case checks."""
    path = tmp_path_factory.mktemp("bad") / "bulkhead.db"
    path.write_bytes(sqlite_template.read_bytes())
    database = Database(f"sqlite:///{path}")
    made = deploy(Store(database))
    member = made.client("acme-member")
    member.post(f"{T}/networks", json={"name": "lan", "cidr": "10.0.0.0/24"}, headers=key())
    for volume in ("taken", "blocked-boot"):
        member.post(f"{T}/volumes", json={"name": volume, "size_gib": 1}, headers=key())
    assert member.post(f"{T}/instances", json={**VM, "name": "there"}, headers=key()).status_code == 202
    yield made
    database.dispose()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input(place: Deployment, case: Bad):
    place.clock.now_ms += 60_000
    before, told = rows(place.store), heads(place.store)
    headers = {**key(), **(case.headers or {})}
    if headers["Idempotency-Key"] == "":
        del headers["Idempotency-Key"]
    answer = place.client(case.who).request(
        case.method,
        case.path,
        content=None if case.body is None else json.dumps(case.body),
        headers=_json(headers),
    )
    found = answer.json()
    assert (answer.status_code, found["code"], found.get("field")) == (case.status, case.code, case.field), (
        found
    )
    assert answer.headers["content-type"] == "application/problem+json"
    assert found["request_id"] == answer.headers["x-request-id"]
    assert found["detail"]
    assert rows(place.store) == before
    # What is not there is written down, since it may have been somebody's, and what is not allowed; what is
    # wrong is not.
    denied = case.status == 403 or (case.code.endswith(".unknown") and _gated(case))
    assert len(records(place.store, after=told)) == (1 if denied else 0)


def _gated(case: Bad) -> bool:
    return not case.code.startswith(("route.", "field."))


def _json(headers: dict[str, str]) -> dict[str, str]:
    return {"Content-Type": "application/json", **headers}


def test_there_are_many():
    assert len(CASES) >= 150
    assert len({case.name for case in CASES}) >= 150
    assert len({case.code for case in CASES}) >= 40


def test_the_spoiled_bodies_are_good_ones(deployed: Deployment):
    """The comparison of rows can fail, and no case is refused for another reason than its own."""
    for path, body, who in (
        (f"{T}/volumes", VOLUME, "acme-admin"),
        (f"{T}/instances", VM, "acme-admin"),
        (f"{T}/networks", NETWORK, "acme-admin"),
        (f"{T}/users", USER, "acme-admin"),
        (f"{T}/tokens", TOKEN, "acme-admin"),
        ("/v1/instance-types", TYPE, "operator"),
        ("/v1/images", IMAGE, "operator"),
        ("/v1/hosts", HOST, "operator"),
    ):
        before = rows(deployed.store)
        answer = deployed.client(who).post(path, json=body, headers=key())
        assert answer.status_code in (201, 202), answer.text
        assert rows(deployed.store) != before


def test_several_faults_are_told_at_once(place: Deployment):
    answer = place.client("acme-admin").post(
        f"{T}/instances", json={"name": "A", "networks": ["L"], "x": 1}, headers=key()
    )
    found = {(each["field"], each["code"]) for each in answer.json()["errors"]}
    assert found == {
        ("name", INVALID),
        ("type", MISSING),
        ("image", MISSING),
        ("networks[0]", INVALID),
        ("x", UNKNOWN),
    }


def test_nothing_that_was_sent_comes_back(place: Deployment):
    secret = "hunter2-Hunter2"
    answer = place.client("acme-admin").post(
        f"{T}/instances",
        json={**VM, "name": secret, "user_data": f"{secret}\x00", "on_no_capacity": secret},
        headers=key(),
    )
    assert answer.status_code == 422
    assert secret not in answer.text
