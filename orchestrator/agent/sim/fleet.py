"""Many simulated hosts in one process, each an agent with a session of its own, over the real protocol.

All sessions wait on one asyncio loop; work on hosts runs in a few threads, so that a thousand hosts need no
thread each. Hosts of a fleet have one shape and share its unchanging parts; boot ids, serial numbers and what
happens on them are their own. Demo, scenarios and bench make one; tests reboot hosts, let them vanish and set
faults. Decides nothing that a real agent does not.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import random
import threading
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from orchestrator import __version__
from orchestrator.agent.host import AgentSettings
from orchestrator.agent.journal import Journal, JournalState
from orchestrator.agent.link.client import Link
from orchestrator.agent.link.controller_keys import ControllerKeys
from orchestrator.agent.link.pace import Pace
from orchestrator.agent.link.rounds import Rounds
from orchestrator.agent.link.session import Session
from orchestrator.agent.link.streams import Streams
from orchestrator.agent.reconcile import Agent
from orchestrator.agent.sim.consoles import SimConsoles
from orchestrator.agent.sim.doctor import SOUND
from orchestrator.agent.sim.drivers import sim_host
from orchestrator.agent.sim.world import NATURAL_DRIVER, SimWorld
from orchestrator.model.assignment import Assignment
from orchestrator.model.doctor import Finding
from orchestrator.model.errors import BulkheadError, HostError
from orchestrator.model.host import HostCpu, Hugepages, NumaNode, PciFunction
from orchestrator.model.protocol import Report

T = TypeVar("T")
#: A controller that takes longer to hear a host lets the next one speak.
_FIRST_WORD_S = 20.0

#: Makes one host's link, on the fleet's loop: (number of the host) -> link. It may enrol the host first.
LinkFactory = Callable[[int], Coroutine[Any, Any, Link]]


@dataclass(frozen=True)
class Shape:
    """What each host of a fleet is made of.

    Args:
        gpus: spread evenly over the nodes, as are `cores`.
        node_memory_mib: memory of one node, seven eighths of it in 2 MiB pages.
    """

    gpus: int = 8
    cores: int = 64
    threads_per_core: int = 1
    nodes: int = 2
    node_memory_mib: int = 512 * 1024
    gpu_vendor: str = "10de"
    gpu_device: str = "2330"

    def topology(self) -> tuple[tuple[HostCpu, ...], tuple[NumaNode, ...], frozenset[int]]:
        """Make CPUs, nodes and the host's own CPUs (each node's first core); all hosts share them."""
        cpus: list[HostCpu] = []
        nodes: list[NumaNode] = []
        kept: set[int] = set()
        each = self.cores // self.nodes
        pages = Hugepages(*[self.node_memory_mib * 7 // 8 // 2] * 2)
        for node in range(self.nodes):
            mine: set[int] = set()
            for core in range(each):
                first = node * each + core
                # As Linux numbers them: all first threads, then all second ones.
                siblings = frozenset(first + self.cores * thread for thread in range(self.threads_per_core))
                cpus += [HostCpu(cpu, node, core, node, siblings) for cpu in sorted(siblings)]
                mine |= siblings
                kept |= siblings if core == 0 else set()
            nodes.append(NumaNode(node, frozenset(mine), self.node_memory_mib, {2048: pages}))
        return tuple(sorted(cpus, key=lambda cpu: cpu.cpu)), tuple(nodes), frozenset(kept)

    def functions(self, number: int) -> dict[str, PciFunction]:
        """Make one host's GPUs; serial numbers are its own."""
        found: dict[str, PciFunction] = {}
        for index in range(self.gpus):
            node = index * self.nodes // self.gpus
            address = f"0000:{0x11 + 0x10 * index % 0xE0:02x}:{index // 14:02x}.0"
            found[address] = PciFunction(
                address=address,
                vendor=self.gpu_vendor,
                device=self.gpu_device,
                class_code="030200",
                node=node,
                driver=NATURAL_DRIVER,
                group=index + 1,
                reset_methods=_RESETS,
                bars=_BARS,
                serial=f"sim-{number:05d}-{index:02d}",
            )
        return found


_RESETS = ("flr", "bus")
_BARS = {0: 16 << 20, 1: 128 << 30}


