"""The doctor's rounds: examine the host at the start, every hour and when asked, and tell what was found.

Decides when to look and what is news; `hostprep.doctor` decides what is wrong, the controller what comes
of it. An examination reads and changes nothing, so it runs beside the work on the host. A controller that
does not know the doctor yet is left in peace until the next round. `session` runs it.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable
from typing import Protocol

from orchestrator.agent.link.client import LinkRefused
from orchestrator.agent.link.pace import Backoff, Pace
from orchestrator.model.doctor import Finding, accepting, not_ended
from orchestrator.model.doctor_message import DoctorReport
from orchestrator.model.errors import BulkheadError
from orchestrator.model.host import HostFacts

#: What answers who does not know the message: a controller of the version before.
_UNKNOWN_THERE = frozenset({404, 405})


class Hearer(Protocol):
    """What a round needs of a controller; `client.Link` is it."""

    async def doctor(self, report: DoctorReport) -> None:
        """Say what the doctor found."""


class Rounds:
    """One host's doctor and who hears of it.

    Args:
        link: the controller.
        examine: asks every check of a host whose facts were read; called in a thread, never twice at once.
        accepted: ids of checks that the operator of this host lives with; `*` is all of them.
        version: of this agent.
        threads: where an examination runs; None is a thread beside those that work on the host.
        first: whether this host never followed an order. Its controller then hears the doctor before it hears
            anything else, so that no tenant comes to a host that nobody has examined.
        say: who is told, in one line, what went wrong.
    """

    def __init__(
        self,
        link: Hearer,
        examine: Callable[[HostFacts], tuple[Finding, ...]],
        accepted: tuple[str, ...] = (),
        *,
        version: str,
        jitter: Callable[[], float],
        threads: concurrent.futures.Executor | None = None,
        pace: Pace | None = None,
        first: bool = True,
        say: Callable[[str], None] = lambda _line: None,
    ) -> None:
        self._link = link
        self._examine = examine
        self._accepted = accepted
        self._version = version
        self._jitter = jitter
        self._threads = threads
        self._pace = pace or Pace()
        self._say = say
        self._wanted = asyncio.Event()
        self._busy = False
        self._may_speak = asyncio.Event()
        if not first:
            self._may_speak.set()
        self._told: tuple[object, ...] | None = None
        self._told_s = 0.0

    def ask(self) -> None:
        """Have the doctor look now; an examination that is under way will do."""
        if not self._busy:
            self._wanted.set()

    async def before_the_first_word(self) -> None:
        """Wait until the controller may hear of this host: at once, unless it comes in for the first time."""
        await self._may_speak.wait()

    async def run(self, facts: Callable[[], HostFacts]) -> None:
        """Make rounds until cancelled.

        Args:
            facts: what the host was found to be made of last.
        """
        asked = False
        while True:
            self._busy = True
            report = await self._examined(facts())
            await self._tell(report, even_if_same=asked)
            self._may_speak.set()
            self._busy = False
            # A little earlier or later: a fleet that was started at once must not speak at once for ever.
            pause_s = self._pace.doctor_s * (0.9 + 0.2 * self._jitter())
            asked = await self._asked_within(pause_s)

    async def _asked_within(self, pause_s: float) -> bool:
        try:
            async with asyncio.timeout(pause_s):
                await self._wanted.wait()
        except TimeoutError:
            return False
        self._wanted.clear()
        return True

    async def _examined(self, facts: HostFacts) -> DoctorReport:
        limit_s = self._pace.doctor_limit_s
        try:
            async with asyncio.timeout(limit_s):
                loop = asyncio.get_running_loop()
                found = await loop.run_in_executor(self._threads, self._examine, facts)
        except TimeoutError:
            # Its thread goes on; what it finds is nobody's any more.
            found = not_ended(f"no end within {limit_s:g} s")
        except Exception as exc:
            # A mistake of ours in one check says nothing good about the others.
            found = not_ended(f"{type(exc).__name__}: {exc}")
        if any(each.id == "doctor.ran" for each in found):
            self._say(f"the doctor did not come to an end: {found[0].read}")
        return DoctorReport(
            boot_id=facts.boot_id,
            agent_version=self._version,
            accepted=tuple(sorted(self._accepted)),
            findings=accepting(found, frozenset(self._accepted)),
        )

    async def _tell(self, report: DoctorReport, *, even_if_same: bool) -> None:
        """Say it until it is heard or refused; what was heard and is the same, only after a long while."""
        loop, retry = asyncio.get_running_loop(), Backoff(self._pace, self._jitter)
        said = (report.boot_id, report.accepted, report.findings)
        stale = loop.time() - self._told_s >= self._pace.doctor_tell_s
        if said == self._told and not stale and not even_if_same:
            return
        while True:
            try:
                await self._link.doctor(report)
            except LinkRefused as exc:
                # It was heard, and saying it again will not help: VMs run on, and the next round tries anew.
                older = exc.status in _UNKNOWN_THERE
                self._say("the controller does not know the doctor yet" if older else exc.explain())
                self._told = None
                return
            except BulkheadError as exc:
                delay_s = retry.after_failure()
                self._say(f"{exc.explain()}\n  again in {delay_s:.1f} s")
                await asyncio.sleep(delay_s)
            else:
                self._told, self._told_s = said, loop.time()
                return
