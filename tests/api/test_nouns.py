"""Every noun the happy way: made, listed, shown, changed, taken away, by those who may."""

from __future__ import annotations

import dataclasses
import json
import re

from sqlalchemy import func, select
from starlette.testclient import TestClient

from orchestrator.audit.export import verify_lines
from orchestrator.controller import deployment, doctor, evacuate, host_errors, hosts, strays
from orchestrator.model.actor import CONTROLLER
from orchestrator.model.doctor import Finding, Severity
from orchestrator.model.doctor_message import DoctorReport
from orchestrator.model.evidence import Status
from orchestrator.model.report import Stray
from orchestrator.store.tables.fleet import GpuRow, HostRow
from orchestrator.store.tables.keys import JoinTokenRow
from orchestrator.store.unit_of_work import table_of
from tests.api.deployment import Deployment, key

T = "/v1/tenants/acme"
INSTANCE = {"name": "train", "type": "small", "image": "debian"}


def test_whoami_says_who_asks_and_with_what(deployed: Deployment):
    found = deployed.client("acme-member").get("/v1/whoami").json()
    person = deployed.people["acme-member"]
    assert found == {
        "id": person.who.id,
        "kind": "user",
        "name": "acme-member",
        "tenant_id": deployed.tenants["acme"],
        "roles": ["member"],
        "scopes": ["admin", "audit", "read", "write"],
        "key_id": person.key_id,
    }


def test_tenants(deployed: Deployment):
    operator = deployed.client("operator")
    made = operator.post("/v1/tenants", json={"name": "initech", "limits": {"gpus": 4}}, headers=key())
    assert made.status_code == 201
    assert made.json()["name"] == "initech"
    assert made.json()["created_at"] == "2027-01-15T08:00:00.000Z"
    listed = {each["name"] for each in operator.get("/v1/tenants").json()["items"]}
    assert listed == {"acme", "globex", "initech"}
    shown = operator.get("/v1/tenants/initech")
    assert shown.json() == made.json()
    renamed = operator.put(
        "/v1/tenants/initech", json={"name": "initrode"}, headers={"If-Match": shown.headers["ETag"]}
    )
    assert renamed.json()["name"] == "initrode"
    assert renamed.headers["ETag"] != shown.headers["ETag"]
    assert operator.delete("/v1/tenants/initrode").status_code == 204
    assert operator.get("/v1/tenants/initrode").status_code == 404


def test_a_tenant_with_things_stays(deployed: Deployment):
    deployed.client("acme-member").post(f"{T}/volumes", json={"name": "data", "size_gib": 1}, headers=key())
    refused = deployed.client("operator").delete(T)
    assert (refused.status_code, refused.json()["code"]) == (409, "tenant.in_use")


def test_quota_is_set_by_version(deployed: Deployment):
    operator = deployed.client("operator")
    before = operator.get(f"{T}/quota")
    assert before.json()["limits"]["gpus"] == 50
    tag = {"If-Match": before.headers["ETag"]}
    after = operator.put(f"{T}/quota", json={"limits": {"gpus": 7}}, headers=tag)
    assert after.json()["limits"] == {**before.json()["limits"], "gpus": 7}
    stale = operator.put(f"{T}/quota", json={"limits": {"gpus": 8}}, headers=tag)
    assert (stale.status_code, stale.json()["code"]) == (412, "if_match.stale")
    missing = operator.put(f"{T}/quota", json={"limits": {"gpus": 8}})
    assert (missing.status_code, missing.json()["code"]) == (428, "if_match.missing")
    weak = operator.put(
        f"{T}/quota", json={"limits": {"gpus": 8}}, headers={"If-Match": f"W/{after.headers['ETag']}"}
    )
    assert weak.status_code == 412
    assert operator.get(f"{T}/quota").json() == after.json()


def test_quota_cannot_fall_below_use(deployed: Deployment):
    deployed.client("acme-member").post(f"{T}/volumes", json={"name": "data", "size_gib": 9}, headers=key())
    refused = deployed.client("operator").put(
        f"{T}/quota", json={"limits": {"disk_gib": 8}}, headers={"If-Match": "*"}
    )
    assert (refused.status_code, refused.json()["code"]) == (409, "quota.below_use")
    assert refused.json()["field"] == "disk_gib"


