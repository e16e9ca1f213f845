"""Volumes of their own: from an instance's making or while it is stopped, on one host, counted once."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path

import pytest
from sqlalchemy import func, select, update

from orchestrator.controller import host_removal, hosts, instance_create, quotas, reports
from orchestrator.controller.checks import violations
from orchestrator.controller.instance_create import NewInstance
from orchestrator.controller.keyring import Keyring
from orchestrator.keys.files import FileTenantKeys
from orchestrator.model.actor import CONTROLLER, Actor
from orchestrator.model.errors import BulkheadError, ConflictError, HostError, NotFoundError
from orchestrator.model.report import AbsentReport, Phase
from orchestrator.model.states import InstanceState, OperationState, VolumeState
from orchestrator.store.ids import new_id
from orchestrator.store.tables.fleet import HostRow
from orchestrator.store.tables.keys import WrappedKeyRow
from orchestrator.store.tables.volumes import VolumeRow
from orchestrator.store.unit_of_work import table_of
from tests.api.rows import records, rows
from tests.unit.controller.platform import Platform

VOLUMES, KEYS, HOSTS = table_of(VolumeRow), table_of(WrappedKeyRow), table_of(HostRow)


def holds(platform: Platform) -> None:
    with platform.store.reading() as tx:
        assert violations(tx) == ()


def spoil(platform: Platform, statement: object) -> None:
    with platform.store.unit_of_work(CONTROLLER) as tx:
        tx.note(statement)


def used_gib(platform: Platform) -> int:
    return platform.host().used_disk_gib


def stopped(platform: Platform, name: str = "train", **more: object) -> None:
    platform.create(platform.acme, name, **more)
    platform.settle()
    platform.ask(platform.acme, "stop", name)
    platform.settle()
    assert platform.instance(platform.acme, name).state is InstanceState.STOPPED


def on_host(platform: Platform, instance: str) -> list[str]:
    """The volumes of a domain's definition."""
    spec = platform.world.domains[platform.instance(platform.acme, instance).id].spec
    return [each.id for each in spec.instance.volumes]


def test_an_instance_is_made_with_a_volume(platform):
    data = platform.volume(platform.acme, "data")
    assert (data.state, data.host_id) == (VolumeState.AVAILABLE, None)
    platform.create(platform.acme, "train", volumes=("data",))
    assert platform.seen_volume(platform.acme, "data").state is VolumeState.CREATING
    holds(platform)

    platform.settle()

    data = platform.seen_volume(platform.acme, "data")
    assert (data.state, data.host_id) == (VolumeState.IN_USE, platform.host_id)
    assert on_host(platform, "train") == [platform.seen_volume(platform.acme, "train-boot").id, data.id]
    assert used_gib(platform) == 3
    holds(platform)


def test_deleting_the_instance_keeps_the_volume_and_it_goes_on_where_it_lives(platform):
    data = platform.volume(platform.acme, "data")
    platform.create(platform.acme, "train", volumes=("data",))
    platform.settle()
    platform.ask(platform.acme, "remove", "train")
    platform.settle()

    parked = platform.seen_volume(platform.acme, "data")
    assert (parked.state, parked.instance_id, parked.host_id) == (
        VolumeState.AVAILABLE,
        None,
        platform.host_id,
    )
    assert list(platform.world.volumes) == [data.id]
    assert used_gib(platform) == 2
    with platform.store.reading() as tx:
        used = quotas.read(tx, platform.acme.tenant_id).used
    assert (used["volumes"], used["disk_gib"]) == (1, 2)
    holds(platform)

    platform.create(platform.acme, "again", volumes=(data.id,))
    platform.settle()
    assert platform.instance(platform.acme, "again").state is InstanceState.RUNNING
    assert data.id in on_host(platform, "again")
    assert used_gib(platform) == 3
    holds(platform)


def test_attached_while_stopped_it_is_there_at_the_next_start(platform):
    stopped(platform)
    platform.volume(platform.acme, "data")
    before = platform.instance(platform.acme, "train").generation
    platform.wire(platform.acme, "attach", "train", "data")

    data = platform.seen_volume(platform.acme, "data")
    assert (data.state, data.host_id) == (VolumeState.CREATING, platform.host_id)
    assert platform.instance(platform.acme, "train").generation == before + 1
    assert used_gib(platform) == 3
    holds(platform)
    platform.settle()
    assert platform.instance(platform.acme, "train").state is InstanceState.STOPPED

    platform.ask(platform.acme, "start", "train")
    platform.settle()
    assert platform.instance(platform.acme, "train").state is InstanceState.RUNNING
    assert platform.seen_volume(platform.acme, "data").state is VolumeState.IN_USE
    assert data.id in on_host(platform, "train")
    holds(platform)