class EveryImage(set[str]):
    """A cache in which every image lies already: simulated hosts download nothing."""

    def __contains__(self, _digest: object) -> bool:
        return True


def single_world(shape: Shape | None = None) -> SimWorld:
    """Make one host that stands alone; its boot id is new each time, as after a loss of power."""
    made = shape or Shape()
    cpus, nodes, kept = made.topology()
    boot = f"sim-{time.time_ns():x}"
    return SimWorld(cpus, nodes, made.functions(0), kept, boot_id=boot, sleep=_pass_time, images=EveryImage())


class MemoryJournal(Journal):
    """A journal that outlives its agent in memory: a simulated host's disk."""

    def __init__(self) -> None:
        self.state = JournalState()

    def _write(self, state: JournalState) -> None:
        """Nothing to make durable: `update` keeps it."""


class _Heard:
    """A host's link to its controller that tells when a report was taken in."""

    def __init__(self, link: Link, heard: asyncio.Event) -> None:
        self._link = link
        self._heard = heard

    async def next_assignment(self, epoch: int, revision: int, wait_s: float) -> Assignment | None:
        """Wait for what comes after (epoch, revision)."""
        return await self._link.next_assignment(epoch, revision, wait_s)

    async def report(self, report: Report) -> None:
        """Say what came of it."""
        await self._link.report(report)
        self._heard.set()

    async def heartbeat(self, boot_id: str) -> bool:
        """Say that the host lives."""
        return await self._link.heartbeat(boot_id)


@dataclass
class SimulatedHost:
    """One host: what survives its agent, and its agent's task while it runs."""

    number: int
    world: SimWorld
    journal: MemoryJournal
    link: Link | None = None
    task: asyncio.Task[None] | None = None
    said: list[str] = field(default_factory=list)
    #: Its first report was taken in.
    heard: asyncio.Event = field(default_factory=asyncio.Event)
    #: What its doctor finds; tests put others here.
    findings: tuple[Finding, ...] = SOUND

    @property
    def running(self) -> bool:
        """Whether an agent runs on it."""
        return self.task is not None and not self.task.done()

    def say(self, line: str) -> None:
        """Keep the last lines that its agent said."""
        self.said.append(line)
        del self.said[:-20]