def test_users_and_roles(deployed: Deployment):
    admin = deployed.client("acme-admin")
    made = admin.post(f"{T}/users", json={"name": "eve", "roles": ["member"]}, headers=key())
    assert made.status_code == 201
    shown = admin.get(f"{T}/users/eve")
    assert shown.json() == made.json()
    changed = admin.put(
        f"{T}/users/eve/roles",
        json={"roles": ["auditor"]},
        headers={"If-Match": shown.headers["ETag"]},
    )
    assert changed.json()["roles"] == ["auditor"]
    stale = admin.put(
        f"{T}/users/eve/roles", json={"roles": ["member"]}, headers={"If-Match": shown.headers["ETag"]}
    )
    assert stale.status_code == 412
    assert "eve" in [each["name"] for each in admin.get(f"{T}/users").json()["items"]]
    assert admin.delete(f"{T}/users/eve").status_code == 204
    assert admin.get(f"{T}/users/eve").status_code == 404
    assert admin.get(f"{T}/users/{made.json()['id']}").status_code == 404
    assert "eve" not in json.dumps(admin.get(f"{T}/users").json())


def test_a_token_works_until_it_is_stopped(deployed: Deployment):
    member = deployed.client("acme-member")
    wanted = {"name": "ci", "scopes": ["read"], "days": 3}
    made = member.post(f"{T}/tokens", json=wanted, headers=key())
    assert made.status_code == 201
    text, key_id = made.json()["token"], made.json()["key_id"]
    assert made.json()["expires_at"] == "2027-01-18T08:00:00.000Z"
    shown = {"Authorization": f"Bearer {text}"}
    assert deployed.client().get(f"{T}/instances", headers=shown).status_code == 200
    # Narrower than its maker's.
    refused = deployed.client().post(f"{T}/instances", json=INSTANCE, headers={**shown, **key()})
    assert refused.status_code == 403
    assert text not in member.get(f"{T}/tokens").text
    assert member.delete(f"{T}/tokens/{key_id}").status_code == 204
    stopped = deployed.client().get(f"{T}/instances", headers=shown)
    assert (stopped.status_code, stopped.json()["code"]) == (401, "token.invalid")


def test_a_repeated_call_for_a_token_never_shows_it_again(deployed: Deployment):
    member, once = deployed.client("acme-member"), key()
    wanted = {"name": "ci", "scopes": ["read"]}
    first = member.post(f"{T}/tokens", json=wanted, headers=once).json()
    again = member.post(f"{T}/tokens", json=wanted, headers=once).json()
    assert first["token"] is not None
    assert again == {**first, "token": None}


def test_no_token_gives_more_than_its_maker_has(deployed: Deployment):
    deployed.second_token("narrow", "acme-member", scopes=("admin", "read"))
    wanted = {"name": "wide", "scopes": ["read", "write"]}
    refused = deployed.client("narrow").post(f"{T}/tokens", json=wanted, headers=key())
    assert (refused.status_code, refused.json()["code"]) == (403, "token.scopes")
    wanted["scopes"] = ["read"]
    assert deployed.client("narrow").post(f"{T}/tokens", json=wanted, headers=key()).status_code == 201


def test_members_manage_their_own_tokens_only(deployed: Deployment):
    admins = deployed.people["acme-admin"].key_id
    member, admin = deployed.client("acme-member"), deployed.client("acme-admin")
    seen = {each["key_id"] for each in member.get(f"{T}/tokens").json()["items"]}
    assert seen == {deployed.people["acme-member"].key_id}
    assert admins in {each["key_id"] for each in admin.get(f"{T}/tokens").json()["items"]}
    assert member.delete(f"{T}/tokens/{admins}").status_code == 404
    wanted = {"name": "theirs", "scopes": ["read"], "user": "acme-admin"}
    assert member.post(f"{T}/tokens", json=wanted, headers=key()).status_code == 404
    wanted["user"] = "acme-member"
    assert admin.post(f"{T}/tokens", json=wanted, headers=key()).status_code == 201


