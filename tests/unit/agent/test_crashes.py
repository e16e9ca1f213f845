"""At every fault point of create, stop, change and delete the agent dies or the effect fails; all converges.

The points are not listed anywhere: a recording run finds them, and then each passage is cut once. With
several instances at once their order varies from run to run; how many there are does not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from images.labhost.tenants import assignment_of, everything_absent
from orchestrator.agent import faults
from orchestrator.model.assignment import Assignment, Power
from orchestrator.model.errors import HostError
from tests.unit.agent.fleet import ACME, GLOBEX, Fleet
from tests.unit.agent.world_view import broken_invariants


class Died(BaseException):
    """The agent's process is gone: nothing of it runs any more, not even a `finally`."""


@pytest.fixture(autouse=True)
def _no_hook() -> Iterator[None]:
    yield
    faults.set_hook(None)


def create(fleet: Fleet) -> Assignment:
    """From nothing to two tenants."""
    return fleet.two_tenants(revision=5)


def stop(fleet: Fleet) -> Assignment:
    """Two tenants run; one is told to stop."""
    assignment = fleet.two_tenants(revision=1)
    fleet.apply(assignment)
    first, second = assignment.instances
    stopped = first.model_copy(update={"power": Power.STOPPED})
    return assignment_of([stopped, second], revision=5)


def change(fleet: Fleet) -> Assignment:
    """Two tenants run; one moves to another core under a higher generation."""
    assignment = fleet.two_tenants(revision=1)
    fleet.apply(assignment)
    moved = fleet.instance(ACME, core=1, generation=2)
    return assignment_of([moved, assignment.instances[1]], revision=5)


def delete(fleet: Fleet) -> Assignment:
    """Two tenants run; one goes without a trace."""
    assignment = fleet.two_tenants(revision=1)
    fleet.apply(assignment)
    gone, stays = assignment.instances
    return assignment_of([stays], revision=5, absent=everything_absent([gone]))


SCRIPTS = [create, stop, change, delete]
AT_ONCE = pytest.mark.parametrize("at_once", [1, 4])


def passages(script: Callable[[Fleet], Assignment], tmp: Path, at_once: int) -> list[str]:
    """Record the fault points that a run passes, in order."""
    fleet = Fleet(tmp, at_once=at_once)
    assignment = script(fleet)
    seen: list[str] = []
    faults.set_hook(seen.append)
    report = fleet.apply(assignment)
    faults.set_hook(None)
    assert report.ok, report
    return seen


@AT_ONCE
@pytest.mark.parametrize("script", SCRIPTS)
def test_agent_dies_at_every_point_and_the_next_one_converges(script, at_once, tmp_path):
    points = passages(script, tmp_path / "record", at_once)
    wanted = Fleet(tmp_path / "wanted")
    wanted_assignment = script(wanted)
    wanted.apply(wanted_assignment)
    assert len(points) > 10

    for index, name in enumerate(points):
        fleet = Fleet(tmp_path / f"cut{index}", at_once=at_once)
        assignment = script(fleet)
        bystander = fleet.world.domains.get(f"vm_{GLOBEX.tenant}_{GLOBEX.name}")
        pid_before = bystander.pid if bystander else None
        count = 0

        def die(_point: str, index: int = index) -> None:
            nonlocal count
            count += 1
            if count > index:
                raise Died

        faults.set_hook(die)
        with pytest.raises(Died):
            fleet.apply(assignment)
        faults.set_hook(None)
        assert broken_invariants(fleet, settled=False) == (), f"right after dying at {index} {name}"

        report = fleet.apply(assignment)

        assert report.ok, f"after dying at {index} {name}: {report}"
        assert fleet.snapshot() == wanted.snapshot(), f"after dying at {index} {name}"
        assert broken_invariants(fleet, settled=True) == (), f"after dying at {index} {name}"
        again = fleet.apply(assignment)
        assert not again.changed, f"after dying at {index} {name}: {again.steps}"
        if pid_before is not None:
            assert fleet.world.domains[bystander.spec.instance.id].pid == pid_before


@AT_ONCE
@pytest.mark.parametrize("script", SCRIPTS)
def test_effect_fails_at_every_point_and_the_next_agent_converges(script, at_once, tmp_path):
    points = passages(script, tmp_path / "record", at_once)
    wanted = Fleet(tmp_path / "wanted")
    wanted.apply(script(wanted))

    for index in range(len(points)):
        fleet = Fleet(tmp_path / f"fail{index}", at_once=at_once)
        assignment = script(fleet)
        count, name = 0, ""

        def fail(point: str, index: int = index) -> None:
            nonlocal count, name
            count += 1
            if count == index + 1:
                name = point
                raise HostError("host.injected", f"fault injected at {point}")

        faults.set_hook(fail)
        try:
            first_ok = fleet.apply(assignment).ok
        except HostError:
            first_ok = False
        faults.set_hook(None)
        assert not first_ok or name.startswith("drop_secret"), f"the failure at {name} went unreported"
        assert broken_invariants(fleet, settled=False) == (), f"right after {index} {name} failed"

        report = fleet.apply(assignment)

        assert report.ok, f"after {index} {name} failed: {report}"
        assert fleet.snapshot() == wanted.snapshot(), f"after {index} {name} failed"
        assert broken_invariants(fleet, settled=True) == (), f"after {index} {name} failed"


@AT_ONCE
def test_host_loses_power_at_every_point_of_create_and_comes_back(at_once, tmp_path):
    points = passages(create, tmp_path / "record", at_once)
    wanted = Fleet(tmp_path / "wanted")
    wanted.apply(create(wanted))

    for index, name in enumerate(points):
        fleet = Fleet(tmp_path / f"power{index}", at_once=at_once)
        assignment = create(fleet)
        count = 0

        def die(_point: str, index: int = index) -> None:
            nonlocal count
            count += 1
            if count > index:
                raise Died

        faults.set_hook(die)
        with pytest.raises(Died):
            fleet.apply(assignment)
        faults.set_hook(None)
        fleet.world.reboot()

        report = fleet.apply(assignment)

        assert report.ok, f"after power loss at {index} {name}: {report}"
        assert fleet.snapshot() == wanted.snapshot(), f"after power loss at {index} {name}"


def test_a_snapshot_notices_a_leftover_secret(tmp_path):
    fleet, other = Fleet(tmp_path / "a"), Fleet(tmp_path / "b")
    fleet.apply(create(fleet))
    other.apply(create(other))
    assert fleet.snapshot() == other.snapshot()

    other.world.secrets["vol_left"] = b"x"

    assert fleet.snapshot() != other.snapshot()
    assert broken_invariants(other, settled=True) != ()


def test_tenancy_counts_every_exposure(tmp_path):
    fleet = Fleet(tmp_path)
    assignment = create(fleet)
    fleet.apply(assignment)
    address = assignment.instances[0].devices[0].address

    fleet.world.domains[assignment.instances[0].id].pid = None
    fleet.world.ports = [p for p in fleet.world.ports if p.instance != assignment.instances[0].id]
    fleet.apply(assignment)

    device = dataclasses.asdict(fleet.agent()._journal.state.pool[address])
    assert (device["tenancy"], device["state"]) == (2, "exposed")
