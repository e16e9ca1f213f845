"""A whole controller that stops itself by SIGSTOP once, in the middle of a placement. Run as a process.

Arguments: its settings file, and where: `decided` (a place is chosen, nothing is written) or `writing`
(the transaction has seen the lease as its own, and holds that row).
"""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path

from orchestrator.controller.scheduler import Scheduler
from orchestrator.processes import logs
from orchestrator.processes.control import Running, open_parts
from orchestrator.processes.control_settings import read_control_settings
from orchestrator.store.unit_of_work import UnitOfWork

_stops = iter([True])


def stop_once(*_: object) -> None:
    if next(_stops, False):
        # To this very thread: of one to the process another thread may hear, and this one goes on meanwhile.
        signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)


def main(settings: Path, where: str) -> None:
    logs.configure()
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    running = Running(open_parts(read_control_settings(settings)))
    if where == "decided":
        scheduler = Scheduler(running.parts.control.store, faultpoint=stop_once)
        running._loops._scheduler = scheduler
    else:
        demand = UnitOfWork.demand_fence

        def demand_and_stop(self: UnitOfWork, name: str, fence: int) -> None:
            demand(self, name, fence)
            stop_once()

        UnitOfWork.demand_fence = demand_and_stop  # type: ignore[method-assign]
    with running:
        ended.wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