def test_instance_types_and_images(deployed: Deployment):
    operator, member = deployed.client("operator"), deployed.client("acme-member")
    shape = {
        "name": "big",
        "vcpus": 4,
        "memory_mib": 4096,
        "gpus": 2,
        "gpu_model": "10de:2330",
        "disk_gib": 9,
    }
    made = operator.post("/v1/instance-types", json=shape, headers=key())
    assert made.status_code == 201
    assert member.get("/v1/instance-types/big").json() == made.json()
    assert {"big", "small"} == {each["name"] for each in member.get("/v1/instance-types").json()["items"]}
    assert operator.delete("/v1/instance-types/big").status_code == 204
    assert member.get("/v1/instance-types/big").status_code == 404
    image = {"name": "own", "digest": "sha256:" + "2" * 64, "size_bytes": 4096, "tenant": "acme"}
    own = operator.post("/v1/images", json=image, headers=key())
    assert own.status_code == 201
    assert member.get("/v1/images/own").json() == own.json()
    stranger = deployed.client("globex-member")
    assert stranger.get("/v1/images/own").status_code == 404
    assert "own" not in [each["name"] for each in stranger.get("/v1/images").json()["items"]]
    assert operator.delete("/v1/images/own").status_code == 204


def test_an_image_of_a_deleted_tenant_is_nobodys(deployed: Deployment):
    operator = deployed.client("operator")
    image = {"name": "own", "digest": "sha256:" + "2" * 64, "size_bytes": 4096, "tenant": "acme"}
    operator.post("/v1/images", json=image, headers=key())
    assert operator.delete(T).status_code == 204
    assert deployed.client("globex-member").get("/v1/images/own").status_code == 404


def test_networks(deployed: Deployment):
    member = deployed.client("acme-member")
    made = member.post(f"{T}/networks", json={"name": "lan", "cidr": "10.0.0.0/24"}, headers=key())
    assert made.status_code == 201
    assert made.json()["vlan"] is None
    assert member.get(f"{T}/networks").json() == {"items": [made.json()], "next_page_token": None}
    assert deployed.client("operator").get(f"{T}/networks/lan").json()["vlan"] == 100
    member.post(f"{T}/instances", json={**INSTANCE, "networks": ["lan"]}, headers=key())
    port = member.get(f"{T}/instances/train").json()["ports"][0]
    assert (port["network_id"], port["address"]) == (made.json()["id"], "10.0.0.10")
    in_use = member.delete(f"{T}/networks/lan")
    assert (in_use.status_code, in_use.json()["code"]) == (409, "network.in_use")
    member.delete(f"{T}/instances/train")
    assert member.delete(f"{T}/networks/lan").status_code == 204
    assert member.get(f"{T}/networks/lan").status_code == 404


def test_a_whole_number_may_be_spelled_with_a_point(deployed: Deployment):
    sent = '{"name": "data", "size_gib": 5.0}'
    headers = {**key(), "Content-Type": "application/json"}
    made = deployed.client("acme-member").post(f"{T}/volumes", content=sent, headers=headers)
    assert (made.status_code, made.json()["size_gib"]) == (201, 5)


def test_volumes(deployed: Deployment):
    member = deployed.client("acme-member")
    made = member.post(f"{T}/volumes", json={"name": "data", "size_gib": 5}, headers=key())
    assert made.status_code == 201
    assert member.get(f"{T}/volumes/data").json() == made.json()
    assert member.get(f"{T}/quota").json()["used"]["disk_gib"] == 5
    gone = member.delete(f"{T}/volumes/data")
    assert (gone.status_code, gone.json()["kind"]) == (202, "volume.delete")
    assert member.get(gone.headers["Location"]).json()["state"] == "succeeded"
    assert member.get(f"{T}/volumes/data").status_code == 404
    assert member.get(f"{T}/quota").json()["used"]["disk_gib"] == 0


