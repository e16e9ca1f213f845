"""One host over its link: orders followed and told, refusals told, a controller that is gone survived.

Everything here goes over real TLS; only the controller's memory and the host are simulated.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import json
import threading
from pathlib import Path
from typing import Any

import pytest
from fastapi import Request, Response

from images.labhost.tenants import assignment_of, everything_absent
from orchestrator.agent.link.pace import Backoff, Pace
from orchestrator.agent.link.session import Session
from orchestrator.agent.sim import SimWorld
from orchestrator.model.assignment import Assignment
from orchestrator.model.errors import HostError
from orchestrator.model.protocol import Report
from orchestrator.model.report import HostReport, Phase
from tests.unit.agent.fleet import ACME, Fleet
from tests.unit.link.controller import HOST, Controller, said
from tests.unit.link.listener import eventually
from tests.unit.link.living import BRISK, Life


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet(tmp_path)


@pytest.fixture
def life(controller: Controller, fleet: Fleet, tmp_path: Path) -> Life:
    return Life(controller, fleet.world, tmp_path)


def running(world: SimWorld) -> dict[str, int]:
    return {name: domain.pid for name, domain in world.domains.items() if domain.pid is not None}


def test_order_is_followed_and_told_with_keys_of_the_controller(
    controller: Controller, fleet: Fleet, life: Life
) -> None:
    controller.assign(fleet.two_tenants(revision=7))

    with life:
        found = eventually(lambda: controller.followed(7))

    assert found.report.ok
    assert [each.phase for each in found.report.instances] == [Phase.RUNNING] * 2
    assert found.refusal is None
    assert {volume for _, volume in controller.keys_given} == {"vol_acme_train", "vol_globex_serve"}
    assert fleet.world.secrets == {}
    assert len(running(fleet.world)) == 2


def test_host_without_orders_says_what_it_is_once_and_lives(
    controller: Controller, fleet: Fleet, life: Life
) -> None:
    with life:
        eventually(lambda: len(controller.beats) > 3)

    assert set(controller.beats) == {(HOST, "sim-boot-1")}
    assert [(name, each.report, each.refusal) for name, each in controller.reports] == [(HOST, None, None)]
    assert controller.reports[0][1].facts == fleet.world.facts()
    assert fleet.world.changes == 0


def test_quiet_host_repeats_nothing(controller: Controller, fleet: Fleet, life: Life) -> None:
    controller.assign(fleet.two_tenants())
    with life:
        eventually(lambda: controller.followed(1))
        count, beats = len(controller.reports), len(controller.beats)
        eventually(lambda: len(controller.beats) > beats + 5)

        assert len(controller.reports) == count


def test_new_facts_are_told_and_drivers_are_none(controller: Controller, fleet: Fleet, life: Life) -> None:
    controller.assign(fleet.two_tenants())
    with life:
        eventually(lambda: controller.followed(1))
        assert [each.facts is not None for _, each in controller.reports].count(True) == 1
        address, function = next(iter(fleet.world.functions.items()))
        fleet.world.functions[address] = dataclasses.replace(function, serial="other")

        eventually(lambda: (controller.last() or controller.reports[0][1]).facts)

    facts = controller.reports[-1][1].facts
    assert facts is not None
    assert facts.functions[0].serial == "other"


def test_next_revision_is_followed_and_removals_are_told(
    controller: Controller, fleet: Fleet, life: Life
) -> None:
    both = fleet.two_tenants(revision=1)
    controller.assign(both)
    with life:
        eventually(lambda: controller.followed(1))
        gone, stays = both.instances
        controller.assign(assignment_of([stays], revision=2, absent=everything_absent([gone])))
        eventually(lambda: (said := controller.followed(2)) and said.report and said.report.ok)

    last = controller.followed(2)
    assert last is not None
    assert last.report is not None
    assert {each.id: each.phase for each in last.report.absent} == {
        "vm_acme_train": Phase.ABSENT,
        "vol_acme_train": Phase.ABSENT,
        "gpu_000021000": Phase.ABSENT,
    }
    assert list(running(fleet.world)) == ["vm_globex_serve"]


def test_removal_is_told_even_if_its_report_got_lost(
    controller: Controller, fleet: Fleet, life: Life
) -> None:
    both = fleet.two_tenants(revision=1)
    controller.assign(both)
    lost: list[str] = []

    def lose(request: Request) -> Response | None:
        if not request.url.path.endswith("/report"):
            return None
        lost.append("report")
        return Response(status_code=500)

    with life:
        eventually(lambda: controller.followed(1))
        controller.answer_instead = lose
        controller.assign(assignment_of([], revision=2, absent=everything_absent(both.instances)))
        eventually(lambda: not fleet.world.domains and len(lost) > 3)
        controller.answer_instead = lambda _request: None
        found = eventually(lambda: controller.followed(2))

    assert {each.phase for each in found.report.absent} == {Phase.ABSENT}
    assert len(found.report.absent) == 6


def test_order_that_does_not_fit_is_refused_whole_and_told(
    controller: Controller, fleet: Fleet, life: Life
) -> None:
    good = fleet.instance(ACME)
    elsewhere = good.model_copy(
        update={"devices": (good.devices[0].model_copy(update={"address": "0000:77:00.0"}),)}
    )
    controller.assign(assignment_of([elsewhere], revision=1))
    with life:
        refused = eventually(lambda: (last := controller.last()) and last.refusal)
        assert refused["code"] == "assignment.refused"
        assert "0000:77:00.0" in json.dumps(refused)
        assert fleet.world.changes == 0

        controller.assign(assignment_of([good], revision=2))
        found = eventually(lambda: controller.followed(2))

    assert found.refusal is None
    assert found.report.ok


def test_order_for_another_host_is_refused(controller: Controller, fleet: Fleet, life: Life) -> None:
    controller.assignments[HOST] = fleet.two_tenants().model_copy(update={"host": "hst_other"})
    with life:
        refused = eventually(lambda: (last := controller.last()) and last.refusal)

    assert refused["code"] == "assignment.wrong_host"
    assert fleet.world.changes == 0


def test_older_order_is_refused_and_what_runs_is_left_alone(
    controller: Controller, fleet: Fleet, tmp_path: Path
) -> None:
    """A controller that came back from a backup, and did not say so."""
    first = Life(controller, fleet.world, tmp_path)
    controller.assign(fleet.two_tenants(revision=5))
    with first:
        eventually(lambda: controller.followed(5))
    pids = running(fleet.world)
    everything = everything_absent(fleet.two_tenants().instances)
    controller.assign(assignment_of([], revision=3, absent=everything))
    changes = fleet.world.changes

    with Life(controller, fleet.world, tmp_path, journal=first.journal):
        refused = eventually(lambda: (last := controller.last()) and last.refusal)
        polled = len(controller.polls)
        eventually(lambda: len(controller.polls) > polled + 1)

    assert refused["code"] == "assignment.stale"
    assert running(fleet.world) == pids
    assert fleet.world.changes == changes


def test_unreadable_order_is_refused_and_told(controller: Controller, fleet: Fleet, life: Life) -> None:
    def garble(request: Request) -> Response | None:
        if not request.url.path.endswith("/assignment"):
            return None
        return said(b'{"assignment": {"version": 1, "surprise": 2}}')

    controller.answer_instead = garble
    with life:
        refused = eventually(lambda: (last := controller.last()) and last.refusal)
        controller.answer_instead = lambda _request: None
        controller.assign(fleet.two_tenants())
        found = eventually(lambda: controller.followed(1))

    assert refused["code"] == "assignment.refused"
    assert found.refusal is None


def test_observe_only_changes_nothing(controller: Controller, fleet: Fleet, life: Life) -> None:
    controller.assign(fleet.two_tenants().model_copy(update={"observe_only": True}))
    with life:
        found = eventually(lambda: controller.followed(1))
        beats = len(controller.beats)
        eventually(lambda: len(controller.beats) > beats + 5)

    assert found.report.ok is False
    assert fleet.world.changes == 0
    assert fleet.world.domains == {}


def test_controller_that_is_gone_leaves_vms_running_and_is_found_again(
    controller: Controller, fleet: Fleet, life: Life
) -> None:
    controller.assign(fleet.two_tenants(revision=1))
    with life:
        eventually(lambda: controller.followed(1))
        pids, changes = running(fleet.world), fleet.world.changes
        controller.agents.die()
        try:
            gone = len(life.said)
            eventually(lambda: len(life.said) > gone + 3)
            assert running(fleet.world) == pids
            assert fleet.world.changes == changes
            controller.assign(assignment_of([fleet.instance(ACME)], revision=2))
        finally:
            controller.agents.start()
        found = eventually(lambda: controller.followed(2))

    assert found.report.ok
    # Absence never destroys: the other one was not ordered away.
    assert running(fleet.world) == pids


def test_vm_that_died_is_told_and_comes_back(controller: Controller, fleet: Fleet, life: Life) -> None:
    controller.assign(fleet.two_tenants())
    with life:
        eventually(lambda: controller.followed(1))
        before = fleet.world.domains["vm_acme_train"].pid
        reports = len(controller.reports)
        fleet.world.domains["vm_acme_train"].pid = None
        eventually(lambda: fleet.world.domains["vm_acme_train"].pid)
        eventually(
            lambda: (
                (last := controller.followed(1)) and last.report and last.report.instances[0].pid != before
            )
        )

    assert fleet.world.domains["vm_acme_train"].started == 2
    assert len(controller.reports) > reports


def test_failure_is_told_and_tried_again(controller: Controller, fleet: Fleet, life: Life) -> None:
    fleet.world.failures["start"] = [
        HostError("domain.start_failed", "no"),
        HostError("domain.start_failed", "no"),
    ]
    controller.assign(assignment_of([fleet.instance(ACME)], revision=1))
    with life:
        eventually(lambda: (last := controller.followed(1)) and last.report and last.report.ok)

    phases = [each.report.instances[0].phase for _, each in controller.reports if each.report]
    assert phases[0] is Phase.ERROR
    assert phases[-1] is Phase.RUNNING


def test_key_that_is_not_given_is_the_instances_error_and_nobody_elses(
    controller: Controller, fleet: Fleet, life: Life
) -> None:
    controller.no_keys.add("vol_acme_train")
    controller.assign(fleet.two_tenants())
    with life:
        found = eventually(lambda: controller.followed(1))
        phases = {each.instance: (each.phase, each.error) for each in found.report.instances}
        controller.no_keys.clear()
        eventually(lambda: (last := controller.followed(1)) and last.report and last.report.ok)

    assert phases["vm_globex_serve"] == (Phase.RUNNING, None)
    assert phases["vm_acme_train"][0] is Phase.ERROR
    assert (phases["vm_acme_train"][1] or {})["code"] == "key.unknown"


def test_mistake_of_ours_is_told_and_the_agent_lives_on(
    controller: Controller, fleet: Fleet, life: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mistake() -> Any:
        raise ZeroDivisionError("oops")

    with monkeypatch.context() as broken:
        broken.setattr(fleet.world, "next_pid", mistake)
        controller.assign(fleet.two_tenants())
        with life:
            refused = eventually(lambda: (last := controller.last()) and last.refusal)
            broken.undo()
            found = eventually(lambda: controller.followed(1))

    assert refused["code"] == "agent.failed"
    assert "ZeroDivisionError" in refused["message"]
    assert found.report.ok


def test_report_that_was_refused_is_said_again_at_the_next_look(
    controller: Controller, fleet: Fleet, life: Life
) -> None:
    refusals: list[int] = []

    def refuse(request: Request) -> Response | None:
        if request.url.path.endswith("/report") and len(refusals) < 3:
            refusals.append(1)
            return said(b'{"code": "report.foreign", "detail": "no"}', 409)
        return None

    controller.answer_instead = refuse
    controller.assign(fleet.two_tenants())
    with life:
        found = eventually(lambda: controller.followed(1))

    assert found.report.ok
    assert len(refusals) == 3
    assert any("report.foreign" in line for line in life.said)


def test_controller_of_another_version_is_waited_for(
    controller: Controller, fleet: Fleet, life: Life
) -> None:
    controller.answer_instead = lambda _request: said(b"", 426, version="3")
    controller.assign(fleet.two_tenants())
    with life:
        eventually(lambda: any("protocol.version" in line for line in life.said))
        assert fleet.world.changes == 0
        controller.answer_instead = lambda _request: None
        eventually(lambda: controller.followed(1))


def test_secrets_are_in_nothing_that_is_said(controller: Controller, fleet: Fleet, life: Life) -> None:
    from tests.unit.link.controller import passphrase

    fleet.world.failures["start"] = [HostError("domain.start_failed", "no")]
    controller.assign(fleet.two_tenants())
    with life:
        eventually(lambda: (last := controller.followed(1)) and last.report and last.report.ok)

    whole = "\n".join([*life.said, *(each.encode().decode() for _, each in controller.reports)])
    assert controller.keys_given
    assert passphrase("vol_acme_train", 1) not in whole
    assert passphrase("vol_globex_serve", 1) not in whole


class Mute:
    """A controller that answers every poll at once with nothing."""

    def __init__(self) -> None:
        self.polls = 0

    async def next_assignment(self, epoch: int, revision: int, wait_s: float) -> Assignment | None:
        self.polls += 1
        return None

    async def report(self, report: Report) -> None:
        return

    async def heartbeat(self, boot_id: str) -> bool:
        return False


class Idle:
    """A host on which work takes until it is let go."""

    def __init__(self) -> None:
        self.begun, self.let_go, self.done = threading.Event(), threading.Event(), False

    def apply(self, assignment: Assignment) -> HostReport:
        raise AssertionError

    look = apply

    def slow(self) -> Any:
        self.begun.set()
        self.let_go.wait(20.0)
        self.done = True
        return SimWorld((), (), {}, frozenset()).facts()


def test_controller_that_answers_at_once_does_not_make_the_agent_spin() -> None:
    mute = Mute()

    async def live() -> None:
        with concurrent.futures.ThreadPoolExecutor(1) as threads:
            session = Session(
                mute,
                Idle(),
                SimWorld((), (), {}, frozenset()).facts,
                threads=threads,
                jitter=lambda: 1.0,
                version="1",
                pace=dataclasses.replace(BRISK, retry_first_s=1000.0, retry_longest_s=1000.0),
            )
            task = asyncio.create_task(session.run())
            while not mute.polls:
                await asyncio.sleep(0)
            for _ in range(1000):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])

    asyncio.run(live())

    assert mute.polls == 1


def test_what_is_being_done_to_the_host_is_finished_before_the_end() -> None:
    idle = Idle()

    async def live() -> bool:
        with concurrent.futures.ThreadPoolExecutor(1) as threads:
            session = Session(
                Mute(), idle, idle.slow, threads=threads, jitter=lambda: 1.0, version="1", pace=BRISK
            )
            task = asyncio.create_task(session.run())
            await asyncio.to_thread(idle.begun.wait, 20.0)
            task.cancel()
            for _ in range(100):
                await asyncio.sleep(0)
            early = task.done()
            idle.let_go.set()
            await asyncio.wait([task])
            return early

    assert asyncio.run(live()) is False
    assert idle.done


def test_delays_double_up_to_the_longest_and_start_anew() -> None:
    pace = Pace(retry_first_s=1.0, retry_longest_s=5.0)
    full, least = Backoff(pace, lambda: 1.0), Backoff(pace, lambda: 0.0)

    assert [full.after_failure() for _ in range(5)] == [1.0, 2.0, 4.0, 5.0, 5.0]
    assert [least.after_failure() for _ in range(4)] == [0.5, 1.0, 2.0, 2.5]
    full.reset()
    assert full.after_failure() == 1.0
    for _ in range(2000):
        full.after_failure()
    assert full.after_failure() == 5.0
