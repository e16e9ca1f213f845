"""What hosts have in later generations than a restored database: taken over on resuming, and nothing lost."""

from __future__ import annotations

import dataclasses

import pytest
from sqlalchemy import func, select

from orchestrator.audit.canonical import MAX_INTEGER
from orchestrator.controller import deployment, reports
from orchestrator.controller.checks import violations
from orchestrator.controller.deployment import Standing
from orchestrator.model.actor import Actor
from orchestrator.model.errors import ConflictError, FencedError, NotFoundError
from orchestrator.model.instance import InstanceRecord
from orchestrator.model.report import Phase
from orchestrator.model.states import HostState, InstanceState, OperationState, VolumeState
from orchestrator.store.tables.audit import AuditRecordRow
from orchestrator.store.unit_of_work import table_of
from tests.unit.controller.platform import Platform
from tests.unit.controller.restoring import back_up, resume, running, say_restored
from tests.unit.controller.test_drain import begin, turn

__all__ = ["back_up"]

RECORDS = table_of(AuditRecordRow)


def standing(platform: Platform) -> Standing:
    with platform.store.reading() as tx:
        return deployment.standing(tx)


def holds(platform: Platform) -> None:
    with platform.store.reading() as tx:
        assert violations(tx) == ()


def count(platform: Platform, kind: str | None = None) -> int:
    with platform.store.reading() as tx:
        wanted = select(func.count()).select_from(RECORDS)
        return tx.scalar(wanted if kind is None else wanted.where(RECORDS.c.kind == kind)) or 0


def asked(platform: Platform, *verbs: str, name: str = "train") -> None:
    for verb in verbs:
        platform.ask(platform.acme, verb, name)
        platform.settle()


def train(platform: Platform) -> InstanceRecord:
    return platform.instance(platform.acme, "train")


def observing(restored: Platform) -> Platform:
    say_restored(restored)
    restored.settle()
    return restored


@pytest.fixture
def backed_up(platform, back_up):
    """One instance runs, and there is a backup of that."""
    platform.create(platform.acme, "train")
    platform.settle()
    return platform, back_up()


def test_what_was_restarted_after_the_backup_runs_on_and_obeys_again(backed_up):
    platform, restore = backed_up
    asked(platform, "stop", "start")
    before, generation = running(platform), train(platform).generation

    old = observing(restore())
    was = train(old)
    assert (was.state, was.error["code"]) == (InstanceState.NEEDS_ATTENTION, "instance.stale")
    assert was.generation < generation
    assert (standing(old).ahead, standing(old).gone) == ((was.id,), ())

    resume(old)
    changes = old.world.changes
    old.settle()
    now = train(old)
    assert (now.state, now.error, now.generation) == (InstanceState.RUNNING, None, generation)
    # The VM was not touched: the same process, and no effect on its host.
    assert (running(old), old.world.changes) == (before, changes)
    assert (standing(old).ahead, count(old, "instance.adopted")) == ((), 1)
    holds(old)

    asked(old, "stop")
    assert (train(old).state, running(old)["train"]) == (InstanceState.STOPPED, None)
    asked(old, "start")
    assert train(old).state is InstanceState.RUNNING
    removal = old.ask(old.acme, "remove", "train")
    old.settle()
    assert old.operation(removal).state is OperationState.SUCCEEDED
    assert old.world.domains == {}
    holds(old)


def test_what_is_wanted_stopped_is_stopped_once_its_generation_is_known(backed_up):
    platform, restore = backed_up
    asked(platform, "stop", "start")

    old = observing(restore())
    stop = old.ask(old.acme, "stop", "train")
    old.settle()
    assert running(old)["train"] is not None
    assert count(old, "instance.adopted") == 0
    resume(old)
    old.settle()
    assert (train(old).state, running(old)["train"]) == (InstanceState.STOPPED, None)
    assert old.operation(stop).state.over
    holds(old)


@pytest.mark.parametrize("when", ["before it resumes", "after it resumes"])
def test_an_order_to_delete_reaches_what_is_ahead(backed_up, when):
    platform, restore = backed_up
    asked(platform, "stop", "start", "stop", "start")

    old = observing(restore())
    if when == "after it resumes":
        resume(old)
    removal = old.ask(old.acme, "remove", "train")
    old.settle()
    if when == "before it resumes":
        assert set(running(old)) == {"train"}
        resume(old)
        old.settle()
    assert old.operation(removal).state is OperationState.SUCCEEDED
    assert (old.world.domains, old.world.volumes, count(old, "instance.adopted")) == ({}, {}, 1)
    with pytest.raises(NotFoundError):
        train(old)
    holds(old)


def test_what_was_deleted_after_the_backup_is_gone_and_nobody_tries_again(backed_up):
    platform, restore = backed_up
    asked(platform, "stop", "start", "remove")

    old = observing(restore())
    gone = train(old)
    assert gone.error["code"] == "instance.gone"
    assert (standing(old).ahead, standing(old).gone) == ((), (gone.id,))
    resume(old)
    old.settle()
    records, revision = count(old), old.host().revision
    old.settle()
    assert (count(old), old.host().revision) == (records, revision)
    assert old.said.ok
    assert train(old).error["code"] == "instance.gone"
    for verb, code in (("start", "instance.gone"), ("stop", "instance.not_running")):
        with pytest.raises(ConflictError) as told:
            old.ask(old.acme, verb, "train")
        assert told.value.code == code
    holds(old)

    removal = old.ask(old.acme, "remove", "train")
    old.settle()
    assert old.operation(removal).state is OperationState.SUCCEEDED
    assert standing(old).gone == ()
    old.create(old.acme, "train")
    old.settle()
    assert train(old).state is InstanceState.RUNNING
    holds(old)