def test_what_its_host_cannot_erase_says_why_and_goes_on_when_it_can(platform):
    data = platform.volume(platform.acme, "data")
    stopped(platform, volumes=("data",))
    platform.wire(platform.acme, "detach", "train", "data")
    platform.settle()
    operation = platform.erase(platform.acme, "data")
    busy = HostError("volume.erase_failed", "the disk does not answer")
    platform.world.failures["erase_volume"] = [busy, busy, HostError("volume.read_only", "it is read-only")]

    def turn():
        platform.apply()
        platform.report()
        shown = platform.operation(operation)
        return shown.state, (shown.error or {}).get("code")

    def told():
        return [each for each in records(platform.store) if each["kind"] == "volume.erase_failed"]

    assert platform.operation(operation).error is None
    assert turn() == (OperationState.RUNNING, "volume.erase_failed")
    assert turn() == (OperationState.RUNNING, "volume.erase_failed")
    assert len(told()) == 1
    assert platform.seen_volume(platform.acme, "data").state is VolumeState.DELETING
    assert turn() == (OperationState.RUNNING, "volume.read_only")
    assert len(told()) == 2
    assert turn() == (OperationState.SUCCEEDED, None)
    assert data.id not in platform.world.volumes
    holds(platform)


def test_what_was_detached_can_be_erased_while_its_instance_is_off(platform):
    data = platform.volume(platform.acme, "data")
    stopped(platform, volumes=("data",))
    platform.wire(platform.acme, "detach", "train", "data")
    assert platform.seen_volume(platform.acme, "data").state is VolumeState.AVAILABLE
    operation = platform.erase(platform.acme, "data")
    platform.settle()

    with pytest.raises(NotFoundError):
        platform.seen_volume(platform.acme, "data")
    assert platform.operation(operation).state is OperationState.SUCCEEDED
    assert data.id not in platform.world.volumes
    assert used_gib(platform) == 1
    holds(platform)


def test_it_goes_from_one_instance_to_another_of_its_host(platform):
    data = platform.volume(platform.acme, "data")
    stopped(platform, "one", volumes=("data",))
    stopped(platform, "two")
    platform.wire(platform.acme, "detach", "one", "data")
    platform.wire(platform.acme, "attach", "two", "data")
    for name in ("one", "two"):
        platform.ask(platform.acme, "start", name)
    platform.settle()

    assert data.id not in on_host(platform, "one")
    assert data.id in on_host(platform, "two")
    assert [each.state.value for each in platform.all_instances()] == ["running"] * 2
    assert used_gib(platform) == 4
    holds(platform)


@pytest.mark.parametrize("verb", ["attach", "detach"])
@pytest.mark.parametrize("state", ["pending", "running", "deleting"])
def test_only_what_is_stopped_is_wired(sqlite_platform, verb, state):
    platform = sqlite_platform
    platform.volume(platform.acme, "data")
    platform.volume(platform.acme, "more")
    platform.create(platform.acme, "train", volumes=("data",))
    if state != "pending":
        platform.settle()
    if state == "deleting":
        platform.ask(platform.acme, "remove", "train")
    before = rows(platform.store)
    with pytest.raises(ConflictError) as refused:
        platform.wire(platform.acme, verb, "train", "more" if verb == "attach" else "data")
    assert refused.value.code == "instance.not_stopped"
    assert rows(platform.store) == before


def refused_code(platform: Platform, act) -> str:
    """The code of a refusal that changed nothing."""
    before = rows(platform.store)
    with pytest.raises(BulkheadError) as refused:
        act()
    assert rows(platform.store) == before
    return refused.value.code


def test_refusals_change_nothing(platform):
    acme = platform.acme
    platform.volume(acme, "data")
    platform.volume(acme, "more")
    platform.volume(platform.globex, "theirs")
    stopped(platform, volumes=("data",))

    def code(verb: str, volume: str) -> str:
        return refused_code(platform, lambda: platform.wire(acme, verb, "train", volume))

    assert code("attach", "data") == "volume.in_use"
    assert code("attach", "train-boot") == "volume.in_use"
    assert code("detach", "train-boot") == "volume.boots"
    assert code("detach", "more") == "volume.not_attached"
    assert code("attach", "theirs") == "volume.unknown"
    assert code("attach", "none") == "volume.unknown"
    for wanted, told in (
        (("more", "more"), "instance.volume_twice"),
        (("data",), "volume.in_use"),
        (("more", "none"), "volume.unknown"),
        (("theirs",), "volume.unknown"),
    ):
        create = lambda wanted=wanted: platform.create(acme, "next", volumes=wanted)  # noqa: E731
        assert refused_code(platform, create) == told
    assert refused_code(platform, lambda: platform.erase(acme, "data")) == "volume.in_use"
    spoil(platform, update(VOLUMES).where(VOLUMES.c.name == "more").values(state="lost"))
    assert code("attach", "more") == "volume.not_available"


