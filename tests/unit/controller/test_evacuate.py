"""A lost host: its instances run elsewhere, what it had is named, it comes back in peace. Both databases."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import select, update

from orchestrator.controller import deployment, evacuate, strays, tenants
from orchestrator.controller.checks import violations
from orchestrator.controller.keyring import Keyring
from orchestrator.keys.files import FileTenantKeys
from orchestrator.model.actor import CONTROLLER, Actor
from orchestrator.model.errors import ConflictError, ForbiddenError, HostError
from orchestrator.model.fleet import GpuRecord
from orchestrator.model.operation import Operation
from orchestrator.model.states import GpuState, HostState, InstanceState, OperationState, VolumeState
from orchestrator.store.ids import new_id
from orchestrator.store.nouns import GPUS, STALE
from orchestrator.store.rows import PLATFORM
from orchestrator.store.tables.audit import AuditRecordRow
from orchestrator.store.tables.fleet import HostRow, StaleInstanceRow
from orchestrator.store.tables.keys import WrappedKeyRow
from orchestrator.store.tables.networks import NetworkRow
from orchestrator.store.tables.tenants import QuotaRow
from orchestrator.store.unit_of_work import table_of
from tests.unit.controller.machines import Machine, broken, come_back, fence, run, say, turn
from tests.unit.controller.platform import Platform

HOSTS, KEYS, RECORDS = table_of(HostRow), table_of(WrappedKeyRow), table_of(AuditRecordRow)


def begin(platform: Platform, name: str = "node1", reason: str = "its power supply burnt") -> Operation:
    operator = replace(platform.acme, tenant=None)
    with platform.store.unit_of_work(CONTROLLER) as tx:
        return evacuate.begin(tx, operator, name, reason=reason, operation_id=new_id("op"))


def gpus(machine: Platform) -> list[GpuRecord]:
    with machine.store.reading() as tx:
        return GPUS.where(tx, PLATFORM, GPUS.table.c.host_id == machine.host_id)


def states(machine: Platform) -> list[str]:
    return sorted(each.state.value for each in gpus(machine))


def away(machine: Platform, kind: str, identity: str) -> None:
    with machine.store.unit_of_work(CONTROLLER) as tx:
        strays.remove(tx, machine.host_id, kind, identity, "it may go")


@pytest.fixture
def other(platform: Platform, tmp_path: Path) -> Machine:
    """A second host, which takes nothing yet."""
    made = Machine(platform, "node2", tmp_path)
    say(platform, "cordon", "node2")
    return made


def lose(platform: Platform) -> Operation:
    """Node 1 is off and evacuated; node 2 takes what comes."""
    say(platform, "uncordon", "node2")
    fence(platform)
    return begin(platform)


def test_instances_run_elsewhere_and_what_is_lost_is_named(platform, other):
    acme = platform.acme
    platform.volume(acme, "data")
    platform.volume(acme, "loose")
    platform.create(acme, "train", volumes=("data",))
    platform.create(platform.globex, "serve")
    platform.create(acme, "off")
    platform.create(acme, "brief", volumes=("loose",))
    platform.settle()
    platform.ask(acme, "remove", "brief")
    platform.settle()
    platform.ask(acme, "stop", "off")
    platform.settle()
    before = platform.instance(acme, "train")

    operation = lose(platform)
    waiting = platform.instance(acme, "train")
    assert (waiting.state, waiting.host_id, waiting.generation) == (
        InstanceState.PENDING,
        None,
        before.generation + 1,
    )
    run(platform, other)

    ended = platform.operation(operation)
    assert (ended.state, len(ended.result["instances"])) == (OperationState.SUCCEEDED, 3)
    names = {each["name"] for each in ended.result["lost_volumes"]}
    assert names == {"train-boot", "serve-boot", "off-boot", "data", "loose"}
    train = platform.instance(acme, "train")
    assert (train.id, train.state, train.host_id) == (before.id, InstanceState.RUNNING, other.host_id)
    assert train.rebuilt["reason"] == "its power supply burnt"
    assert {each["name"] for each in train.rebuilt["lost_volumes"]} == {"train-boot", "data"}
    assert platform.instance(acme, "off").state is InstanceState.STOPPED
    assert platform.instance(platform.globex, "serve").state is InstanceState.RUNNING
    running = {each.spec.instance.name: each.pid is not None for each in other.world.domains.values()}
    assert running == {"train": True, "serve": True}
    # The address stays: the tenant's other instances find it where it was.
    assert other.assignment().instances[0].ports[0].addresses[0].address.startswith("10.0.0.")
    for name in ("data", "loose"):
        volume = platform.seen_volume(acme, name)
        assert (volume.state, volume.instance_id) == (VolumeState.LOST, None)
    boot = platform.seen_volume(acme, "train-boot")
    assert (boot.state, boot.generation, boot.host_id) == (VolumeState.IN_USE, 2, other.host_id)
    assert broken(platform) == ()
    with platform.store.reading() as tx:
        kinds = [(row.kind, row.stream) for row in tx.all(select(RECORDS.c.kind, RECORDS.c.stream))]
    assert kinds.count(("volume.lost", acme.tenant_id)) == 4
    assert kinds.count(("instance.rebuild", platform.globex.tenant_id)) == 1
    assert kinds.count(("host.evacuated", "platform")) == 1


def test_the_lost_hosts_gpus_are_nobody_elses_until_it_came_back_and_cleaned_them(platform, other):
    platform.create(platform.acme, "train")
    platform.settle()
    lose(platform)
    run(platform, other)
    assert states(platform) == ["clean", "clean", "clean", "exposed"]
    assert states(other) == ["clean", "clean", "clean", "exposed"]

    come_back(platform)
    held = next(each for each in gpus(platform) if each.state is GpuState.EXPOSED)
    assert held.tenant_id == platform.acme.tenant_id
    # It is ready, and takes nothing: neither uncordoning nor a full house elsewhere changes that.
    assert (platform.host().state, platform.host().error["code"]) == (
        HostState.READY,
        "host.stale_instances",
    )
    say(platform, "cordon", "node2")
    platform.create(platform.globex, "serve")
    run(platform, platform, other)
    assert platform.instance(platform.globex, "serve").state is InstanceState.PENDING

    away(platform, "instance", platform.instance(platform.acme, "train").id)
    platform.apply()
    now = next(each for each in gpus(platform) if each.id == held.id)
    assert now.state is GpuState.EXPOSED
    platform.report()
    now = next(each for each in gpus(platform) if each.id == held.id)
    assert now.state in (GpuState.SANITISING, GpuState.CLEAN)
    run(platform, platform, other)
    assert (states(platform).count("exposed"), platform.host().error) == (1, None)
    assert platform.instance(platform.globex, "serve").host_id == platform.host_id
    cleaned = next(each for each in gpus(platform) if each.id == held.id)
    assert cleaned.evidence["class"] == "reset_only"
    assert broken(platform) == ()


def test_the_old_host_coming_back_destroys_nothing_and_answers_for_nobody(platform, other):
    platform.volume(platform.acme, "data")
    platform.create(platform.acme, "train", volumes=("data",))
    platform.settle()
    domain = next(iter(platform.world.domains.values()))
    pid, volumes = domain.pid, dict(platform.world.volumes)
    assert any(port.open for port in platform.world.ports)
    lose(platform)
    run(platform, other)

    come_back(platform)
    told = platform.assignment()
    assert (told.instances, told.absent) == ((), ())
    assert [each.id for each in told.closed] == [platform.instance(platform.acme, "train").id]
    run(platform, platform, other)
    assert next(iter(platform.world.domains.values())).pid == pid
    assert platform.world.volumes == volumes
    # It runs on, unheard: the same address answers from the other host alone.
    assert not any(port.open or port.vlan for port in platform.world.ports)
    assert any(port.open for port in other.world.ports)
    cut = [each for each in platform.said.verdicts if each.id == "port.cut_off"]
    assert [each.status.value for each in cut] == ["pass"]
    found = {(each["kind"], each["id"]) for each in platform.host().strays}
    train = platform.instance(platform.acme, "train")
    assert ("instance", train.id) in found
    assert {("volume", each) for each in volumes} <= found
    assert (train.state, train.host_id) == (InstanceState.RUNNING, other.host_id)

    away(platform, "instance", train.id)
    with pytest.raises(ConflictError) as twice:
        away(platform, "instance", train.id)
    assert twice.value.code == "stray.ordered"
    run(platform, platform, other)
    data = platform.seen_volume(platform.acme, "data").id
    assert (platform.world.domains, set(platform.world.volumes)) == ({}, {data})
    away(platform, "volume", data)
    run(platform, platform, other)
    assert (platform.world.volumes, platform.host().strays, platform.host().error) == ({}, (), None)
    # On the other host nothing of that was touched.
    assert platform.instance(platform.acme, "train").state is InstanceState.RUNNING
    assert platform.seen_volume(platform.acme, "data").host_id is None
    assert broken(platform) == ()

    # The instance may come home one day: what was removed was its former self.
    say(platform, "cordon", "node2")
    say(platform, "fence", "node2")
    begin(platform, "node2")
    run(platform, platform)
    home = platform.instance(platform.acme, "train")
    assert (home.state, home.host_id) == (InstanceState.RUNNING, platform.host_id)
    assert broken(platform) == ()


def test_a_port_that_does_not_close_is_told(platform, other):
    platform.create(platform.acme, "train")
    platform.settle()
    lose(platform)
    come_back(platform)
    platform.world.failures["close_port"] = [HostError("switch.stuck", "no")]
    platform.apply()
    platform.report()
    assert platform.host().error["code"] == "host.checks_failed"
    assert "port.cut_off" in platform.host().error["message"]
    platform.apply()
    platform.report()
    assert platform.host().error["code"] == "host.stale_instances"


def test_who_finds_no_place_waits_or_fails_like_any_other(platform, other):
    platform.create(platform.acme, "patient")
    platform.create(platform.acme, "hasty", on_no_capacity="fail")
    platform.settle()
    fence(platform)
    operation = begin(platform)
    run(platform, other)
    assert platform.instance(platform.acme, "patient").state is InstanceState.PENDING
    hasty = platform.instance(platform.acme, "hasty")
    assert (hasty.state, hasty.rebuilt["reason"]) == (InstanceState.ERROR, "its power supply burnt")
    step = platform.operation(operation).steps[-1]
    assert (step["done"], step["total"]) == (1, 2)
    assert broken(platform) == ()

    say(platform, "uncordon", "node2")
    run(platform, other)
    ended = platform.operation(operation)
    assert (ended.state, ended.error["code"]) == (OperationState.FAILED, "host.evacuation_incomplete")
    assert hasty.id in ended.error["message"]
    # A way on: it waits for a place again.
    platform.ask(platform.acme, "start", "hasty")
    run(platform, other)
    assert platform.instance(platform.acme, "hasty").state is InstanceState.RUNNING
    assert broken(platform) == ()


def test_what_was_not_handed_out_leaves_nothing_behind(platform, other):
    platform.create(platform.acme, "train")
    platform.schedule()
    assert platform.instance(platform.acme, "train").state is InstanceState.SCHEDULED
    operation = lose(platform)
    assert states(platform) == ["clean"] * 4
    with platform.store.reading() as tx:
        assert STALE.where(tx, PLATFORM) == []
    assert platform.operation(operation).result["lost_volumes"] == []
    run(platform, other)
    assert platform.instance(platform.acme, "train").state is InstanceState.RUNNING
    assert platform.seen_volume(platform.acme, "train-boot").generation == 1
    assert broken(platform) == ()


def test_what_its_tenant_deletes_is_deleted_and_the_order_waits_for_the_host(platform, other):
    acme = platform.acme
    platform.volume(acme, "data")
    platform.create(acme, "train")
    platform.create(acme, "keep", volumes=("data",))
    platform.settle()
    removal = platform.ask(acme, "remove", "train")
    lose(platform)
    assert platform.operation(removal).state is OperationState.SUCCEEDED
    run(platform, other)
    # Deleting what runs elsewhere by now does not wait for the lost host.
    second = platform.ask(acme, "remove", "keep")
    run(platform, other)
    assert platform.operation(second).state is OperationState.SUCCEEDED
    erased = platform.erase(acme, "data")
    assert platform.operation(erased).state is OperationState.SUCCEEDED
    assert broken(platform) == ()
    with platform.store.unit_of_work(CONTROLLER) as tx:
        tx.execute(table_of(NetworkRow).delete().where(table_of(NetworkRow).c.tenant_id == acme.tenant_id))
        tx.execute(
            update(table_of(QuotaRow))
            .where(table_of(QuotaRow).c.tenant_id == acme.tenant_id)
            .values(used_networks=0)
        )
        tx.record("test.change", ("test", "x"), tenant=None)
    with pytest.raises(ConflictError) as held, platform.store.unit_of_work(CONTROLLER) as tx:
        tenants.remove(tx, "acme")
    assert "2 stale instances" in held.value.message

    come_back(platform)
    run(platform, platform, other)
    left = {each["id"] for each in platform.host().strays if each["kind"] == "instance"}
    assert len(left) == 1  # the one that nobody ordered away
    away(platform, "instance", left.pop())
    run(platform, platform, other)
    assert (platform.world.domains, platform.world.volumes) == ({}, {})
    assert (states(platform), platform.host().error) == (["clean"] * 4, None)
    assert broken(platform) == ()
    with platform.store.unit_of_work(CONTROLLER) as tx:
        tenants.remove(tx, "acme")


@pytest.mark.parametrize("state", [each for each in HostState if each is not HostState.REMOVED])
def test_only_a_fenced_host_is_evacuated(sqlite_platform, state):
    sqlite_platform.create(sqlite_platform.acme, "train")
    sqlite_platform.settle()
    with sqlite_platform.store.unit_of_work(CONTROLLER) as tx:
        tx.note(update(HOSTS).values(state=state))
    if state is HostState.FENCED:
        begin(sqlite_platform)
        with pytest.raises(ConflictError) as again:
            begin(sqlite_platform)
        assert again.value.code == "host.evacuating"
        return
    with pytest.raises(ConflictError) as refused:
        begin(sqlite_platform)
    assert refused.value.code == "host.state"
    assert sqlite_platform.instance(sqlite_platform.acme, "train").state is InstanceState.RUNNING


def test_while_the_deployment_observes_nothing_is_rebuilt(platform):
    fence(platform)
    with platform.store.unit_of_work(CONTROLLER) as tx:
        deployment.restored(tx, "x")
    with pytest.raises(ConflictError) as refused:
        begin(platform)
    assert refused.value.code == "deployment.observing"


def test_an_empty_host_is_evacuated_at_once(platform):
    fence(platform)
    operation = begin(platform)
    turn(platform)
    assert platform.operation(operation).state is OperationState.SUCCEEDED
    assert platform.host().evacuation_id is None


def test_a_restart_that_the_loss_cut_short_ends_running(platform, other):
    platform.create(platform.acme, "train")
    platform.settle()
    platform.ask(platform.acme, "restart", "train")
    lose(platform)
    run(platform, other)
    assert platform.instance(platform.acme, "train").state is InstanceState.RUNNING


def test_the_boot_volume_gets_a_new_key_and_the_old_one_opens_nothing(platform, other, tmp_path):
    folder = tmp_path / "keys"
    folder.mkdir(mode=0o700)
    keyring = Keyring(FileTenantKeys(folder))
    platform.create(platform.acme, "train")
    platform.schedule()
    volume = platform.assignment().instances[0].volumes[0]
    old = Actor(kind="host", id=platform.host_id)
    first = keyring.hand_out(platform.store, old, volume.id, 1)
    lose(platform)
    with platform.store.reading() as tx:
        assert tx.all(select(KEYS)) == []
    with pytest.raises(ForbiddenError):
        keyring.hand_out(platform.store, old, volume.id, 1)
    platform.schedule()
    assert other.assignment().instances[0].volumes[0].generation == 2
    second = keyring.hand_out(platform.store, Actor(kind="host", id=other.host_id), volume.id, 2)
    assert second != first
    # Back again, it is told no key: neither of what it had, nor of what runs elsewhere.
    come_back(platform)
    for generation in (1, 2):
        with pytest.raises(ForbiddenError):
            keyring.hand_out(platform.store, old, volume.id, generation)


def test_a_stray_that_lives_elsewhere_goes_only_up_to_its_former_self(platform, other):
    """The generation that is wanted elsewhere stays possible here."""
    platform.create(platform.acme, "train")
    platform.settle()
    lose(platform)
    run(platform, other)
    come_back(platform)
    run(platform, platform, other)
    boot = platform.seen_volume(platform.acme, "train-boot")
    away(platform, "volume", boot.id)
    (order,) = platform.assignment().absent
    assert (order.id, order.generation) == (boot.id, boot.generation - 1)


def test_the_checker_notices_what_evacuation_could_break(platform, other):
    platform.create(platform.acme, "train")
    platform.settle()
    lose(platform)
    run(platform, other)
    assert broken(platform) == ()
    stale = table_of(StaleInstanceRow)
    changes = {
        "I1": update(stale).values(tenant_id=platform.globex.tenant_id),
        "I3": stale.delete(),
        "I6": update(stale).values(disk_gib=7),
    }
    for number, change in changes.items():
        with contextlib.suppress(_UndoneError), platform.store.unit_of_work(CONTROLLER) as tx:
            tx.note(change)
            found = violations(tx)
            assert any(each.startswith(number) for each in found), found
            raise _UndoneError


class _UndoneError(Exception):
    """Roll back."""
