"""User data is a secret: no dump, record or answer shows it, and it dies with its tenant's key."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import delete, select, text, update

from orchestrator.controller import assignments, hosts, instances, leases, reports, user_data
from orchestrator.controller.checks import violations
from orchestrator.controller.scheduler import LEASE, Scheduler
from orchestrator.keys.files import FileTenantKeys
from orchestrator.model.actor import CONTROLLER, Actor
from orchestrator.model.assignment import Assignment
from orchestrator.model.errors import BulkheadError
from orchestrator.model.states import InstanceState
from orchestrator.store.nouns import INSTANCES
from orchestrator.store.rows import PLATFORM
from orchestrator.store.tables.instances import InstanceRow
from orchestrator.store.tables.keys import UserDataRow
from orchestrator.store.unit_of_work import table_of
from tests.api.deployment import Deployment, deploy, key
from tests.databases import dump
from tests.unit.controller.platform import everyday_world

T = "/v1/tenants/acme"
CANARY = "c4n4ry-pass-word"
DATA = f"#cloud-config\npassword: {CANARY}\n"
VM = {"name": "train", "type": "small", "image": "debian", "user_data": DATA}
_DATA = table_of(UserDataRow)


def create(deployed: Deployment, **more: object) -> object:
    return deployed.client("acme-member").post(f"{T}/instances", json={**VM, **more}, headers=key())


def placed(deployed: Deployment) -> str:
    """A host with GPUs is there, and everything that waits is in its assignment; the host's id."""
    store = deployed.store
    with store.reading() as tx:
        host_id = hosts.get(tx, "node1").id
    world = everyday_world()
    said = reports.Said(world.boot_id, "test", world.facts(), None, None)
    with store.unit_of_work(Actor(kind="host", id=host_id)) as tx:
        reports.received(tx, host_id, said)
    lease = leases.take(store, LEASE, "controller-1")
    assert lease is not None
    Scheduler(store).run(lease)
    with store.unit_of_work(CONTROLLER) as tx:
        assignments.hand_out(tx, host_id)
    return host_id


def given(deployed: Deployment, host_id: str) -> tuple[Assignment, dict[str, BulkheadError]]:
    with deployed.store.reading() as tx:
        found = assignments.compiled(tx, host_id)
        sealed = user_data.of_host(tx, host_id)
    assert found is not None
    return user_data.opened(deployed.control.keyring, found, sealed)


def test_a_host_gets_it_and_a_dump_does_not(
    deployed_on_both: Deployment, database_url: str, request: pytest.FixtureRequest
):
    deployed = deployed_on_both
    assert create(deployed).status_code == 202
    assert create(deployed, name="plain", user_data="#cloud-config\n{}\n").status_code == 202
    host_id = placed(deployed)

    told, failed = given(deployed, host_id)

    seeds = {each.name: each.seed.user_data for each in told.instances}
    assert seeds == {"train": DATA, "plain": "#cloud-config\n{}\n"}
    assert failed == {}
    stolen = dump(database_url, request)
    with deployed.store.reading() as tx:
        sealed = tx.scalar(select(_DATA.c.ciphertext))
    # The dump does hold what is in the tables: a name, and the sealed text as it lies there.
    assert b"train" in stolen
    assert sealed in stolen or sealed.hex().encode() in stolen
    assert CANARY.encode() not in stolen
    assert CANARY.encode().hex().encode() not in stolen


def test_a_dump_would_show_what_is_not_sealed(
    deployed_on_both: Deployment, database_url: str, request: pytest.FixtureRequest
):
    create(deployed_on_both)
    with deployed_on_both.store.unit_of_work(CONTROLLER) as tx:
        tx.note(update(_DATA).values(ciphertext=CANARY.encode()))
    stolen = dump(database_url, request)
    assert CANARY.encode() in stolen or CANARY.encode().hex().encode() in stolen


def test_the_api_tells_its_length_and_no_more(deployed: Deployment):
    operation = create(deployed).json()
    client = deployed.client("operator")
    shown = client.get(f"{T}/instances/train")
    assert shown.json()["user_data_bytes"] == len(DATA)
    pages = [f"{T}/instances", f"{T}/operations/{operation['id']}", f"{T}/audit"]
    for answer in (shown, *(client.get(page) for page in pages)):
        assert answer.status_code == 200
        assert CANARY not in answer.text