def test_an_instance_is_accepted_waits_and_goes(deployed: Deployment):
    member = deployed.client("acme-member")
    begun = member.post(f"{T}/instances", json=INSTANCE, headers=key())
    assert begun.status_code == 202
    operation = begun.json()
    assert begun.headers["Location"] == f"/v1/tenants/{deployed.tenants['acme']}/operations/{operation['id']}"
    assert [step["state"] for step in operation["steps"]] == ["done", "running", "pending", "pending"]
    shown = member.get(f"{T}/instances/train").json()
    assert (shown["state"], shown["operation_id"], shown["host_id"]) == ("pending", operation["id"], None)
    assert member.get(f"{T}/instances/{shown['id']}").json() == shown
    waiting = member.get(f"{T}/requests").json()["items"]
    assert [(each["instance_id"], each["state"]) for each in waiting] == [(shown["id"], "waiting")]
    assert deployed.client("operator").get("/v1/requests").json()["items"] == waiting
    evidence = member.get(f"{T}/instances/train/evidence").json()
    assert (evidence["instance_id"], evidence["verdicts"]) == (shown["id"], None)
    for verb, code in (("start", "instance.not_stopped"), ("stop", "instance.not_running")):
        refused = member.post(f"{T}/instances/train/actions/{verb}")
        assert (refused.status_code, refused.json()["code"]) == (409, code)
    gone = member.delete(f"{T}/instances/train")
    assert gone.status_code == 202
    assert member.get(gone.headers["Location"]).json()["state"] == "succeeded"
    assert member.get(f"{T}/operations/{operation['id']}").json()["state"] == "cancelled"
    assert member.get(f"{T}/instances/train").status_code == 404
    assert set(member.get(f"{T}/quota").json()["used"].values()) == {0}


def test_an_operation_says_what_it_waits_for(deployed: Deployment):
    member = deployed.client("acme-member")
    first = member.post(f"{T}/instances", json={**INSTANCE, "name": "one"}, headers=key()).json()
    deployed.clock.now_ms += 1
    second = member.post(f"{T}/instances", json={**INSTANCE, "name": "two"}, headers=key()).json()
    operations = f"{T}/operations"
    told = member.get(f"{operations}/{second['id']}").json()
    assert told["waits"] == {"reason": None, "reason_at": None, "ahead": 1}
    assert [each["waits"]["ahead"] for each in member.get(operations).json()["items"]] == [0, 1]
    member.post(f"{operations}/{first['id']}/actions/cancel", headers=key())
    assert member.get(f"{operations}/{first['id']}").json()["waits"] is None
    assert member.get(f"{operations}/{second['id']}").json()["waits"]["ahead"] == 0


def test_a_wait_for_a_place_can_be_cancelled(deployed: Deployment):
    member = deployed.client("acme-member")
    begun = member.post(f"{T}/instances", json=INSTANCE, headers=key()).json()
    path = f"{T}/operations/{begun['id']}/actions/cancel"
    assert member.post(path).json()["state"] == "cancelled"
    assert member.get(f"{T}/requests").json()["items"][0]["state"] == "cancelled"
    shown = member.get(f"{T}/instances/train").json()
    assert (shown["state"], shown["error"]["code"]) == ("error", "operation.cancelled")
    again = member.post(path)
    assert (again.status_code, again.json()["code"]) == (409, "operation.over")
    assert member.delete(f"{T}/instances/train").status_code == 202
    assert member.get(f"{T}/quota").json()["used"]["instances"] == 0


OFF = {"reason": "gone", "powered_off": True}