class SimulatedFleet:
    """Hosts, agents and links; used from its own loop, or through `started` from anywhere.

    Args:
        count: of hosts.
        gpus_per_host: of each.
        link_factory: makes a host's link; called when the host starts, and again when it comes back.
        latencies: seconds by verb, as in `SimWorld.latency_s`; they pass in a thread of the pool.
        shape: what a host is made of; its `gpus` give way to `gpus_per_host`.
        workers: threads for work on hosts: so many hosts change at once.
        consoles: whether hosts wait for console streams too, over one more connection each.
        seed: of the jitter, so that a run can be repeated.
    """

    def __init__(
        self,
        count: int,
        gpus_per_host: int,
        link_factory: LinkFactory,
        latencies: Mapping[str, float] | None = None,
        *,
        shape: Shape | None = None,
        pace: Pace | None = None,
        workers: int = 16,
        consoles: bool = False,
        seed: int = 1,
        images: set[str] | None = None,
    ) -> None:
        base = shape or Shape()
        self._shape = Shape(**{**base.__dict__, "gpus": gpus_per_host})
        self._link_factory = link_factory
        self._pace = pace or Pace()
        self._consoles = consoles
        # Jitter, not secrets.
        self._jitter = random.Random(seed).random  # noqa: S311
        self._threads = concurrent.futures.ThreadPoolExecutor(workers, thread_name_prefix="sim-host")
        # Paths in definitions only: no simulated host touches the disk. A thousand hosts share `workers`
        # threads; none starts more of its own.
        self._settings = AgentSettings(
            state_dir=Path("/sim/state"), run_dir=Path("/sim/run"), sighting_grace_s=0.0, at_once=1
        )
        cpus, nodes, kept = self._shape.topology()
        shared = EveryImage() if images is None else images
        self.hosts: Sequence[SimulatedHost] = tuple(
            SimulatedHost(
                number,
                SimWorld(
                    cpus,
                    nodes,
                    self._shape.functions(number),
                    kept,
                    boot_id=f"sim-{number:05d}-boot-1",
                    sleep=_pass_time,
                    latency_s=latencies or {},
                    images=shared,
                ),
                MemoryJournal(),
            )
            for number in range(count)
        )

    async def start(self, *, at_once: int = 32) -> None:
        """Start all agents; returns when each has its link, which may have meant to enrol.

        Of a large fleet, so many speak for the first time at once: all on one loop would keep each other from
        being heard in time, and would go on so.

        Raises:
            BulkheadError: what the link factory met.
        """
        slots = asyncio.Semaphore(at_once)

        async def one(number: int) -> None:
            async with slots:
                await self.come_back(number)
                if len(self.hosts) > at_once:
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self.hosts[number].heard.wait(), _FIRST_WORD_S)

        async with asyncio.TaskGroup() as tasks:
            for host in self.hosts:
                tasks.create_task(one(host.number))

    async def stop(self) -> None:
        """End all agents and their links; worlds stay as they are."""
        await asyncio.gather(*(self.vanish(host.number) for host in self.hosts))
        await asyncio.to_thread(self._threads.shutdown)

    async def come_back(self, number: int) -> None:
        """Start the agent of a host on which none runs."""
        host = self.hosts[number]
        if host.running:
            return
        if host.link is None:
            host.link = await self._link_factory(number)
        host.task = asyncio.create_task(self._live(host, host.link), name=f"sim-host-{number}")

    async def vanish(self, number: int) -> None:
        """End a host's agent, as when its network or its agent is gone: its VMs run on."""
        host = self.hosts[number]
        task, host.task = host.task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        link, host.link = host.link, None
        if link is not None:
            await link.close()

    async def reboot(self, number: int) -> None:
        """Cut a host's power and let it come back: VMs are off, its boot id is another."""
        await self.vanish(number)
        self.hosts[number].world.reboot()
        await self.come_back(number)

    def fail(self, number: int, verb: str, *errors: BulkheadError) -> None:
        """Let the next calls of a verb on a host fail, each once and in order."""
        self.hosts[number].world.failures.setdefault(verb, []).extend(errors)

    async def _live(self, host: SimulatedHost, link: Link) -> None:
        keys = ControllerKeys(link, asyncio.get_running_loop())
        agent = Agent(sim_host(host.world, keys), host.journal, self._settings)
        session = Session(
            _Heard(link, host.heard),
            agent,
            sim_host(host.world, keys).inspector.host,
            threads=self._threads,
            jitter=self._jitter,
            version=__version__,
            pace=self._pace,
            rounds=Rounds(
                link,
                lambda _facts: host.findings,
                version=__version__,
                jitter=self._jitter,
                threads=self._threads,
                pace=self._pace,
                first=host.journal.state.revision == 0,
                say=host.say,
            ),
            say=host.say,
        )
        if not self._consoles:
            await session.run()
            return
        streams = Streams(link, SimConsoles(host.world), jitter=self._jitter, pace=self._pace, say=host.say)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(session.run())
            tasks.create_task(streams.run())


class FleetThread:
    """A fleet on a loop of its own in one thread, for callers that have none."""

    def __init__(self, fleet: SimulatedFleet) -> None:
        self.fleet = fleet
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="sim-fleet", daemon=True)

    def __enter__(self) -> FleetThread:
        self._thread.start()
        try:
            self.do(self.fleet.start(), timeout_s=900.0)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(concurrent.futures.TimeoutError):
            self.do(self.fleet.stop(), timeout_s=60.0)
        self._end()

    def do(self, work: Coroutine[Any, Any, T], *, timeout_s: float = 60.0) -> T:
        """Run one of the fleet's coroutines on its loop and wait for it.

        Raises:
            HostError: `fleet.timeout`.
        """
        waiting = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return waiting.result(timeout_s)
        except concurrent.futures.TimeoutError as exc:
            waiting.cancel()
            raise HostError("fleet.timeout", f"the fleet took more than {timeout_s:g} s") from exc

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10.0)
        if not self._thread.is_alive():
            self._loop.close()


def _pass_time(seconds: float) -> None:
    if seconds > 0:
        time.sleep(seconds)
