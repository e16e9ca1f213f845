"""Many simulated hosts in one process: each for itself, few threads, little memory, faults on demand."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from images.labhost.tenants import Tenancy, instance_for
from orchestrator.agent.link.client import Link
from orchestrator.agent.sim.fleet import FleetThread, Shape, SimulatedFleet
from orchestrator.model.assignment import Assignment
from orchestrator.model.doctor_message import DoctorReport
from orchestrator.model.errors import HostError
from orchestrator.model.protocol import Report
from orchestrator.model.report import Phase
from tests.unit.agent.fleet import IMAGE
from tests.unit.link.controller import DEPLOYMENT, Controller
from tests.unit.link.listener import eventually, link_of
from tests.unit.link.living import BRISK

#: The lab's stand-ins, which `instance_for` knows.
SHAPE = Shape(gpu_vendor="1234", gpu_device="1111")


def name_of(number: int) -> str:
    return f"hst_sim{number}"


def order_for(fleet: SimulatedFleet, number: int, revision: int = 1) -> Assignment:
    probe = dataclasses.asdict(fleet.hosts[number].world.facts())
    instance = instance_for(Tenancy("acme", f"vm{number}", 1, 101, 10), probe, IMAGE)
    return Assignment(
        version=1,
        deployment=DEPLOYMENT,
        host=name_of(number),
        epoch=1,
        revision=revision,
        instances=(instance,),
    )


def fleet_of(controller: Controller, count: int, folder: Path, **options: Any) -> SimulatedFleet:
    async def link(number: int) -> Link:
        return link_of(controller.authority, name_of(number), controller.agents.url, folder)

    return SimulatedFleet(count, 8, link, shape=SHAPE, pace=BRISK, **options)


def as_ordered(controller: Controller, number: int, revision: int = 1) -> Callable[[], Any]:
    def holds() -> bool:
        found = controller.followed(revision, name_of(number))
        return found is not None and found.report is not None and found.report.ok

    return holds


def test_hosts_of_a_fleet_are_real_hosts_each_for_itself(controller: Controller, tmp_path: Path) -> None:
    fleet = fleet_of(controller, 12, tmp_path, workers=3)
    for number in range(12):
        controller.assign(order_for(fleet, number))
    before = threading.active_count()

    with FleetThread(fleet):
        for number in range(12):
            eventually(as_ordered(controller, number))
        threads = threading.active_count() - before

    # The fleet's loop and its three workers, whatever the number of hosts.
    assert threads <= 4
    assert [list(host.world.domains) for host in fleet.hosts] == [[f"vm_acme_vm{n}"] for n in range(12)]
    facts = {name: said.facts for name, said in controller.reports if said.facts}
    assert len({each.boot_id for each in facts.values()}) == 12
    assert len({function.serial for each in facts.values() for function in each.functions}) == 12 * 8
    assert {len(each.cpus) for each in facts.values()} == {64}
    assert {len(each.nodes) for each in facts.values()} == {2}
    assert {name for name, _ in controller.keys_given} == {name_of(number) for number in range(12)}


def test_hosts_of_a_large_fleet_speak_for_the_first_time_a_few_at_once(
    controller: Controller, tmp_path: Path
) -> None:
    unheard: list[int] = []

    async def link(number: int) -> Link:
        unheard.append(sum(host.running and not host.heard.is_set() for host in fleet.hosts))
        return link_of(controller.authority, name_of(number), controller.agents.url, tmp_path)

    fleet = SimulatedFleet(8, 8, link, shape=SHAPE, pace=BRISK)

    async def live() -> None:
        await fleet.start(at_once=2)
        assert all(host.heard.is_set() for host in fleet.hosts)
        await fleet.stop()

    asyncio.run(live())
    assert len(unheard) == 8
    assert max(unheard) < 2


def test_reboot_has_another_boot_and_brings_vms_back(controller: Controller, tmp_path: Path) -> None:
    fleet = fleet_of(controller, 2, tmp_path)
    for number in range(2):
        controller.assign(order_for(fleet, number))
    with FleetThread(fleet) as thread:
        for number in range(2):
            eventually(as_ordered(controller, number))
        other = fleet.hosts[1].world.domains["vm_acme_vm1"].pid
        thread.do(fleet.reboot(0))
        found = eventually(
            lambda: (
                (last := controller.followed(1, name_of(0)))
                and last.boot_id != "sim-00000-boot-1"
                and last.report
                and last.report.ok
                and last
            )
        )

    assert found.report.instances[0].phase is Phase.RUNNING
    assert fleet.hosts[0].world.domains["vm_acme_vm0"].started == 2
    assert fleet.hosts[1].world.domains["vm_acme_vm1"].pid == other


def test_host_that_vanishes_is_silent_and_runs_on(controller: Controller, tmp_path: Path) -> None:
    fleet = fleet_of(controller, 2, tmp_path)
    controller.assign(order_for(fleet, 0))
    with FleetThread(fleet) as thread:
        eventually(as_ordered(controller, 0))
        thread.do(fleet.vanish(0))
        assert fleet.hosts[0].running is False
        # What was on its way has arrived once the other host has been heard a few times more.
        beats = len(controller.beats)
        eventually(lambda: len(controller.beats) > beats + 3)
        silent, beats = controller.beats.count((name_of(0), "sim-00000-boot-1")), len(controller.beats)
        eventually(lambda: len(controller.beats) > beats + 10)
        assert controller.beats.count((name_of(0), "sim-00000-boot-1")) == silent
        assert fleet.hosts[0].world.domains["vm_acme_vm0"].pid

        thread.do(fleet.come_back(0))
        eventually(lambda: controller.beats.count((name_of(0), "sim-00000-boot-1")) > silent)

    assert fleet.hosts[0].world.domains["vm_acme_vm0"].started == 1


def test_fault_is_one_hosts_and_passes(controller: Controller, tmp_path: Path) -> None:
    fleet = fleet_of(controller, 2, tmp_path)
    fleet.fail(0, "start", HostError("domain.start_failed", "no"))
    for number in range(2):
        controller.assign(order_for(fleet, number))
    with FleetThread(fleet):
        for number in range(2):
            eventually(as_ordered(controller, number))

    phases = {
        name: [
            said.report.instances[0].phase
            for host, said in controller.reports
            if host == name and said.report
        ]
        for name in (name_of(0), name_of(1))
    }
    assert phases[name_of(0)][0] is Phase.ERROR
    assert Phase.ERROR not in phases[name_of(1)]


def test_latency_passes_in_a_worker_and_holds_up_no_other_host(
    controller: Controller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting, let_go = threading.Event(), threading.Event()

    def wait(seconds: float) -> None:
        if seconds:
            waiting.set()
            assert let_go.wait(30.0)

    monkeypatch.setattr("orchestrator.agent.sim.fleet._pass_time", wait)
    fleet = fleet_of(controller, 3, tmp_path, latencies={"start": 1.0}, workers=2)
    controller.assign(order_for(fleet, 0))
    with FleetThread(fleet):
        eventually(waiting.is_set)
        heard = {name for name, _ in controller.beats}
        eventually(lambda: {name_of(1), name_of(2)} <= heard | {name for name, _ in controller.beats})
        assert controller.followed(1, name_of(0)) is None
        let_go.set()
        eventually(as_ordered(controller, 0))


def test_host_that_cannot_get_a_link_fails_the_start() -> None:
    async def none(number: int) -> Link:
        raise HostError("link.unreachable", "no")

    with pytest.raises(BaseExceptionGroup) as failed, FleetThread(SimulatedFleet(2, 8, none)):
        pass

    assert failed.group_contains(HostError)


class Still:
    """A controller in the same process that has nothing to say."""

    heard = 0

    async def next_assignment(self, epoch: int, revision: int, wait_s: float) -> None:
        await asyncio.sleep(wait_s)

    async def report(self, report: Report) -> None:
        Still.heard += 1

    async def heartbeat(self, boot_id: str) -> bool:
        return False

    async def doctor(self, report: DoctorReport) -> None:
        return

    async def close(self) -> None:
        return


def test_a_host_more_costs_little_memory() -> None:
    """Without its TLS: world, drivers, journal, agent and session. Printed; bounded far above what it is."""

    async def link(_number: int) -> Link:
        return Still()  # type: ignore[return-value]

    def cost_of(count: int) -> int:
        async def live() -> int:
            gc.collect()
            tracemalloc.start()
            fleet = SimulatedFleet(count, 8, link)
            heard = Still.heard
            await fleet.start()
            while Still.heard < heard + count:
                await asyncio.sleep(0.005)
            gc.collect()
            used = tracemalloc.get_traced_memory()[0]
            tracemalloc.stop()
            await fleet.stop()
            return used

        return asyncio.run(live())

    few, many = cost_of(10), cost_of(110)
    each = (many - few) / 100

    print(f"one more simulated host: {each / 1024:.1f} KiB")
    assert each < 64 * 1024