def test_hosts(deployed: Deployment):
    operator, once = deployed.client("operator"), key()
    made = operator.post("/v1/hosts", json={"name": "node2", "disk_gib": 500}, headers=once)
    assert made.status_code == 201
    assert re.fullmatch(r"bhj_jt_[a-z0-9]+_[A-Za-z0-9_-]{43}_a{64}", made.json()["join_token"])
    again = operator.post("/v1/hosts", json={"name": "node2", "disk_gib": 500}, headers=once)
    assert (again.json()["id"], again.json()["join_token"]) == (made.json()["id"], None)
    assert made.json()["join_token"] not in operator.get("/v1/hosts/node2").text
    assert {each["name"] for each in operator.get("/v1/hosts").json()["items"]} == {"node1", "node2"}
    early = operator.post("/v1/hosts/node2/actions/cordon", json={"reason": "disk smells"})
    assert (early.status_code, early.json()["code"]) == (409, "host.state")
    with deployed.store.unit_of_work(CONTROLLER) as tx:
        tx.note(table_of(HostRow).update().values(state="ready"))
    cordoned = operator.post("/v1/hosts/node2/actions/cordon", json={"reason": "disk smells"})
    assert (cordoned.json()["state"], cordoned.json()["reason"]) == ("cordoned", "disk smells")
    back = operator.post("/v1/hosts/node2/actions/uncordon", json={"reason": "it was the coffee"})
    assert back.json()["state"] == "ready"
    unsafe = operator.post("/v1/hosts/node2/actions/fence", json=OFF)
    assert (unsafe.status_code, unsafe.json()["hint"]) == (409, "cordon it first")
    operator.post("/v1/hosts/node2/actions/cordon", json={"reason": "gone"})
    for body in ({"reason": "gone"}, {"reason": "gone", "powered_off": False}):
        unsure = operator.post("/v1/hosts/node2/actions/fence", json=body)
        assert (unsure.status_code, unsure.json()["errors"][0]["field"]) == (422, "powered_off")
    early = operator.post("/v1/hosts/node2/actions/evacuate", json={"reason": "it burnt"})
    assert (early.status_code, early.json()["code"]) == (409, "host.state")
    assert operator.post("/v1/hosts/node2/actions/fence", json=OFF).json()["state"] == "fenced"
    dry = operator.post("/v1/hosts/node2/actions/evacuate?dry_run=true", json={"reason": "it burnt"})
    assert (dry.status_code, dry.json()["kind"]) == (200, "host.evacuate")
    evacuated = operator.post("/v1/hosts/node2/actions/evacuate", json={"reason": "it burnt"})
    assert (evacuated.status_code, evacuated.json()["result"]) == (202, {"instances": [], "lost_volumes": []})
    assert operator.get(evacuated.headers["Location"]).json()["kind"] == "host.evacuate"
    shown = operator.get("/v1/hosts/node2").json()
    assert (shown["stale"], shown["evacuation_id"]) == ([], evacuated.json()["id"])
    away = operator.post("/v1/hosts/node2/actions/remove", json={"reason": "it burnt"})
    assert (away.status_code, away.json()["code"]) == (409, "host.evacuating")
    with deployed.store.unit_of_work(CONTROLLER) as tx:
        evacuate.turn(tx, shown["id"])
    gone = operator.post("/v1/hosts/node2/actions/remove", json={"reason": "it burnt"})
    assert (gone.status_code, gone.json()["state"]) == (200, "removed")
    assert operator.get("/v1/hosts/node2").status_code == 404
    assert operator.get(f"/v1/hosts/{shown['id']}").status_code == 404
    assert operator.post("/v1/hosts", json={"name": "node2", "disk_gib": 1}, headers=key()).status_code == 201


def test_join_tokens_and_revoking(deployed: Deployment):
    operator, once = deployed.client("operator"), key()
    path = "/v1/hosts/node1/actions"
    assert operator.post(f"{path}/join-token").status_code == 400
    made = operator.post(f"{path}/join-token", headers=once)
    assert (made.status_code, made.json()["join_token"][:7]) == (201, "bhj_jt_")
    again = operator.post(f"{path}/join-token", headers=once)
    assert (again.json()["host_id"], again.json()["join_token"]) == (made.json()["host_id"], None)
    with deployed.store.reading() as tx:
        ends = tx.scalar(select(func.max(table_of(JoinTokenRow).c.expires_ms)))
    assert ends > deployed.store.clock()
    assert operator.post(f"{path}/revoke", json={"reason": "it leaked"}).status_code == 200
    twice = operator.post(f"{path}/revoke", json={"reason": "it leaked"})
    assert (twice.status_code, twice.json()["code"]) == (409, "host.no_certificate")
    assert operator.get("/v1/hosts/node1").json()["certificate_expires_at"] is None


def test_gpus(deployed: Deployment):
    operator = deployed.client("operator")
    with deployed.store.unit_of_work(CONTROLLER) as tx:
        host = hosts.get(tx, "node1")
        tx.note(
            table_of(GpuRow)
            .insert()
            .values(
                id="gpu_1",
                host_id=host.id,
                address="0000:01:00.0",
                vendor="10de",
                device="2330",
                serial="",
                node=0,
                previous="verifying",
                state="clean",
                tenancy=0,
                reason="",
                generation=1,
                created_ms=1,
            )
        )
    assert [each["id"] for each in operator.get("/v1/gpus").json()["items"]] == ["gpu_1"]
    taken = operator.post("/v1/gpus/gpu_1/actions/quarantine", json={"reason": "ECC errors"})
    assert (taken.json()["state"], taken.json()["reason"]) == ("quarantined", "ECC errors")
    twice = operator.post("/v1/gpus/gpu_1/actions/quarantine", json={"reason": "ECC errors"})
    assert (twice.status_code, twice.json()["code"]) == (409, "gpu.quarantined")
    back = operator.post("/v1/gpus/gpu_1/actions/release", json={"reason": "was replaced"})
    assert back.json()["state"] == "clean"
    assert operator.get("/v1/gpus/gpu_1").json() == back.json()