def test_two_hosts_volumes_never_meet(sqlite_platform):
    platform = sqlite_platform
    with platform.store.unit_of_work(CONTROLLER) as tx:
        other = hosts.create(tx, "node2", 100).id
    for name, host in (("near", platform.host_id), ("far", other)):
        platform.volume(platform.acme, name)
        spoil(platform, update(VOLUMES).where(VOLUMES.c.name == name).values(host_id=host))
    spoil(platform, update(HOSTS).values(used_disk_gib=2))

    create = lambda: platform.create(platform.acme, "train", volumes=("near", "far"))  # noqa: E731
    assert refused_code(platform, create) == "volume.elsewhere"
    stopped(platform, volumes=("near",))
    attach = lambda: platform.wire(platform.acme, "attach", "train", "far")  # noqa: E731
    assert refused_code(platform, attach) == "volume.elsewhere"
    holds(platform)


def test_a_volume_on_a_host_that_takes_nothing_waits_for_that_host(platform):
    platform.volume(platform.acme, "data")
    stopped(platform, volumes=("data",))
    platform.ask(platform.acme, "remove", "train")
    platform.settle()
    with platform.store.unit_of_work(CONTROLLER) as tx:
        hosts.change_state(tx, "node1", "cordon", "disks")
    platform.create(platform.acme, "again", volumes=("data",))
    platform.schedule()
    assert platform.instance(platform.acme, "again").error["code"] == "host.cordoned"

    with platform.store.unit_of_work(CONTROLLER) as tx:
        hosts.change_state(tx, "node1", "uncordon", "done")
    platform.settle()
    assert platform.instance(platform.acme, "again").state is InstanceState.RUNNING


def test_disk_is_counted_with_the_volumes(platform):
    spoil(platform, update(HOSTS).values(disk_gib=10))
    platform.volume(platform.acme, "big", 10)
    platform.volume(platform.acme, "fits", 9)
    platform.create(platform.acme, "waits", volumes=("big",))
    platform.settle()
    assert platform.instance(platform.acme, "waits").error["code"] == "disk.short"
    assert "11 GiB" in platform.instance(platform.acme, "waits").error["message"]
    platform.ask(platform.acme, "remove", "waits")
    assert platform.seen_volume(platform.acme, "big").state is VolumeState.AVAILABLE

    stopped(platform)
    attach = lambda name: platform.wire(platform.acme, "attach", "train", name)  # noqa: E731
    assert refused_code(platform, lambda: attach("big")) == "volume.no_room"
    attach("fits")
    assert used_gib(platform) == 10
    holds(platform)


def test_no_instance_has_more_disk_than_a_demand_may_say(sqlite_platform):
    """Such a demand would stop the scheduler for all tenants."""
    platform = sqlite_platform
    with platform.store.unit_of_work(CONTROLLER) as tx:
        quotas.set_limits(tx, platform.acme.tenant_id, {"disk_gib": 10**9}, 1)
    for name in ("a", "b"):
        platform.volume(platform.acme, name, 10**6)
    create = lambda: platform.create(platform.acme, "vast", volumes=("a", "b"))  # noqa: E731
    assert refused_code(platform, create) == "instance.disk_too_large"


def test_a_host_with_a_parked_volume_is_not_forgotten(platform):
    platform.volume(platform.acme, "data")
    stopped(platform, volumes=("data",))
    platform.ask(platform.acme, "remove", "train")
    platform.settle()
    with platform.store.unit_of_work(CONTROLLER) as tx:
        tx.note(update(table_of(HostRow)).values(state="drained"))
    with platform.store.unit_of_work(CONTROLLER) as tx, pytest.raises(ConflictError, match="1 volumes"):
        host_removal.remove(tx, "node1", "sold")


@pytest.fixture
def keyring(tmp_path: Path) -> Keyring:
    folder = tmp_path / "keys"
    folder.mkdir(mode=0o700)
    return Keyring(FileTenantKeys(folder))


def key_of(platform: Platform, keyring: Keyring, volume: str) -> bytes:
    return keyring.hand_out(platform.store, Actor(kind="host", id=platform.host_id), volume, 1)


