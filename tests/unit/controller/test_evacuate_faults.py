"""A crash at every commit of an evacuation and of the return, before it and after it: all converges."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.controller import strays
from orchestrator.model.actor import CONTROLLER
from orchestrator.model.states import InstanceState
from tests.unit.controller.machines import Machine, broken, come_back, say, turn
from tests.unit.controller.platform import Platform
from tests.unit.controller.test_evacuate import begin
from tests.unit.controller.test_faults import Crashing, again

#: Units of work of one life, and a few more; the count is checked by the test below.
COMMITS = 26


def life(platform: Platform, other: Platform) -> None:
    """Lose a host with one instance, run it elsewhere, let the host come back and take away what is stale."""
    again(platform, lambda: say(platform, "cordon"))
    again(platform, lambda: say(platform, "fence"))
    again(platform, lambda: begin(platform))
    rounds(platform, other)
    again(platform, lambda: come_back(platform))
    again(platform, lambda: away(platform))
    rounds(platform, platform)


def rounds(platform: Platform, machine: Platform) -> None:
    for _ in range(2):
        for step in (platform.schedule, machine.apply, machine.report, lambda: turn(platform)):
            again(platform, step)


def away(platform: Platform) -> None:
    train = platform.instance(platform.acme, "train")
    with platform.store.unit_of_work(CONTROLLER) as tx:
        strays.remove(tx, "node1", "instance", train.id, "looked")


@pytest.fixture
def running(sqlite_platform: Platform, tmp_path: Path) -> tuple[Platform, Machine]:
    platform = sqlite_platform
    other = Machine(platform, "node2", tmp_path)
    say(platform, "cordon", "node2")
    platform.create(platform.acme, "train")
    platform.settle()
    say(platform, "uncordon", "node2")
    return platform, other


def holds(platform: Platform, other: Platform) -> None:
    train = platform.instance(platform.acme, "train")
    assert (train.state, train.host_id) == (InstanceState.RUNNING, other.host_id)
    assert (platform.world.domains, platform.world.volumes, platform.host().error) == ({}, {}, None)
    assert [each.spec.instance.name for each in other.world.domains.values()] == ["train"]
    assert broken(platform) == ()


def test_without_a_fault(running):
    platform, other = running
    watcher = Crashing(platform.store, 10_000, after=False)
    life(platform, other)
    holds(platform, other)
    taken = 10_000 - watcher._left
    assert taken <= COMMITS <= taken + 6, taken


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("number", range(1, COMMITS + 1))
def test_a_crash_at_any_commit(running, number, after):
    platform, other = running
    crash = Crashing(platform.store, number, after=after)
    life(platform, other)
    # Whatever was left over is done by the turns that come anyway.
    rounds(platform, other)
    rounds(platform, platform)
    holds(platform, other)
    assert crash.met or number > COMMITS - 7