def test_operators_and_their_tokens(deployed: Deployment):
    operator = deployed.client("operator")
    made = operator.post("/v1/operators", json={"name": "carol", "roles": ["operator"]}, headers=key())
    assert made.status_code == 201
    wanted = {"name": "laptop", "scopes": ["read"]}
    token = operator.post("/v1/operators/carol/tokens", json=wanted, headers=key()).json()
    shown = {"Authorization": f"Bearer {token['token']}"}
    assert deployed.client().get("/v1/hosts", headers=shown).status_code == 200
    listed = operator.get("/v1/operators/carol/tokens").json()["items"]
    assert [each["key_id"] for each in listed] == [token["key_id"]]
    names = {each["name"] for each in operator.get("/v1/operators").json()["items"]}
    assert names == {"operator", "platform-auditor", "carol"}
    assert operator.delete(f"/v1/operators/carol/tokens/{token['key_id']}").status_code == 204
    assert deployed.client().get("/v1/hosts", headers=shown).status_code == 401
    assert operator.delete("/v1/operators/carol").status_code == 204


def test_lists_come_in_pages(deployed: Deployment):
    member = deployed.client("acme-member")
    for number in range(5):
        deployed.clock.now_ms += number % 2
        member.post(f"{T}/volumes", json={"name": f"v{number}", "size_gib": 1}, headers=key())
    whole = member.get(f"{T}/volumes").json()["items"]
    found, token = [], ""
    for _ in range(3):
        page = member.get(f"{T}/volumes", params={"page_size": 2, **({"page_token": token} if token else {})})
        found += page.json()["items"]
        token = page.json()["next_page_token"]
    assert token is None
    assert found == whole
    assert {each["name"] for each in found} == {f"v{number}" for number in range(5)}


def test_an_export_verifies_and_stands_in_the_log_itself(deployed: Deployment):
    deployed.client("acme-member").post(f"{T}/instances", json=INSTANCE, headers=key())
    auditor = deployed.client("acme-auditor")
    answer = auditor.get(f"{T}/audit")
    assert answer.headers["content-type"] == "application/jsonl"
    lines = answer.text.splitlines()
    found = verify_lines(lines)
    assert (found.problems, found.complete, found.stream) == ((), True, deployed.tenants["acme"])
    assert found.records >= 5
    changed = [line.replace("instance.create", "instance.delete") for line in lines]
    assert verify_lines(changed).problems
    narrow = auditor.get(f"{T}/audit", params={"kind": "audit"}).text.splitlines()
    assert [json.loads(line)["event"]["stage"] for line in narrow[1:]] == ["read"]
    assert deployed.client("acme-member").get(f"{T}/audit").status_code == 403
    platform = deployed.client("platform-auditor").get("/v1/audit").text.splitlines()
    assert verify_lines(platform).complete


def test_a_dry_run_says_what_would_be_and_keeps_nothing(deployed: Deployment):
    member = deployed.client("acme-member")
    begun = member.post(f"{T}/instances?dry_run=true", json=INSTANCE, headers=key())
    assert (begun.status_code, begun.json()["kind"]) == (200, "instance.create")
    assert "Location" not in begun.headers
    assert member.get(f"{T}/instances").json()["items"] == []
    assert member.get(f"{T}/quota").json()["used"]["gpus"] == 0
    unknown = member.post(f"{T}/instances?dry_run=true", json={**INSTANCE, "image": "nix"}, headers=key())
    assert unknown.status_code == 404
    token = member.post(f"{T}/tokens?dry_run=true", json={"name": "x", "scopes": ["read"]}, headers=key())
    assert token.json()["token"] is None


def test_the_api_lives_is_ready_and_counts(deployed: Deployment):
    nobody = deployed.client()
    assert nobody.get("/livez").json() == {"status": "ok"}
    assert nobody.get("/readyz").json() == {"status": "ok"}
    assert nobody.get("/metrics").status_code == 404
    deployed.client("acme-member").post(f"{T}/instances", json=INSTANCE, headers=key())
    here = TestClient(deployed.app, client=("127.0.0.1", 4711))
    told = here.get("/metrics").text
    assert 'bulkhead_things{kind="instance",state="pending"} 1.0' in told
    assert re.search(r'bulkhead_requests_total\{operation="create_instance",status="202"\} \d', told)
    assert deployed.tenants["acme"] not in told
    assert deployed.client("acme-member").get("/v1").json()["version"] == "v1"


