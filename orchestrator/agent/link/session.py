"""The life of one host over its link: wait for orders, follow them, say what came of it, look again.

Decides when to apply, look, report and try again; `Agent` decides what is done to the host, the controller
what is wanted. Waiting happens on one asyncio loop, work on a host in a thread of the pool that is handed in,
one piece at a time: a daemon has one session, the simulated fleet a thousand on the same loop. A controller
that is gone changes nothing: VMs run on, and what is there is kept as ordered. The caller holds the lock.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
from collections.abc import Callable
from typing import Protocol, TypeVar

from orchestrator.agent.link.client import LinkRefused
from orchestrator.agent.link.pace import Backoff, Pace
from orchestrator.agent.link.rounds import Rounds
from orchestrator.agent.link.telling import after_look, lasting, news_digest
from orchestrator.model.assignment import Assignment
from orchestrator.model.errors import BulkheadError, FencedError, HostError
from orchestrator.model.host import HostFacts
from orchestrator.model.parsing import AssignmentRefused
from orchestrator.model.protocol import Report
from orchestrator.model.report import HostReport

T = TypeVar("T")


class Upstream(Protocol):
    """What a session needs of a controller; `client.Link` is it."""

    async def next_assignment(self, epoch: int, revision: int, wait_s: float) -> Assignment | None:
        """Wait for what comes after (epoch, revision)."""

    async def report(self, report: Report) -> None:
        """Say what came of it."""

    async def heartbeat(self, boot_id: str) -> bool:
        """Say that the host lives; return whether somebody waits for its doctor."""


class Follower(Protocol):
    """What a session needs of a host; `reconcile.Agent` is it."""

    def apply(self, assignment: Assignment) -> HostReport:
        """Make the host equal to it."""

    def look(self, assignment: Assignment) -> HostReport:
        """Hold the host against it."""


class Session:
    """One host and its controller.

    Args:
        link: the controller.
        agent: the host; called in `threads`, never twice at once.
        read_host: what the host is made of now.
        threads: where work on hosts runs.
        jitter: a number from 0 to 1 for delays.
        version: of this agent.
        rounds: the host's doctor; None where it has none.
        say: who is told, in one line, what went wrong; never a secret.
    """

    def __init__(
        self,
        link: Upstream,
        agent: Follower,
        read_host: Callable[[], HostFacts],
        *,
        threads: concurrent.futures.Executor,
        jitter: Callable[[], float],
        version: str,
        pace: Pace | None = None,
        rounds: Rounds | None = None,
        say: Callable[[str], None] = lambda _line: None,
    ) -> None:
        self._link = link
        self._agent = agent
        self._read_host = read_host
        self._threads = threads
        self._jitter = jitter
        self._version = version
        self._pace = pace or Pace()
        self._rounds = rounds
        self._say = say

        self._offered: Assignment | None = None
        self._wanted: Assignment | None = None
        #: The host was as ordered when we looked last.
        self._settled = True
        self._facts: HostFacts | None = None
        self._report: HostReport | None = None
        self._refusal: dict[str, object] | None = None
        self._facts_told: HostFacts | None = None
        self._told = ""
        self._wake = asyncio.Event()
        self._news = asyncio.Event()

    async def run(self) -> None:
        """Live until cancelled. What is being done to the host then is finished first."""
        await self._first_look()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._poll())
            tasks.create_task(self._work())
            tasks.create_task(self._tell())
            tasks.create_task(self._beat())
            if self._rounds is not None:
                tasks.create_task(self._rounds.run(self._known_facts))

    async def _first_look(self) -> None:
        retry = self._backoff()
        while True:
            try:
                self._facts = await self._on_host(self._read_host)
            except BulkheadError as exc:
                self._say(exc.explain())
                await asyncio.sleep(retry.after_failure())
            else:
                self._news.set()
                return

    async def _poll(self) -> None:
        """Wait for orders; the newest that came is the one to follow."""
        loop, after, retry = asyncio.get_running_loop(), (0, 0), self._backoff()
        while True:
            asked_s = loop.time()
            try:
                offered = await self._link.next_assignment(*after, self._pace.poll_wait_s)
            except BulkheadError as exc:
                if isinstance(exc, AssignmentRefused):
                    self._refused(exc)
                await self._failed(exc, retry)
                continue
            if offered is not None and (offered.epoch, offered.revision) != after:
                retry.reset()
                after = (offered.epoch, offered.revision)
                self._offered = offered
                self._wake.set()
            elif loop.time() - asked_s < self._pace.poll_wait_s / 2:
                # Nothing new, and at once: a controller that is going down or mistaken must not make us spin.
                await asyncio.sleep(retry.after_failure())
            else:
                retry.reset()

    async def _work(self) -> None:
        """Follow each order, then look again and again whether the host is still as ordered."""
        retry, due_s = self._backoff(), self._pace.look_s
        while True:
            offered = await self._next_offer(due_s)
            if offered is not None:
                retry.reset()
                await self._follow(offered)
            else:
                await self._look_again()
            if self._settled:
                retry.reset()
                due_s = self._pace.look_s
            else:
                due_s = min(retry.after_failure(), self._pace.look_s)

    async def _next_offer(self, due_s: float) -> Assignment | None:
        try:
            async with asyncio.timeout(due_s):
                await self._wake.wait()
        except TimeoutError:
            return None
        self._wake.clear()
        offered, self._offered = self._offered, None
        return offered

    async def _follow(self, offered: Assignment) -> None:
        before, was_settled = self._wanted, self._settled
        self._wanted = offered
        try:
            await self._apply()
        except FencedError as exc:
            # Older or foreign: what was wanted before is wanted still.
            self._wanted, self._settled = before, was_settled
            self._refused(exc)
        except BulkheadError as exc:
            self._settled = False
            self._refused(exc)

    async def _look_again(self) -> None:
        try:
            self._facts = await self._on_host(self._read_host)
            if self._wanted is not None:
                as_ordered = self._settled and (await self._look()).ok
                if not as_ordered and not self._wanted.observe_only:
                    await self._apply()
        except BulkheadError as exc:
            self._settled = False
            self._refused(exc)
        self._news.set()

    async def _look(self) -> HostReport:
        wanted = self._wanted
        assert wanted is not None  # noqa: S101 - asked by the caller
        seen = await self._on_host(lambda: self._agent.look(wanted))
        self._came_of_it(after_look(self._report, seen))
        return seen

    async def _apply(self) -> None:
        wanted = self._wanted
        assert wanted is not None  # noqa: S101 - asked by the caller
        applied = await self._on_host(lambda: self._agent.apply(wanted))
        # Who only looks does not heal: there is nothing to try again before the next look.
        self._settled = applied.ok or wanted.observe_only
        self._came_of_it(applied)

    async def _on_host(self, work: Callable[[], T]) -> T:
        """Run one piece of work in a thread; cancelled or not, it is over before anything else begins."""
        running = asyncio.get_running_loop().run_in_executor(self._threads, work)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            await asyncio.wait([running])
            raise
        except BulkheadError:
            raise
        except Exception as exc:
            # A mistake of ours: this host's trouble, told to the controller; its VMs run on.
            raise HostError("agent.failed", f"{type(exc).__name__}: {exc}") from exc

    def _came_of_it(self, report: HostReport) -> None:
        self._report, self._refusal = report, None
        self._news.set()

    def _refused(self, problem: BulkheadError) -> None:
        if self._refusal is None or self._refusal["code"] != problem.code:
            self._say(problem.explain())
        self._refusal = problem.as_dict()
        self._news.set()

    async def _tell(self) -> None:
        """Report what is news, the newest state of it, until it is heard."""
        retry = self._backoff()
        if self._rounds is not None:
            await self._rounds.before_the_first_word()
        while True:
            await self._news.wait()
            self._news.clear()
            message, facts = self._message()
            digest = news_digest(message)
            if digest == self._told and message.facts is None:
                continue
            try:
                await self._link.report(message)
            except LinkRefused as exc:
                # It was heard. Should it still be so at the next look, it is said again.
                self._told = ""
                await self._failed(exc, retry)
            except BulkheadError as exc:
                await self._failed(exc, retry)
                self._news.set()
            else:
                retry.reset()
                self._told, self._facts_told = digest, facts

    def _known_facts(self) -> HostFacts:
        assert self._facts is not None  # noqa: S101 - the first look comes before everything else
        return self._facts

    def _message(self) -> tuple[Report, HostFacts]:
        facts = self._known_facts()
        kept = lasting(facts)
        refused = self._refusal is not None
        message = Report(
            boot_id=facts.boot_id,
            agent_version=self._version,
            facts=None if kept == self._facts_told else facts,
            report=None if refused else self._report,
            refusal=self._refusal,
        )
        return message, kept

    async def _beat(self) -> None:
        # Not all of a fleet at once: each begins somewhere in the first interval.
        await asyncio.sleep(self._pace.heartbeat_s * self._jitter())
        while True:
            # Of a failure the poll tells, which runs beside it.
            with contextlib.suppress(BulkheadError):
                asked = await self._link.heartbeat(self._known_facts().boot_id)
                if asked and self._rounds is not None:
                    self._rounds.ask()
            await asyncio.sleep(self._pace.heartbeat_s)

    async def _failed(self, exc: BulkheadError, retry: Backoff) -> None:
        delay_s = retry.after_failure()
        self._say(f"{exc.explain()}\n  again in {delay_s:.1f} s")
        await asyncio.sleep(delay_s)

    def _backoff(self) -> Backoff:
        return Backoff(self._pace, self._jitter)
