"""Lists narrowed and turned round: each filter shows what it names and nothing else, on both databases."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from sqlalchemy import insert, update

from orchestrator.model.actor import CONTROLLER
from orchestrator.store.tables.fleet import GpuRow, HostRow
from orchestrator.store.tables.instances import InstanceRow, RequestRow
from orchestrator.store.unit_of_work import table_of
from tests.api.deployment import Deployment, key

T = "/v1/tenants/acme"
INSTANCES, HOSTS, GPUS, REQUESTS = (table_of(row) for row in (InstanceRow, HostRow, GpuRow, RequestRow))


@pytest.fixture
def fleet(deployed_on_both: Deployment) -> Deployment:
    """Three instances in three states, one with a host; three GPUs; a second host."""
    deployed = deployed_on_both
    member, operator = deployed.client("acme-member"), deployed.client("operator")
    assert member.post(f"{T}/volumes", json={"name": "data", "size_gib": 1}, headers=key()).status_code == 201
    for name, volumes in (("train-1", ["data"]), ("train-2", []), ("serve", [])):
        deployed.clock.now_ms += 1
        wanted = {"name": name, "type": "small", "image": "debian", "volumes": volumes}
        assert member.post(f"{T}/instances", json=wanted, headers=key()).status_code == 202
    assert operator.post("/v1/hosts", json={"name": "spare", "disk_gib": 1}, headers=key()).status_code == 201
    host = operator.get("/v1/hosts/node1").json()["id"]
    gpu = {"host_id": host, "vendor": "10de", "serial": "", "node": 0, "tenancy": 0, "generation": 1}
    rows = [
        {**gpu, "id": f"gpu_{number}", "address": f"0000:0{number}:00.0", "device": device, "reason": "",
         "previous": before, "state": state, "created_ms": number}
        for number, (device, before, state) in enumerate(
            [("2330", "verifying", "clean"), ("2331", "verifying", "clean"), ("2330", "clean", "quarantined")]
        )
    ]  # fmt: skip
    with deployed.store.unit_of_work(CONTROLLER) as tx:
        tx.note(insert(GPUS).values(rows))
        tx.note(update(HOSTS).where(HOSTS.c.name == "node1").values(state="ready"))
        tx.note(update(INSTANCES).where(INSTANCES.c.name == "train-1").values(state="running", host_id=host))
        tx.note(update(INSTANCES).where(INSTANCES.c.name == "serve").values(state="error", type_name="old"))
        mine = INSTANCES.select().where(INSTANCES.c.name == "train-1").with_only_columns(INSTANCES.c.id)
        tx.note(update(REQUESTS).where(REQUESTS.c.instance_id.in_(mine)).values(state="placed"))
    return deployed


def listed(fleet: Deployment, path: str, who: str = "operator", **query: Any) -> list[dict[str, Any]]:
    answer = fleet.client(who).get(path, params=query)
    assert answer.status_code == 200, answer.text
    found = answer.json()["items"]
    assert isinstance(found, list)
    return found


def names(fleet: Deployment, path: str, **query: Any) -> list[str]:
    return [each.get("name") or each["id"] for each in listed(fleet, path, **query)]


def test_each_filter_shows_what_it_names(fleet: Deployment):
    instances = f"{T}/instances"
    assert names(fleet, instances) == ["train-1", "train-2", "serve"]
    assert names(fleet, instances, state="running") == ["train-1"]
    assert names(fleet, instances, type="small") == ["train-1", "train-2"]
    assert names(fleet, instances, host="node1") == ["train-1"]
    assert names(fleet, instances, host="spare") == []
    assert names(fleet, instances, name_prefix="train-") == ["train-1", "train-2"]
    assert names(fleet, instances, name_prefix="train-", state="pending") == ["train-2"]
    assert names(fleet, instances, name_prefix="rain") == []

    volumes = f"{T}/volumes"
    assert names(fleet, volumes, instance="train-1") == ["data", "train-1-boot"]
    assert names(fleet, volumes, state="available") == []
    assert len(names(fleet, volumes, state="creating")) == 4

    assert names(fleet, "/v1/hosts", state="ready") == ["node1"]
    assert names(fleet, "/v1/hosts", name_prefix="s") == ["spare"]
    assert names(fleet, "/v1/gpus", state="clean") == ["gpu_0", "gpu_1"]
    assert names(fleet, "/v1/gpus", model="10de:2330") == ["gpu_0", "gpu_2"]
    assert names(fleet, "/v1/gpus", model="10de:2330", state="quarantined") == ["gpu_2"]
    assert names(fleet, "/v1/gpus", host="spare") == []
    assert len(names(fleet, "/v1/gpus", host="node1")) == 3

    serve = listed(fleet, instances, state="error")[0]
    operations = f"{T}/operations"
    assert [each["subject_id"] for each in listed(fleet, operations, subject=serve["id"])] == [serve["id"]]
    assert len(listed(fleet, operations, kind="instance.create", state="running")) == 3
    assert listed(fleet, operations, kind="instance.delete") == []
    assert listed(fleet, operations, state="failed") == []
    assert listed(fleet, "/v1/operations", kind="host.drain") == []
    for requests in (f"{T}/requests", "/v1/requests"):
        assert len(listed(fleet, requests, state="waiting")) == 2
        assert len(listed(fleet, requests, state="placed")) == 1


def test_newest_first_is_the_same_list_turned_round_on_every_page(fleet: Deployment):
    for path in (f"{T}/instances", f"{T}/volumes", f"{T}/operations", f"{T}/requests", "/v1/gpus",
                 "/v1/tenants", "/v1/instance-types", "/v1/images", f"{T}/users", f"{T}/tokens"):  # fmt: skip
        whole = listed(fleet, path)
        assert whole
        for order, wanted in (("oldest", whole), ("newest", whole[::-1])):
            found: list[dict[str, Any]] = []
            query: dict[str, Any] = {"order": order, "page_size": 1}
            for _ in itertools.repeat(None, len(whole)):
                page = fleet.client("operator").get(path, params=query).json()
                found += page["items"]
                query["page_token"] = page["next_page_token"]
            assert page["next_page_token"] is None
            assert found == wanted, (path, order)


def test_a_filter_goes_on_over_pages(fleet: Deployment):
    query: dict[str, Any] = {"type": "small", "page_size": 1}
    first = fleet.client("operator").get(f"{T}/instances", params=query).json()
    query["page_token"] = first["next_page_token"]
    second = fleet.client("operator").get(f"{T}/instances", params=query).json()
    assert [each["name"] for page in (first, second) for each in page["items"]] == ["train-1", "train-2"]
    assert second["next_page_token"] is None


def test_a_tenant_cannot_ask_where_its_instances_run(fleet: Deployment):
    for host in ("node1", "none"):
        answer = fleet.client("acme-admin").get(f"{T}/instances", params={"host": host})
        assert (answer.status_code, answer.json()["code"]) == (403, "host.hidden")


def test_anothers_instance_narrows_nothing(fleet: Deployment):
    answer = fleet.client("globex-admin").get("/v1/tenants/globex/volumes", params={"instance": "train-1"})
    assert (answer.status_code, answer.json()["code"]) == (404, "instance.unknown")