def test_a_database_that_is_gone_is_not_ready(deployed: Deployment):
    class Gone:
        def reading(self):
            raise OSError("no such host")

    gone = dataclasses.replace(deployed.control, store=type("S", (), {"database": Gone()})())
    deployed.app.state.control = gone
    answer = deployed.client().get("/readyz")
    assert (answer.status_code, answer.json()["code"]) == (503, "api.not_ready")


def test_a_restored_deployment_observes_until_an_operator_resumes(deployed: Deployment) -> None:
    with deployed.store.unit_of_work(CONTROLLER) as tx:
        deployment.restored(tx, "the disk was lost")
    operator = deployed.client("operator")
    shown = operator.get("/v1/deployment").json()
    assert (shown["observe_only"], shown["unheard"], shown["strays"]) == (True, [], 0)
    path = "/v1/deployment/actions/resume"
    for body, status in (({}, 422), ({"reason": " "}, 422), ({"reason": "x", "force": 1}, 422)):
        assert operator.post(path, json=body).status_code == status
    assert deployed.client("platform-auditor").post(path, json={"reason": "x"}).status_code == 403
    assert deployed.client("acme-admin").get("/v1/deployment").status_code == 403

    went_on = operator.post(path, json={"reason": "looked"})
    assert (went_on.status_code, went_on.json()["observe_only"]) == (200, False)
    again = operator.post(path, json={"reason": "looked"})
    assert (again.status_code, again.json()["code"]) == (409, "deployment.not_observing")


def test_a_stray_is_removed_by_an_operators_order(deployed: Deployment) -> None:
    operator = deployed.client("operator")
    path = "/v1/hosts/node1/actions/remove-stray"
    body = {"kind": "volume", "id": "vol_a", "reason": "forgotten"}
    refused = operator.post(path, json=body)
    assert (refused.status_code, refused.json()["code"]) == (404, "stray.not_reported")
    assert operator.post(path, json={**body, "kind": "seed"}).status_code == 422
    with deployed.store.unit_of_work(CONTROLLER) as tx:
        node = hosts.get(tx, "node1")
        host_errors.tell(
            tx,
            node,
            host_errors.runs_strays(
                strays.found(tx, node, [Stray("volume", "vol_a", 1), Stray("instance", "vm_a", 1)])
            ),
        )

    host = operator.post(path, json=body).json()

    assert host["strays"] == [{"kind": "instance", "id": "vm_a"}, {"kind": "volume", "id": "vol_a"}]
    assert host["error"]["code"] == "host.stray_instances"


def test_what_a_host_checked_of_itself_is_for_the_platforms_people(deployed: Deployment) -> None:
    operator, path = deployed.client("operator"), "/v1/hosts/node1/evidence"
    shown = operator.get(path).json()
    assert (shown["verdicts"], shown["changed_at"]) == (None, None)
    assert operator.get("/v1/hosts/node1").json()["failed_checks"] is None
    verdict = {"id": "switch.flows", "subject": "br", "expected": "equal", "read": "?", "status": "unknown"}
    kept = {"verdicts": [verdict, {**verdict, "status": "pass"}], "changed_ms": deployed.clock.now_ms}
    with deployed.store.unit_of_work(CONTROLLER) as tx:
        tx.note(table_of(HostRow).update().values(evidence=kept))
    for who in ("operator", "platform-auditor"):
        shown = deployed.client(who).get(path).json()
        assert shown["verdicts"] == kept["verdicts"]
        assert deployed.client(who).get("/v1/hosts").json()["items"][0]["failed_checks"] == 1
    for who in ("acme-admin", "acme-member", "acme-auditor"):
        assert deployed.client(who).get(path).status_code == 403
    assert deployed.client().get(path).status_code == 401
    assert operator.get("/v1/hosts/node2/evidence").json()["code"] == "host.unknown"