def test_a_volume_that_was_erased_after_the_backup_never_comes_back_empty(platform, back_up):
    platform.volume(platform.acme, "data")
    platform.create(platform.acme, "train", volumes=("data",))
    platform.settle()
    restore = back_up()
    asked(platform, "stop")
    platform.wire(platform.acme, "detach", "train", "data")
    platform.erase(platform.acme, "data")
    platform.settle()
    asked(platform, "start")

    old = observing(restore())
    data = old.seen_volume(old.acme, "data")
    assert standing(old).ahead == (train(old).id,)
    resume(old)
    old.settle()
    # It runs with other disks than the database says: it is not restarted behind its tenant's back.
    assert train(old).error["code"] == "instance.changed_without_generation"
    assert running(old)["train"] is not None

    asked(old, "stop", "start")
    assert train(old).error["code"] == "volume.fenced"
    assert data.id not in old.world.volumes
    records = count(old)
    old.settle()
    assert count(old) == records

    asked(old, "stop")
    old.wire(old.acme, "detach", "train", "data")
    asked(old, "start")
    assert train(old).state is InstanceState.RUNNING
    erasing = old.erase(old.acme, "data")
    old.settle()
    assert old.operation(erasing).state is OperationState.SUCCEEDED
    holds(old)


def test_a_volume_that_is_on_an_instance_since_the_backup_is_kept_and_comes_off_by_a_restart(
    platform, back_up
):
    platform.volume(platform.acme, "data")
    for name in ("first", "train"):
        platform.create(platform.acme, name, volumes=("data",) if name == "first" else ())
        platform.settle()
    platform.ask(platform.acme, "remove", "first")
    platform.settle()
    restore = back_up()
    asked(platform, "stop")
    platform.wire(platform.acme, "attach", "train", "data")
    asked(platform, "start")
    written = dict(platform.world.volumes)

    old = observing(restore())
    resume(old)
    old.settle()
    data = old.seen_volume(old.acme, "data")
    assert data.state is VolumeState.AVAILABLE
    erasing = old.erase(old.acme, "data")
    old.settle()
    # A running VM has it open: the order waits.
    assert (old.operation(erasing).state.over, old.world.volumes) == (False, written)
    asked(old, "stop", "start")
    assert old.operation(erasing).state is OperationState.SUCCEEDED
    assert set(written) - set(old.world.volumes) == {data.id}
    assert train(old).state is InstanceState.RUNNING
    holds(old)


def says_stale(platform: Platform, held: int | None, code: str = "instance.stale") -> None:
    """The host reports about its one instance as if it were ahead."""
    error = FencedError(code, "x", held_generation=held)
    seen = dataclasses.replace(
        platform.said.instances[0], phase=Phase.ERROR, error=error.as_dict(), held_generation=held
    )
    whole = dataclasses.replace(platform.said, instances=(seen,))
    said = reports.Said(platform.world.boot_id, "test", None, whole, None)
    with platform.store.unit_of_work(Actor(kind="host", id=platform.host_id)) as tx:
        reports.received(tx, platform.host_id, said)


def test_a_database_that_was_never_restored_does_not_take_a_hosts_word(platform):
    platform.create(platform.acme, "train")
    platform.settle()
    for code in ("instance.stale", "instance.fenced"):
        says_stale(platform, 7, code)
        now = train(platform)
        assert (now.generation, now.error["code"]) == (1, code)


@pytest.mark.parametrize("held", [None, 0, 1, MAX_INTEGER + 1])
def test_only_a_later_generation_that_can_be_recorded_is_taken_over(platform, held):
    platform.create(platform.acme, "train")
    say_restored(platform)
    resume(platform, force=True)
    platform.settle()
    says_stale(platform, held)
    assert (train(platform).generation, count(platform, "instance.adopted")) == (1, 0)
    says_stale(platform, 9, "instance.other")
    assert (train(platform).generation, count(platform, "instance.adopted")) == (1, 0)
    says_stale(platform, 2)
    assert (train(platform).generation, count(platform, "instance.adopted")) == (2, 1)


def test_a_host_that_was_not_heard_before_resuming_is_taken_over_from_later(backed_up):
    platform, restore = backed_up
    asked(platform, "stop", "start")
    old = restore()
    say_restored(old)
    resume(old, force=True)
    before = running(old)
    old.settle()
    assert (train(old).state, running(old)) == (InstanceState.RUNNING, before)
    assert count(old, "instance.adopted") == 1


def test_a_host_can_be_drained_whose_instances_are_gone(backed_up):
    platform, restore = backed_up
    asked(platform, "remove")
    old = observing(restore())
    resume(old)
    old.settle()
    drained = begin(old)
    turn(old)
    assert old.host().state is HostState.DRAINED
    assert old.operation(drained).state is OperationState.SUCCEEDED
