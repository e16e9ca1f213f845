"""One simulated host that lives over a real link, in a thread of its own."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from orchestrator.agent.host import AgentSettings
from orchestrator.agent.link.controller_keys import ControllerKeys
from orchestrator.agent.link.pace import Pace
from orchestrator.agent.link.rounds import Rounds
from orchestrator.agent.link.session import Session
from orchestrator.agent.link.streams import StreamBounds, Streams
from orchestrator.agent.reconcile import Agent
from orchestrator.agent.sim import SimWorld, sim_host
from orchestrator.agent.sim.consoles import SimConsoles
from orchestrator.agent.sim.fleet import MemoryJournal
from orchestrator.model.doctor import Finding
from orchestrator.model.host import HostFacts
from tests.unit.link.controller import HOST, Controller
from tests.unit.link.listener import link_of

#: Everything soon; nothing in the tests depends on how soon.
BRISK = Pace(poll_wait_s=0.5, look_s=0.05, heartbeat_s=0.05, retry_first_s=0.02, retry_longest_s=0.1)


class Life:
    """A host's agent while the `with` lasts; world and journal stay."""

    def __init__(
        self,
        controller: Controller,
        world: SimWorld,
        folder: Path,
        *,
        journal: MemoryJournal | None = None,
        pace: Pace = BRISK,
        bounds: StreamBounds | None = None,
        examine: Callable[[HostFacts], tuple[Finding, ...]] | None = None,
        accepted: tuple[str, ...] = (),
    ) -> None:
        self.controller, self.world, self.folder = controller, world, folder
        self.journal = journal or MemoryJournal()
        self.said: list[str] = []
        self._examine, self._accepted = examine, accepted
        self._pace, self._bounds = pace, bounds
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._task: asyncio.Task[None] | None = None
        self.failed: BaseException | None = None

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._live())
        except asyncio.CancelledError:
            pass
        except BaseException as exc:
            self.failed = exc
        finally:
            self._loop.close()

    async def _live(self) -> None:
        self._task = asyncio.current_task()
        link = link_of(self.controller.authority, HOST, self.controller.agents.url, self.folder, answer_s=5.0)
        settings = AgentSettings(state_dir=Path("/x"), run_dir=Path("/y"), sighting_grace_s=0.0, at_once=1)
        host = sim_host(self.world, ControllerKeys(link, self._loop, wait_s=5.0))
        agent = Agent(host, self.journal, settings, host_id=HOST)
        with concurrent.futures.ThreadPoolExecutor(1) as threads:
            rounds = None
            if self._examine is not None:
                rounds = Rounds(
                    link,
                    self._examine,
                    self._accepted,
                    version="0.1.0",
                    jitter=lambda: 1.0,
                    pace=self._pace,
                    first=self.journal.state.revision == 0,
                    say=self.said.append,
                )
            session = Session(
                link,
                agent,
                host.inspector.host,
                threads=threads,
                jitter=lambda: 1.0,
                version="0.1.0",
                pace=self._pace,
                rounds=rounds,
                say=self.said.append,
            )
            streams = Streams(
                link,
                SimConsoles(self.world),
                jitter=lambda: 1.0,
                pace=self._pace,
                bounds=self._bounds,
                say=self.said.append,
            )
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(session.run())
                    tasks.create_task(streams.run())
            finally:
                await link.close()

    def __enter__(self) -> Life:
        self._thread.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _exc: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self._task is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(20.0)
        assert not self._thread.is_alive()
        assert self.failed is None, self.failed
