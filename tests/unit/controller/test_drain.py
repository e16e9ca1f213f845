"""Draining a host: what runs is stopped or waited for, progress is told, time has an end. Both databases."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sqlalchemy import update

from orchestrator.controller import deployment, drain, hosts, operations
from orchestrator.controller.caller import Caller
from orchestrator.controller.checks import violations
from orchestrator.model.actor import CONTROLLER
from orchestrator.model.errors import ConflictError, HostError, NotFoundError
from orchestrator.model.operation import Operation
from orchestrator.model.states import HostState, InstanceState, OperationState
from orchestrator.store.ids import new_id
from orchestrator.store.tables.fleet import HostRow
from orchestrator.store.unit_of_work import table_of
from tests.unit.controller.platform import Platform

HOSTS = table_of(HostRow)


def begin(platform: Platform, policy: str = "stop", deadline_s: int = 60) -> Operation:
    operator: Caller = replace(platform.acme, tenant=None)
    with platform.store.unit_of_work(CONTROLLER) as tx:
        return drain.begin(
            tx,
            operator,
            "node1",
            policy=policy,
            deadline_s=deadline_s,
            reason="dimm",
            operation_id=new_id("op"),
        )


def turn(platform: Platform) -> None:
    with platform.store.reading() as tx:
        due = drain.draining(tx)
    for host_id in due:
        with platform.store.unit_of_work(CONTROLLER) as tx:
            drain.turn(tx, host_id)


def say(platform: Platform, verb: str) -> None:
    with platform.store.unit_of_work(CONTROLLER) as tx:
        hosts.change_state(tx, "node1", verb, "enough")


def be(platform: Platform, state: HostState) -> None:
    with platform.store.unit_of_work(CONTROLLER) as tx:
        tx.note(update(HOSTS).values(state=state))


def later(platform: Platform, seconds: int) -> None:
    now = platform.store.clock()
    platform.store.clock = lambda: now + seconds * 1000


def told(platform: Platform, operation: Operation) -> tuple[str, object, object]:
    found = platform.operation(operation)
    last = found.steps[-1]
    return found.state.value, last.get("done"), last.get("total")


def broken(platform: Platform) -> tuple[str, ...]:
    with platform.store.reading() as tx:
        return violations(tx)


def test_what_runs_is_stopped_and_the_host_is_drained(platform):
    for caller, name in ((platform.acme, "one"), (platform.acme, "off"), (platform.globex, "two")):
        platform.create(caller, name)
    platform.settle()
    platform.ask(platform.acme, "stop", "off")
    platform.settle()

    operation = begin(platform)
    assert platform.host().state is HostState.DRAINING
    late = platform.create(platform.acme, "late")
    turn(platform)
    turn(platform)
    assert told(platform, operation) == ("running", 1, 3)
    assert platform.instance(platform.acme, "one").state is InstanceState.STOPPING
    platform.settle()
    turn(platform)

    assert platform.host().state is HostState.DRAINED
    assert platform.host().drain is None
    assert platform.operation(operation).state is OperationState.SUCCEEDED
    states = {each.name: each.state for each in platform.all_instances()}
    stopped = InstanceState.STOPPED
    assert states == {"one": stopped, "two": stopped, "off": stopped, "late": InstanceState.PENDING}
    # The tenant sees its own operation, that a drain began, and keeps what it holds.
    stop = platform.instance(platform.globex, "two")
    with platform.store.reading() as tx:
        theirs = operations.get(tx, platform.globex, stop.operation_id)
    assert (theirs.kind, theirs.state) == ("instance.stop", OperationState.SUCCEEDED)
    assert not platform.operation(late).state.over
    assert broken(platform) == ()


def test_nothing_is_started_there_until_it_is_back(platform):
    platform.create(platform.acme, "one")
    platform.settle()
    begin(platform)
    turn(platform)
    platform.settle()
    for state in (HostState.DRAINING, HostState.DRAINED):
        assert platform.host().state is state
        with pytest.raises(ConflictError) as refused:
            platform.ask(platform.acme, "start", "one")
        assert refused.value.code == "instance.host_draining"
        turn(platform)

    say(platform, "uncordon")
    platform.ask(platform.acme, "start", "one")
    platform.settle()
    assert platform.instance(platform.acme, "one").state is InstanceState.RUNNING


def test_an_empty_host_is_drained_at_once(platform):
    operation = begin(platform)
    turn(platform)
    assert platform.host().state is HostState.DRAINED
    assert platform.operation(operation).state is OperationState.SUCCEEDED


def test_what_was_only_just_placed_is_handed_out_first(platform):
    platform.create(platform.acme, "one")
    platform.schedule()
    begin(platform)
    turn(platform)
    assert platform.instance(platform.acme, "one").state is InstanceState.SCHEDULED
    platform.settle()
    turn(platform)
    platform.settle()
    turn(platform)
    assert platform.instance(platform.acme, "one").state is InstanceState.STOPPED
    assert platform.host().state is HostState.DRAINED
    assert broken(platform) == ()


def test_waiting_stops_nothing_and_ends_when_tenants_do(platform):
    platform.create(platform.acme, "one")
    platform.create(platform.acme, "two")
    platform.settle()
    operation = begin(platform, "wait")
    turn(platform)
    platform.settle()
    assert told(platform, operation) == ("running", 0, 2)
    assert platform.instance(platform.acme, "one").state is InstanceState.RUNNING

    platform.ask(platform.acme, "stop", "one")
    platform.ask(platform.acme, "remove", "two")
    platform.settle()
    turn(platform)
    assert platform.host().state is HostState.DRAINED
    assert platform.operation(operation).state is OperationState.SUCCEEDED


def test_after_the_deadline_what_does_not_stop_wants_attention(platform):
    platform.create(platform.acme, "one")
    platform.create(platform.globex, "two")
    platform.settle()
    stuck = platform.instance(platform.acme, "one").id
    operation = begin(platform, deadline_s=60)
    turn(platform)
    platform.world.failures["stop"] = [HostError("domain.stop_timeout", "no")] * 2
    platform.apply()
    platform.report()
    left = {each.name for each in platform.all_instances() if each.state is not InstanceState.STOPPED}
    later(platform, 59)
    turn(platform)
    assert platform.operation(operation).state is OperationState.RUNNING
    later(platform, 2)
    turn(platform)
    turn(platform)

    failed = platform.operation(operation)
    assert (failed.state, failed.error["code"]) == (OperationState.FAILED, "host.drain_overdue")
    assert stuck in failed.error["message"]
    for each in platform.all_instances():
        if each.name in left:
            assert (each.state, each.error["code"]) == (
                InstanceState.NEEDS_ATTENTION,
                "instance.stop_overdue",
            )
    assert (platform.host().state, platform.host().drain["overdue"]) == (HostState.DRAINING, True)

    # The host goes on trying, and is drained when nothing runs.
    platform.settle()
    turn(platform)
    assert platform.instance(platform.acme, "one").state is InstanceState.STOPPED
    assert platform.host().state is HostState.DRAINED
    assert platform.operation(operation).state is OperationState.FAILED


def test_waiting_past_the_deadline_leaves_what_runs_alone(platform):
    platform.create(platform.acme, "one")
    platform.settle()
    operation = begin(platform, "wait", deadline_s=1)
    later(platform, 2)
    turn(platform)
    platform.settle()
    assert platform.operation(operation).state is OperationState.FAILED
    one = platform.instance(platform.acme, "one")
    assert (one.state, one.error) == (InstanceState.RUNNING, None)
    assert platform.host().state is HostState.DRAINING


@pytest.mark.parametrize(("verb", "state"), [("uncordon", HostState.READY), ("cordon", HostState.CORDONED)])
def test_a_drain_that_is_ended_stops_nothing_more(platform, verb, state):
    platform.create(platform.acme, "one")
    platform.settle()
    operation = begin(platform, "wait")
    say(platform, verb)
    turn(platform)
    platform.settle()

    ended = platform.operation(operation)
    assert (ended.state, ended.error["code"]) == (OperationState.CANCELLED, "host.drain_ended")
    assert (platform.host().state, platform.host().drain) == (state, None)
    assert platform.instance(platform.acme, "one").state is InstanceState.RUNNING


#: What is removed is not found any more.
THERE = [each for each in HostState if each is not HostState.REMOVED]


@pytest.mark.parametrize("state", THERE)
def test_only_a_host_that_could_take_instances_or_is_cordoned_is_drained(platform, state):
    be(platform, state)
    if state in (HostState.READY, HostState.CORDONED):
        begin(platform)
        assert platform.host().state is HostState.DRAINING
        return
    with pytest.raises(ConflictError) as refused:
        begin(platform)
    assert refused.value.code == "host.state"
    assert state.value in refused.value.message
    assert (platform.host().state, platform.host().drain) == (state, None)


#: From which states each verb leads somewhere, and where.
EDGES = {
    "cordon": ({"ready", "unreachable", "drained", "draining"}, HostState.CORDONED),
    "uncordon": ({"cordoned", "drained", "draining"}, HostState.READY),
    "fence": ({"unreachable", "cordoned"}, HostState.FENCED),
}


@pytest.mark.parametrize("state", THERE)
@pytest.mark.parametrize("verb", EDGES)
def test_every_other_edge_is_there_or_is_refused(sqlite_platform, verb, state):
    before, after = EDGES[verb]
    be(sqlite_platform, state)
    if state.value in before:
        say(sqlite_platform, verb)
        assert sqlite_platform.host().state is after
        return
    with pytest.raises(ConflictError) as refused:
        say(sqlite_platform, verb)
    assert refused.value.code == "host.state"
    assert sqlite_platform.host().state is state


def test_while_the_deployment_observes_nothing_is_stopped(platform):
    platform.create(platform.acme, "one")
    platform.settle()
    begin(platform)
    with platform.store.unit_of_work(CONTROLLER) as tx:
        deployment.restored(tx, "x")
    turn(platform)
    assert platform.instance(platform.acme, "one").state is InstanceState.RUNNING


def test_a_host_that_is_not_there(platform):
    with pytest.raises(NotFoundError), platform.store.unit_of_work(CONTROLLER) as tx:
        hosts.change_state(tx, "node9", "cordon", "x")
