"""What a create costs, and that it stays exact when many come at once; on both databases."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from sqlalchemy import event

from orchestrator.controller.rates import Rate
from tests.api.deployment import PLENTY, Deployment, deploy, key
from tests.api.rows import records, rows

T = "/v1/tenants/acme"
WANTED = {"name": "train", "type": "small", "image": "debian", "networks": ["lan"]}


@contextmanager
def counted(deployed: Deployment) -> Iterator[Counter[str]]:
    """Statements and commits of the writing engine."""
    found: Counter[str] = Counter()
    engine = deployed.store.database.engine

    def statement(_connection, _cursor, words, _parameters, _context, _many):
        if not words.startswith("BEGIN"):
            found["statements"] += 1

    def commit(_connection):
        found["commits"] += 1

    event.listen(engine, "before_cursor_execute", statement)
    event.listen(engine, "commit", commit)
    yield found
    event.remove(engine, "before_cursor_execute", statement)
    event.remove(engine, "commit", commit)


def test_an_accepted_create_is_one_commit_of_twelve_statements_at_most(deployed_on_both: Deployment):
    member = deployed_on_both.client("acme-member")
    # The first call of a token also reads what is left of its rate; each later one knows.
    member.post(f"{T}/networks", json={"name": "lan", "cidr": "10.0.0.0/24"}, headers=key())
    with counted(deployed_on_both) as found:
        assert member.post(f"{T}/instances", json=WANTED, headers=key()).status_code == 202
    assert found["commits"] == 1
    assert 8 <= found["statements"] <= 12


def test_the_counter_counts(deployed_on_both: Deployment):
    member = deployed_on_both.client("acme-member")
    with counted(deployed_on_both) as found:
        member.post(f"{T}/networks", json={"name": "lan", "cidr": "10.0.0.0/24"}, headers=key())
        member.post(f"{T}/networks", json={"name": "wan", "cidr": "10.0.0.0/24"}, headers=key())
    assert found["commits"] == 2
    assert found["statements"] > 12


def test_one_key_sent_twenty_times_at_once_makes_one(deployed_on_both: Deployment):
    once = {"Idempotency-Key": "the-same"}

    def send(_number: int):
        client = deployed_on_both.client("acme-member")
        return client.post(f"{T}/instances", json={**WANTED, "networks": []}, headers=once)

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(send, range(20)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert len({answer.headers["Location"] for answer in answers}) == 1
    member = deployed_on_both.client("acme-member")
    assert len(member.get(f"{T}/instances").json()["items"]) == 1
    assert member.get(f"{T}/quota").json()["used"]["instances"] == 1
    kinds = Counter(each["kind"] for each in records(deployed_on_both.store))
    assert kinds["instance.create"] == 1
    other = member.post(f"{T}/instances", json={**WANTED, "networks": [], "name": "other"}, headers=once)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency.key_reused")


def test_a_key_is_its_users_and_its_paths_alone(deployed_on_both: Deployment):
    once = {"Idempotency-Key": "the-same"}
    bare = {**WANTED, "networks": []}
    answers = [
        deployed_on_both.client(who).post(f"/v1/tenants/{tenant}/instances", json=body, headers=once)
        for who, tenant, body in (
            ("acme-member", "acme", bare),
            ("acme-admin", "acme", {**bare, "name": "second"}),
            ("globex-member", "globex", bare),
        )
    ]
    assert [answer.status_code for answer in answers] == [202, 202, 202]
    assert len({answer.json()["id"] for answer in answers}) == 3
    member = deployed_on_both.client("acme-member")
    gone = member.delete(f"{T}/instances/train", headers={"Idempotency-Key": "gone"})
    assert gone.status_code == 202
    again = member.delete(f"{T}/instances/train", headers={"Idempotency-Key": "gone"})
    assert (again.status_code, again.json()["id"]) == (202, gone.json()["id"])
    another = member.delete(f"{T}/instances/second", headers={"Idempotency-Key": "gone"})
    assert another.json()["code"] == "idempotency.key_reused"


def test_thirty_creates_at_once_never_exceed_the_quota(deployed_on_both: Deployment):
    operator = deployed_on_both.client("operator")
    limits = {"instances": 7, "vcpus": 7, "gpus": 7, "memory_mib": 7 * 256, "volumes": 7, "disk_gib": 7}
    set_ = operator.put(f"{T}/quota", json={"limits": limits}, headers={"If-Match": "*"})
    assert set_.json()["limits"] == {**PLENTY, **limits}
    deployed_on_both.client("acme-member").post(
        f"{T}/networks", json={"name": "lan", "cidr": "10.0.0.0/24"}, headers=key()
    )

    def send(number: int):
        client = deployed_on_both.client("acme-member")
        return client.post(f"{T}/instances", json={**WANTED, "name": f"vm-{number}"}, headers=key())

    with ThreadPoolExecutor(30) as pool:
        answers = list(pool.map(send, range(30)))
    counts = Counter((answer.status_code, answer.json().get("code")) for answer in answers)
    assert counts == {(202, None): 7, (409, "quota.exceeded"): 23}
    member = deployed_on_both.client("acme-member")
    used = member.get(f"{T}/quota").json()["used"]
    assert used == {**limits, "networks": 1}
    items = member.get(f"{T}/instances").json()["items"]
    assert len(items) == 7
    assert len({each["ports"][0]["address"] for each in items}) == 7
    # Whoever was refused left nothing behind.
    assert len(rows(deployed_on_both.store)["operation"]) == 7
    assert len(rows(deployed_on_both.store)["port"]) == 7


def test_more_callers_at_once_than_connections(store):
    """Each call holds one connection: with two for each, all would wait for ever on PostgreSQL."""
    deployed = deploy(store, rate=Rate(per_s=1_000_000, burst=1_000_000))
    for number in range(40):
        deployed.second_token(f"t{number}", "acme-member")

    def send(number: int):
        return deployed.client(f"t{number}").get(f"{T}/instances").status_code

    with ThreadPoolExecutor(40) as pool:
        assert set(pool.map(send, range(40))) == {200}


def test_a_rate_is_kept_for_token_and_tenant(store):
    many = 3
    deployed = deploy(store, rate=Rate(per_s=1, burst=many))
    member = deployed.client("acme-member")
    statuses = [member.get(f"{T}/instances").status_code for _ in range(many + 1)]
    assert statuses == [200] * many + [429]
    limited = member.get(f"{T}/instances")
    assert (limited.json()["code"], limited.headers["Retry-After"]) == ("rate.limited", "1")
    assert limited.json()["retryable"] is True
    # Another token of the same tenant: its own bucket is full, the tenant's is not.
    assert deployed.client("acme-admin").get(f"{T}/instances").status_code == 429
    assert deployed.client("globex-member").get("/v1/tenants/globex/instances").status_code == 200
    deployed.clock.now_ms += 1000
    assert member.get(f"{T}/instances").status_code == 200
