"""Taking a host out for good: only when nothing is left on it, or said to be lost. Both databases."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import select, update

from orchestrator.controller import expiry, host_removal, hosts
from orchestrator.model.actor import CONTROLLER
from orchestrator.model.errors import ConflictError, NotFoundError
from orchestrator.model.states import HostState, InstanceState, VolumeState
from orchestrator.store.nouns import GPUS, HOSTS, STALE
from orchestrator.store.rows import PLATFORM
from orchestrator.store.tables.audit import AuditRecordRow
from orchestrator.store.tables.fleet import HostMemoryRow, HostRow
from orchestrator.store.unit_of_work import table_of
from tests.unit.controller.machines import broken, run, say
from tests.unit.controller.platform import Platform
from tests.unit.controller.test_drain import begin as drain
from tests.unit.controller.test_drain import turn as drain_turn
from tests.unit.controller.test_evacuate import lose, other

__all__ = ["other"]


def remove(platform: Platform, *, lost: bool = False, name: str = "node1") -> None:
    with platform.store.unit_of_work(CONTROLLER) as tx:
        host_removal.remove(tx, name, "sold", lost=lost)


def drained(platform: Platform) -> None:
    drain(platform)
    drain_turn(platform)
    platform.settle()
    drain_turn(platform)
    assert platform.host().state is HostState.DRAINED


def gone(platform: Platform) -> None:
    """Nobody sees the host or its GPUs; its row is there, and nothing is broken."""
    with pytest.raises(NotFoundError):
        platform.host()
    with platform.store.reading() as tx:
        assert [each.id for each in HOSTS.where(tx, PLATFORM)].count(platform.host_id) == 0
        assert GPUS.where(tx, PLATFORM, GPUS.table.c.host_id == platform.host_id) == []
        memory = table_of(HostMemoryRow)
        assert tx.all(select(memory).where(memory.c.host_id == platform.host_id)) == []
        row = tx.first(select(HOSTS.table).where(HOSTS.table.c.id == platform.host_id))
        assert (row.state, row.reason, row.used_disk_gib) == ("removed", "sold", 0)
        assert expiry.of_host(tx, platform.host_id) is None
        records = table_of(AuditRecordRow)
        assert len(tx.all(select(records.c.seq).where(records.c.kind == "host.remove"))) == 1
    assert broken(platform) == ()


def test_a_drained_host_is_removed_and_its_name_is_free(platform):
    drained(platform)
    remove(platform)
    gone(platform)
    with platform.store.unit_of_work(CONTROLLER) as tx:
        assert hosts.create(tx, "node1", 10).id != platform.host_id
    with pytest.raises(NotFoundError):
        platform.report()
    # The scheduler does not see it either.
    platform.create(platform.acme, "late")
    platform.schedule()
    assert platform.instance(platform.acme, "late").state is InstanceState.PENDING


def test_what_is_on_it_keeps_it(platform):
    platform.volume(platform.acme, "data")
    platform.create(platform.acme, "train", volumes=("data",))
    platform.settle()
    drained(platform)
    for lost in (False, True):
        # No option gives up a tenant's instance: that is deleted, or evacuated.
        with pytest.raises(ConflictError) as held:
            remove(platform, lost=lost)
        assert (held.value.code, "1 instances" in held.value.message) == ("host.in_use", True)
        assert platform.seen_volume(platform.acme, "data").state is VolumeState.IN_USE
    platform.ask(platform.acme, "remove", "train")
    platform.settle()
    with pytest.raises(ConflictError) as volumes:
        remove(platform)
    assert "1 volumes" in volumes.value.message
    assert "--lost" in volumes.value.hint
    remove(platform, lost=True)
    data = platform.seen_volume(platform.acme, "data")
    assert (data.state, data.host_id) == (VolumeState.LOST, None)
    gone(platform)
    # Its tenant is free to clear it away.
    erased = platform.erase(platform.acme, "data")
    assert platform.operation(erased).state.over
    assert broken(platform) == ()


def test_an_evacuated_host_goes_with_what_it_may_still_run(platform, other):
    platform.volume(platform.acme, "data")
    platform.create(platform.acme, "train", volumes=("data",))
    platform.settle()
    lose(platform)
    with pytest.raises(ConflictError) as early:
        remove(platform, lost=True)
    assert early.value.code == "host.evacuating"
    run(platform, other)
    with pytest.raises(ConflictError) as held:
        remove(platform)
    assert "1 instances that were rebuilt elsewhere" in held.value.message
    remove(platform, lost=True)
    gone(platform)
    with platform.store.reading() as tx:
        assert STALE.where(tx, PLATFORM) == []
    assert platform.instance(platform.acme, "train").state is InstanceState.RUNNING
    assert platform.seen_volume(platform.acme, "data").host_id is None


@pytest.mark.parametrize("state", [each for each in HostState if each is not HostState.REMOVED])
def test_only_what_is_out_is_removed(sqlite_platform, state):
    with sqlite_platform.store.unit_of_work(CONTROLLER) as tx:
        tx.note(update(table_of(HostRow)).values(state=state))
    if state in (HostState.DRAINED, HostState.FENCED):
        remove(sqlite_platform)
        gone(sqlite_platform)
        return
    with pytest.raises(ConflictError) as refused:
        remove(sqlite_platform)
    assert (refused.value.code, state.value in refused.value.message) == ("host.state", True)
    assert sqlite_platform.host().state is state


def test_a_host_that_never_came_in_is_removed_as_it_is(platform, tmp_path: Path):
    with platform.store.unit_of_work(CONTROLLER) as tx:
        hosts.create(tx, "node9", 10)
    remove(platform, name="node9")
    with pytest.raises(NotFoundError):
        remove(platform, name="node9")


def test_an_empty_fenced_host_needs_no_evacuation(platform):
    say(platform, "cordon")
    say(platform, "fence")
    remove(platform)
    gone(platform)