def test_what_a_hosts_doctor_found_is_for_the_platforms_people(deployed: Deployment) -> None:
    operator, path = deployed.client("operator"), "/v1/hosts/node1/doctor"
    shown = operator.get(path).json()
    assert (shown["summary"], shown["findings"], shown["asked_at"]) == (None, None, None)
    assert operator.get("/v1/hosts/node1").json()["doctor"] is None
    examine = "/v1/hosts/node1/actions/examine"
    early = operator.post(examine)
    assert (early.status_code, early.json()["code"]) == (409, "host.state")
    with deployed.store.unit_of_work(CONTROLLER) as tx:
        tx.note(table_of(HostRow).update().values(state="ready", agent_version="0.1.0"))

    asked = operator.post(examine)
    assert asked.status_code == 200
    assert asked.json()["asked_at"] is not None
    failing = Finding("K7", "swap", Severity.MUST, Status.FAIL, "no swap", "/dev/sda2", "swapoff -a")
    with deployed.store.unit_of_work(CONTROLLER) as tx:
        doctor.taken_in(tx, hosts.get(tx, "node1").id, DoctorReport("boot", "0.1.0", ("K10",), (failing,)))

    for who in ("operator", "platform-auditor"):
        shown = deployed.client(who).get(path).json()
        assert shown["findings"] == [
            {
                "id": "K7",
                "subject": "swap",
                "severity": "must",
                "status": "fail",
                "accepted": False,
                "expected": "no swap",
                "read": "/dev/sda2",
                "mend": "swapoff -a",
            }
        ]
        assert (shown["asked_at"], shown["boot_id"], shown["summary"]["accepted"]) == (None, "boot", ["K10"])
        host = deployed.client(who).get("/v1/hosts").json()["items"][0]
        assert (host["state"], host["cordoned_by"], host["reason"]) == (
            "cordoned",
            "doctor",
            "doctor: K7 fails",
        )
        assert host["doctor"] == shown["summary"]
        assert host["doctor"]["failed"] == ["K7"]
    back = operator.post("/v1/hosts/node1/actions/uncordon", json={"reason": "I know better"})
    assert (back.status_code, back.json()["code"]) == (409, "host.doctor_failed")
    for who in ("acme-admin", "acme-member", "acme-auditor"):
        assert deployed.client(who).get(path).status_code == 403
        assert deployed.client(who).post(examine).status_code == 403
    assert deployed.client("platform-auditor").post(examine).status_code == 403
    assert deployed.client().get(path).status_code == 401
    assert operator.get("/v1/hosts/node2/doctor").json()["code"] == "host.unknown"
    assert operator.post("/v1/hosts/node2/actions/examine").json()["code"] == "host.unknown"


def test_a_host_is_drained_by_an_operation_of_the_platform(deployed: Deployment) -> None:
    operator = deployed.client("operator")
    path = "/v1/hosts/node1/actions/drain"
    body = {"reason": "dimm", "deadline_s": 600}
    refused = operator.post(path, json=body)
    assert (refused.status_code, refused.json()["code"]) == (409, "host.state")
    with deployed.store.unit_of_work(CONTROLLER) as tx:
        tx.note(table_of(HostRow).update().values(state="ready"))
    for wrong in ({"policy": "move"}, {"deadline_s": 0}, {"deadline_s": "600"}, {"reason": ""}, {"more": 1}):
        assert operator.post(path, json={**body, **wrong}).status_code == 422
    dry = operator.post(path + "?dry_run=true", json=body)
    assert (dry.status_code, "location" in dry.headers) == (200, False)
    assert operator.get("/v1/hosts/node1").json()["state"] == "ready"

    begun = operator.post(path, json=body)

    assert (begun.status_code, begun.json()["kind"]) == (202, "host.drain")
    where = begun.headers["location"]
    assert where == f"/v1/operations/{begun.json()['id']}"
    host = operator.get("/v1/hosts/node1").json()
    assert (host["state"], host["reason"]) == ("draining", "dimm")
    assert host["drain"]["operation_id"] == begun.json()["id"]
    assert (host["drain"]["policy"], host["drain"]["overdue"]) == ("each", False)
    ended = operator.post("/v1/hosts/node1/actions/uncordon", json={"reason": "mended"}).json()
    assert (ended["state"], ended["drain"]) == ("ready", None)
    assert operator.get(where).json()["error"]["code"] == "host.drain_ended"