def kept_keys(platform: Platform) -> int:
    with platform.store.reading() as tx:
        return int(tx.scalar(select(func.count()).select_from(KEYS)))


def test_a_volume_keeps_its_key_until_it_is_erased(platform, keyring):
    stopped(platform)
    data = platform.volume(platform.acme, "data").id
    platform.wire(platform.acme, "attach", "train", "data")
    platform.ask(platform.acme, "start", "train")
    key = key_of(platform, keyring, data)
    platform.settle()
    platform.ask(platform.acme, "stop", "train")
    platform.settle()
    platform.wire(platform.acme, "detach", "train", "data")
    with pytest.raises(BulkheadError, match="not assigned"):
        key_of(platform, keyring, data)
    platform.wire(platform.acme, "attach", "train", "data")
    assert key_of(platform, keyring, data) == key
    platform.wire(platform.acme, "detach", "train", "data")
    platform.erase(platform.acme, "data")
    assert kept_keys(platform) == 1
    platform.settle()
    assert kept_keys(platform) == 0


@pytest.mark.parametrize("handed_out", [False, True], ids=["no key", "key"])
def test_detached_before_it_was_written_it_belongs_to_no_host_again(platform, keyring, handed_out):
    stopped(platform)
    data = platform.volume(platform.acme, "data").id
    platform.wire(platform.acme, "attach", "train", "data")
    platform.assignment()
    if handed_out:
        key_of(platform, keyring, data)
    platform.wire(platform.acme, "detach", "train", "data")
    home = platform.seen_volume(platform.acme, "data").host_id
    assert (home, used_gib(platform)) == ((platform.host_id, 3) if handed_out else (None, 1))
    holds(platform)


def test_another_host_cannot_call_a_volume_gone(platform):
    platform.volume(platform.acme, "data")
    stopped(platform, volumes=("data",))
    platform.ask(platform.acme, "remove", "train")
    platform.settle()
    platform.erase(platform.acme, "data")
    data = platform.seen_volume(platform.acme, "data")
    with platform.store.unit_of_work(CONTROLLER) as tx:
        other = hosts.create(tx, "node2", 100).id
    gone = AbsentReport("volume", data.id, Phase.ABSENT)

    def says(host: str) -> None:
        whole = dataclasses.replace(platform.said, host=host, revision=1, instances=(), absent=(gone,))
        said = reports.Said(platform.world.boot_id, "test", None, whole, None)
        with platform.store.unit_of_work(Actor(kind="host", id=host)) as tx:
            reports.received(tx, host, said)

    says(other)
    assert platform.seen_volume(platform.acme, "data").state is VolumeState.DELETING
    says(platform.host_id)
    with pytest.raises(NotFoundError):
        platform.seen_volume(platform.acme, "data")


def test_two_that_want_the_same_volumes_at_once(platform):
    """One gets both, the other none; whatever order they name them in."""
    for name in ("a", "b"):
        platform.volume(platform.acme, name)
    outcomes: dict[str, str] = {}
    start = threading.Barrier(2)

    def create(name: str, wanted: tuple[str, ...]) -> None:
        start.wait()
        new = NewInstance(name=name, type="small", image="probe", volumes=wanted)
        try:
            with platform.store.unit_of_work(platform.acme.actor) as tx:
                instance_create.create(tx, platform.acme, new, new_id("op"))
            outcomes[name] = "made"
        except BulkheadError as exc:
            outcomes[name] = exc.code

    threads = [
        threading.Thread(target=create, args=each) for each in (("one", ("a", "b")), ("two", ("b", "a")))
    ]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert sorted(outcomes.values()) == ["made", "volume.in_use"]
    assert len(platform.all_instances()) == 1
    holds(platform)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"host_id": None}, "I3"),
        ({"state": "available"}, "I3"),
        ({"instance_id": None}, "I3"),
        ({"size_gib": 7}, "I6"),
        ({"tenant_id": "GLOBEX"}, "I4"),
    ],
    ids=["no host", "free and taken", "taken by nobody", "disk miscounted", "another tenant's"],
)
def test_the_checker_notices(sqlite_platform, values, told):
    platform = sqlite_platform
    platform.volume(platform.acme, "data")
    stopped(platform, volumes=("data",))
    holds(platform)
    values = {key: platform.globex.tenant_id if at == "GLOBEX" else at for key, at in values.items()}
    spoil(platform, update(VOLUMES).where(VOLUMES.c.name == "data").values(**values))
    with platform.store.reading() as tx:
        assert any(each.startswith(f"{told} ") for each in violations(tx))
