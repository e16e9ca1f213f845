"""Draining as each instance says: stop, move, refuse. Both databases, two simulated hosts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sqlalchemy import select

from orchestrator.model.states import HostState, InstanceState, OperationState, VolumeState
from orchestrator.store.nouns import OPERATIONS, STALE
from orchestrator.store.rows import PLATFORM
from orchestrator.store.tables.audit import AuditRecordRow
from orchestrator.store.unit_of_work import table_of
from tests.unit.controller.machines import Machine, broken, say
from tests.unit.controller.platform import Platform
from tests.unit.controller.test_drain import begin, later, told, turn


@pytest.fixture
def other(platform: Platform, tmp_path: Path) -> Machine:
    made = Machine(platform, "node2", tmp_path)
    say(platform, "cordon", "node2")
    return made


def run(platform: Platform, other: Machine, rounds: int = 4) -> None:
    for _ in range(rounds):
        turn(platform)
        platform.schedule()
        for each in (platform, other):
            each.apply()
            each.report()


def test_three_instances_end_as_they_were_declared(platform, other):
    acme = platform.acme
    for what in ("stop", "move", "refuse"):
        platform.create(acme, what, on_drain=what)
    platform.settle()
    was = platform.instance(acme, "move")
    pids = {each.spec.instance.name: each.pid for each in platform.world.domains.values()}
    say(platform, "uncordon", "node2")

    operation = begin(platform, "each", deadline_s=600)
    run(platform, other)

    stop, move, refuse = (platform.instance(acme, each) for each in ("stop", "move", "refuse"))
    assert (stop.state, stop.host_id) == (InstanceState.STOPPED, platform.host_id)
    assert (move.state, move.host_id) == (InstanceState.RUNNING, other.host_id)
    assert (move.id, move.generation > was.generation) == (was.id, True)
    assert (move.rebuilt["reason"], [each["name"] for each in move.rebuilt["lost_volumes"]]) == (
        "dimm",
        ["move-boot"],
    )
    assert (refuse.state, refuse.host_id) == (InstanceState.RUNNING, platform.host_id)
    here = {each.spec.instance.name: each.pid for each in platform.world.domains.values()}
    assert here == {"stop": None, "refuse": pids["refuse"]}
    assert platform.seen_volume(acme, "move-boot").host_id == other.host_id
    assert set(platform.world.volumes) == {
        platform.seen_volume(acme, name).id for name in ("stop-boot", "refuse-boot")
    }
    # Of its tenant's operations one tells of the move, from the stop to the other host.
    with platform.store.reading() as tx:
        moved = OPERATIONS.get(tx, PLATFORM, move.operation_id)
    assert (moved.kind, moved.state) == ("instance.rebuild", OperationState.SUCCEEDED)
    assert told(platform, operation) == ("running", 1, 2)
    assert broken(platform) == ()

    later(platform, 601)
    run(platform, other)
    failed = platform.operation(operation)
    assert (failed.state, failed.error["code"]) == (OperationState.FAILED, "host.drain_overdue")
    assert refuse.id in failed.error["message"]
    assert platform.instance(acme, "refuse").state is InstanceState.RUNNING
    assert platform.host().state is HostState.DRAINING

    platform.ask(acme, "stop", "refuse")
    run(platform, other)
    assert (platform.host().state, platform.host().error) == (HostState.DRAINED, None)
    assert broken(platform) == ()


def test_what_moves_and_finds_no_place_waits_off_its_host(platform, other):
    platform.create(platform.acme, "train", on_drain="move")
    platform.settle()
    operation = begin(platform, "each")
    run(platform, other)
    assert platform.instance(platform.acme, "train").state is InstanceState.PENDING
    assert platform.operation(operation).state is OperationState.SUCCEEDED
    assert (platform.world.domains, platform.world.volumes) == ({}, {})
    with platform.store.reading() as tx:
        assert STALE.where(tx, PLATFORM) == []
    say(platform, "uncordon", "node2")
    run(platform, other)
    assert platform.instance(platform.acme, "train").host_id == other.host_id
    assert broken(platform) == ()


def test_what_has_data_of_its_own_is_stopped_instead_of_moved(platform, other):
    platform.volume(platform.acme, "data")
    platform.create(platform.acme, "train", on_drain="move", volumes=("data",))
    platform.settle()
    say(platform, "uncordon", "node2")
    begin(platform, "each")
    run(platform, other)
    train = platform.instance(platform.acme, "train")
    assert (train.state, train.host_id, train.rebuilt) == (InstanceState.STOPPED, platform.host_id, None)
    assert platform.seen_volume(platform.acme, "data").state is VolumeState.IN_USE
    assert platform.host().state is HostState.DRAINED
    assert broken(platform) == ()


def test_what_its_tenant_had_stopped_keeps_its_place(platform, other):
    platform.create(platform.acme, "train", on_drain="move")
    platform.settle()
    platform.ask(platform.acme, "stop", "train")
    platform.settle()
    say(platform, "uncordon", "node2")
    begin(platform, "each")
    run(platform, other)
    assert platform.instance(platform.acme, "train").host_id == platform.host_id
    assert platform.host().state is HostState.DRAINED


@pytest.mark.parametrize(("policy", "state"), [("stop", "stopped"), ("wait", "running")])
def test_an_operators_word_goes_before_theirs(platform, other, policy, state):
    for what in ("move", "refuse"):
        platform.create(platform.acme, what, on_drain=what)
    platform.settle()
    say(platform, "uncordon", "node2")
    begin(platform, policy)
    run(platform, other)
    for what in ("move", "refuse"):
        found = platform.instance(platform.acme, what)
        assert (found.state.value, found.host_id) == (state, platform.host_id)


def test_a_move_that_is_cut_short_by_uncordoning_is_finished_by_its_tenant(platform, other):
    """Uncordoned between the stop and the move: it is stopped where it was, and starts like any other."""
    platform.create(platform.acme, "train", on_drain="move")
    platform.settle()
    begin(platform, "each")
    turn(platform)
    platform.apply()
    say(platform, "uncordon")
    platform.report()
    run(platform, other)
    stopped = platform.instance(platform.acme, "train")
    assert stopped.state is InstanceState.STOPPED
    platform.ask(platform.acme, "start", "train")
    with platform.store.reading() as tx:
        assert OPERATIONS.get(tx, PLATFORM, stopped.operation_id).state is OperationState.CANCELLED
    run(platform, other)
    train = platform.instance(platform.acme, "train")
    assert (train.state, train.host_id) == (InstanceState.RUNNING, platform.host_id)
    assert broken(platform) == ()


def whereabouts(platform: Platform) -> dict[str, tuple[InstanceState, str | None]]:
    """State and host of each instance by its name."""
    return {each.name: (each.state, each.host_id) for each in platform.all_instances()}


def test_each_runs_on_until_its_own_deadline(platform, other):
    acme = platform.acme
    for what in ("stop", "move", "refuse"):
        platform.create(acme, what, on_drain=what, drain_deadline_s=300)
    platform.settle()
    say(platform, "uncordon", "node2")

    operation = begin(platform, "each", deadline_s=600)
    run(platform, other)
    later(platform, 299)
    run(platform, other)
    as_before = (InstanceState.RUNNING, platform.host_id)
    assert whereabouts(platform) == dict.fromkeys(("stop", "move", "refuse"), as_before)
    assert told(platform, operation) == ("running", 0, 3)

    later(platform, 2)
    run(platform, other)
    assert whereabouts(platform) == {
        "stop": (InstanceState.STOPPED, platform.host_id),
        "refuse": (InstanceState.STOPPED, platform.host_id),
        "move": (InstanceState.RUNNING, other.host_id),
    }
    assert platform.host().state is HostState.DRAINED
    assert platform.operation(operation).state is OperationState.SUCCEEDED
    assert broken(platform) == ()


def test_an_own_deadline_past_the_drains_is_kept_and_met(platform, other):
    platform.create(platform.acme, "train", drain_deadline_s=900)
    platform.settle()
    operation = begin(platform, "each", deadline_s=600)
    later(platform, 601)
    run(platform, other)
    assert platform.operation(operation).error["code"] == "host.drain_overdue"
    assert platform.instance(platform.acme, "train").state is InstanceState.RUNNING

    later(platform, 300)
    run(platform, other)
    assert platform.instance(platform.acme, "train").state is InstanceState.STOPPED
    assert platform.host().state is HostState.DRAINED
    assert broken(platform) == ()


def test_an_operator_who_stops_all_waits_for_nobodys_deadline(platform, other):
    platform.create(platform.acme, "train", drain_deadline_s=900)
    platform.settle()
    begin(platform, "stop")
    run(platform, other)
    assert platform.instance(platform.acme, "train").state is InstanceState.STOPPED


@pytest.mark.parametrize(
    ("policy", "wanted", "announced"),
    [
        ("each", {"on_drain": "refuse"}, {"on_drain": "refuse", "deadline_s": None}),
        ("each", {"drain_deadline_s": 60}, {"on_drain": "stop", "deadline_s": 60}),
        ("each", {"on_drain": "stop"}, None),
        ("stop", {"on_drain": "refuse"}, None),
    ],
)
def test_a_tenant_whose_instance_runs_on_hears_of_the_drain(platform, policy, wanted, announced):
    platform.create(platform.acme, "train", **wanted)
    platform.settle()
    begin(platform, policy)
    records = table_of(AuditRecordRow)
    with platform.store.reading() as tx:
        rows = tx.all(
            select(records.c.stream, records.c.body).where(records.c.kind == "instance.drain_announced")
        )
    heard = [(row.stream, json.loads(row.body)["details"]) for row in rows]
    assert heard == ([] if announced is None else [(platform.acme.tenant_id, announced)])
