"""A database restored from yesterday destroys nothing, shows what does not agree, goes on when told to."""

from __future__ import annotations

import pytest
from sqlalchemy import select

from orchestrator.controller import deployment, hosts, reports, strays
from orchestrator.controller.checks import violations
from orchestrator.model.actor import CONTROLLER, Actor
from orchestrator.model.errors import ConflictError, FencedError, NotFoundError
from orchestrator.model.states import InstanceState
from orchestrator.store.tables.audit import AuditRecordRow
from orchestrator.store.unit_of_work import table_of
from tests.unit.controller.platform import Platform
from tests.unit.controller.restoring import back_up, resume, running, say_restored

__all__ = ["back_up"]

RECORDS = table_of(AuditRecordRow)


def records(platform: Platform) -> list[str]:
    with platform.store.reading() as tx:
        return [row.kind for row in tx.all(select(RECORDS.c.kind).order_by(RECORDS.c.at_ms))]


def id_of(platform: Platform, name: str) -> str:
    return next(
        each.spec.instance.id for each in platform.world.domains.values() if each.spec.instance.name == name
    )


def test_restored_from_yesterday_destroys_nothing(platform, back_up):
    platform.create(platform.acme, "kept")
    platform.create(platform.globex, "gone")
    platform.settle()
    restore = back_up()
    platform.ask(platform.globex, "remove", "gone")
    platform.settle()
    platform.create(platform.globex, "new")
    platform.settle()
    before, changes = running(platform), platform.world.changes
    assert set(before) == {"kept", "new"}
    newcomer = id_of(platform, "new")

    old = restore()
    say_restored(old)
    with pytest.raises(ConflictError) as unheard:
        resume(old)
    assert unheard.value.code == "deployment.unheard"
    waiting = old.create(old.acme, "late")
    old.ask(old.acme, "remove", "kept")
    old.settle()

    # Nothing was destroyed, made or placed, and the removal that was asked for is not handed out.
    assert (running(old), old.world.changes) == (before, changes)
    assert old.assignment().observe_only
    assert old.assignment().absent == ()
    assert old.instance(old.acme, "late").state is InstanceState.PENDING
    assert old.instance(old.acme, "kept").state is InstanceState.DELETING
    # What it believes and is gone is shown, what it does not know is listed.
    lost = old.instance(old.globex, "gone")
    assert (lost.state, lost.error["code"]) == (InstanceState.NEEDS_ATTENTION, "instance.gone")
    host = old.host()
    assert {"kind": "instance", "id": newcomer} in host.strays
    assert id_of(old, "kept") not in {each["id"] for each in host.strays}
    assert host.error["code"] == "host.stray_instances"
    with old.store.reading() as tx:
        standing = deployment.standing(tx)
        assert (standing.unheard, standing.strays) == ((), len(host.strays))
        assert (standing.ahead, standing.gone) == ((), (lost.id,))
        assert violations(tx) == ()

    # Whoever still runs on the database that was given up gives no orders any more.
    with pytest.raises(FencedError):
        platform.apply()

    resume(old)
    assert not old.assignment().observe_only
    old.settle()
    # The removal is followed now. What nobody ordered away runs on, and its host takes nothing new.
    assert set(running(old)) == {"new"}
    assert running(old)["new"] == before["new"]
    assert old.instance(old.acme, "late").state is InstanceState.PENDING
    assert old.instance(old.globex, "gone").error["code"] == "instance.gone"

    for stray in [each for each in old.host().strays if each["kind"] in ("instance", "volume")]:
        with old.store.unit_of_work(CONTROLLER) as tx:
            strays.remove(tx, old.host_id, stray["kind"], stray["id"], "nobody knows it")
    old.settle()
    assert (old.host().strays, old.host().error) == ((), None)
    assert set(running(old)) == {"late"}
    assert old.operation(waiting).state.over
    assert {"deployment.restored", "deployment.resume", "host.strays", "host.remove_stray"} <= set(
        records(old)
    )
    with old.store.reading() as tx:
        assert violations(tx) == ()


