"""More hosts of one platform, each simulated for itself."""

from __future__ import annotations

from pathlib import Path

from orchestrator.agent.host import AgentSettings
from orchestrator.agent.sim import everyday_world
from orchestrator.controller import enrolment, evacuate, hosts
from orchestrator.controller.checks import violations
from orchestrator.model.actor import CONTROLLER
from tests.unit.controller.platform import DIGEST, Platform


class Machine(Platform):
    """One more host; what its agent does is done by `apply` and `report`."""

    def __init__(self, platform: Platform, name: str, folder: Path) -> None:
        self.store = platform.store
        self.now_s = platform.now_s
        self.world = everyday_world()
        self.world.images.add(DIGEST)
        self.world.boot_id = f"boot-{name}"
        self.settings = AgentSettings(
            state_dir=folder / name / "state", run_dir=folder / name / "run", at_once=1
        )
        with self.store.unit_of_work(CONTROLLER) as tx:
            self.host_id = hosts.create(tx, name, 100).id
        self.said = None
        self.report()


def say(platform: Platform, verb: str, name: str = "node1") -> None:
    with platform.store.unit_of_work(CONTROLLER) as tx:
        hosts.change_state(tx, name, verb, "no power")


def fence(platform: Platform, name: str = "node1") -> None:
    say(platform, "cordon", name)
    say(platform, "fence", name)


def turn(platform: Platform) -> None:
    with platform.store.reading() as tx:
        due = evacuate.under_way(tx)
    for host_id in due:
        with platform.store.unit_of_work(CONTROLLER) as tx:
            evacuate.turn(tx, host_id)


def run(platform: Platform, *machines: Platform, rounds: int = 4) -> None:
    """Let everything happen that would happen by itself, on these hosts alone."""
    for _ in range(rounds):
        platform.schedule()
        for each in machines:
            each.apply()
            each.report()
        turn(platform)


def come_back(machine: Platform) -> None:
    """Its agent is let in again by a new join token, which is all that enrolling does to its row."""

    with machine.store.unit_of_work(CONTROLLER) as tx:
        enrolment.begin_anew(tx, machine.host_id)
        tx.record("host.enrol", ("host", machine.host_id), tenant=None)
    machine.said = None
    machine.report()


def broken(platform: Platform) -> tuple[str, ...]:
    with platform.store.reading() as tx:
        return violations(tx)