def test_a_destroyed_key_makes_it_unreadable_and_leaves_others_alone(
    deployed_on_both: Deployment, tmp_path: Path
):
    deployed = deployed_on_both
    create(deployed)
    other = deployed.client("globex-member")
    other.post("/v1/tenants/globex/instances", json={**VM, "name": "serve"}, headers=key())
    host_id = placed(deployed)
    FileTenantKeys(tmp_path / "keys").destroy(deployed.tenants["acme"])

    told, failed = given(deployed, host_id)

    assert [each.name for each in told.instances] == ["serve"]
    assert [error.code for error in failed.values()] == ["keys.destroyed"]
    for _ in range(2):
        with deployed.store.unit_of_work(Actor(kind="host", id=host_id)) as tx:
            reports.left_out(tx, host_id, failed)
    with deployed.store.reading() as tx:
        states = {each.name: (each.state, each.failures) for each in INSTANCES.where(tx, PLATFORM)}
    assert states == {
        "train": (InstanceState.ERROR, 1),
        "serve": (InstanceState.PROVISIONING, 0),
    }


@pytest.mark.parametrize("column", ["ciphertext", "nonce", "key_ciphertext", "key_nonce"])
def test_changed_bytes_open_nothing(deployed: Deployment, column: str):
    create(deployed)
    host_id = placed(deployed)
    with deployed.store.unit_of_work(CONTROLLER) as tx:
        kept = bytearray(tx.scalar(select(_DATA.c[column])))
        kept[0] ^= 1
        tx.note(update(_DATA).values({column: bytes(kept)}))
    told, failed = given(deployed, host_id)
    assert told.instances == ()
    assert [error.code for error in failed.values()] == ["keys.not_opened"]


def test_keys_that_cannot_be_read_now_fail_the_whole_poll(deployed: Deployment, tmp_path: Path):
    create(deployed)
    host_id = placed(deployed)
    (tmp_path / "keys").chmod(0o755)
    with pytest.raises(BulkheadError) as told:
        given(deployed, host_id)
    assert told.value.code == "keys.mode"


def test_it_goes_with_its_instance(deployed: Deployment):
    create(deployed)
    assert deployed.client("acme-member").delete(f"{T}/instances/train", headers=key()).status_code == 202
    with deployed.store.reading() as tx:
        assert tx.all(select(_DATA)) == []
        assert violations(tx) == ()


def test_the_checker_notices_what_was_left(deployed: Deployment):
    create(deployed)
    with deployed.store.unit_of_work(CONTROLLER) as tx:
        tx.note(delete(table_of(InstanceRow)).where(text("1=0")))
        tx.note(update(table_of(InstanceRow)).values(state="deleted"))
    with deployed.store.reading() as tx:
        assert any("user data belongs to" in each for each in violations(tx))


def test_without_a_key_backend_only_the_default_is_taken(sqlite_store):
    deployed = deploy(sqlite_store)
    refused = create(deployed)
    assert (refused.status_code, refused.json()["code"], refused.json()["field"]) == (
        503,
        "keys.none",
        "user_data",
    )
    assert CANARY not in refused.text
    with sqlite_store.reading() as tx:
        assert instances.INSTANCES.where(tx, PLATFORM) == []
    assert create(deployed, user_data="#cloud-config\n{}\n").status_code == 202


def test_a_dry_run_makes_no_key(deployed: Deployment, tmp_path: Path):
    asked = deployed.client("acme-member")
    answer = asked.post(f"{T}/instances", params={"dry_run": "true"}, json=VM, headers=key())
    assert answer.status_code == 200
    assert list((tmp_path / "keys").iterdir()) == []


def test_who_may_not_create_makes_no_key(deployed: Deployment, tmp_path: Path):
    answer = deployed.client("acme-auditor").post(f"{T}/instances", json=VM, headers=key())
    assert answer.status_code == 403
    assert list((tmp_path / "keys").iterdir()) == []


def test_the_same_key_and_body_makes_one(deployed: Deployment):
    header = key()
    client = deployed.client("acme-member")
    first, second = (client.post(f"{T}/instances", json=VM, headers=header) for _ in range(2))
    assert first.json()["id"] == second.json()["id"]
    with deployed.store.reading() as tx:
        assert len(tx.all(select(_DATA))) == 1


def test_a_name_that_changes_hands_gives_nothing_to_the_wrong_tenant(deployed: Deployment, monkeypatch):
    real = user_data.seal
    stranger = deployed.tenants["globex"]
    monkeypatch.setattr(
        user_data, "seal", lambda ring, _tenant, *rest, **more: real(ring, stranger, *rest, **more)
    )
    answer = create(deployed)
    assert (answer.status_code, answer.json()["code"]) == (409, "tenant.replaced")