def test_what_waited_yesterday_and_runs_by_now_gets_no_second_place(platform, back_up):
    platform.create(platform.acme, "train")
    restore = back_up()
    platform.settle()
    assert set(running(platform)) == {"train"}

    old = restore()
    say_restored(old)
    old.settle()
    resume(old)
    old.settle()

    waited = old.instance(old.acme, "train")
    assert (waited.state, waited.error["code"]) == (InstanceState.ERROR, "instance.runs_elsewhere")
    assert [each["id"] for each in old.host().strays if each["kind"] == "instance"] == [waited.id]
    with old.store.reading() as tx:
        assert violations(tx) == ()


def test_an_older_database_whose_operator_forgot_to_say_so_is_shown(platform, back_up):
    platform.create(platform.acme, "train")
    platform.settle()
    restore = back_up()
    for verb in ("stop", "start"):
        platform.ask(platform.acme, verb, "train")
        platform.settle()
    before = running(platform)

    old = restore()
    with pytest.raises(FencedError) as refused:
        old.apply()
    said = reports.Said(old.world.boot_id, "test", None, None, refused.value.as_dict())
    with old.store.unit_of_work(Actor(kind="host", id=old.host_id)) as tx:
        reports.received(tx, old.host_id, said)

    host = old.host()
    assert host.error["code"] == "host.ahead"
    assert "bulkhead controller restored" in host.error["hint"]
    old.create(old.globex, "late")
    assert old.schedule().placed == 0
    assert running(old) == before

    say_restored(old)
    old.settle()
    assert old.host().error is None
    assert running(old) == before


def test_epochs_only_grow_and_beat_those_that_a_backup_forgot(platform, back_up):
    restore = back_up()
    say_restored(platform)
    with platform.store.reading() as tx:
        first = deployment.get(tx).epoch
    platform.settle()
    platform.store.clock = lambda: first * 1000 + 5000
    say_restored(platform)

    old = restore()
    old.store.clock = lambda: first * 1000 + 9000
    say_restored(old)
    old.settle()
    with old.store.reading() as tx:
        assert deployment.get(tx).epoch == first + 9
    assert old.host().applied_epoch == first + 9


def test_a_clock_that_stands_still_raises_the_epoch_all_the_same(platform):
    platform.store.clock = lambda: 1000
    for epoch in (2, 3):
        say_restored(platform)
        with platform.store.reading() as tx:
            assert deployment.get(tx).epoch == epoch


def test_resume_is_for_what_observes_and_can_be_forced(platform):
    with pytest.raises(ConflictError) as told:
        resume(platform)
    assert told.value.code == "deployment.not_observing"
    say_restored(platform)
    resume(platform, force=True)
    with platform.store.reading() as tx:
        assert not deployment.get(tx).observe_only


def test_an_order_against_a_stray_names_one_that_was_reported(platform):
    with platform.store.unit_of_work(CONTROLLER) as tx:
        tx.note(
            strays._HOSTS.update().values(
                strays=[{"kind": "port", "id": "prt_a"}, {"kind": "volume", "id": "vol_a"}]
            )
        )

    def remove(kind: str, identity: str) -> None:
        with platform.store.unit_of_work(CONTROLLER) as tx:
            strays.remove(tx, "node1", kind, identity, "x")

    with pytest.raises(NotFoundError) as told:
        remove("instance", "vm_a")
    assert told.value.code == "stray.not_reported"
    with pytest.raises(ConflictError) as told:
        remove("port", "prt_a")
    assert told.value.code == "stray.goes_along"
    remove("volume", "vol_a")
    with pytest.raises(ConflictError) as told:
        remove("volume", "vol_a")
    assert told.value.code == "stray.ordered"
    with pytest.raises(NotFoundError), platform.store.unit_of_work(CONTROLLER) as tx:
        hosts.get(tx, "node9")
