"""The loops of a controller: place, watch who is silent, drain, write behind, sweep. Level-triggered.

Each turn reads the state and acts, whoever woke it; a turn that fails is told and taken again. A lease
lets one controller place at a time, and every write of it names its fence. Called by `processes`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from orchestrator.controller import consoles, drain, evacuate, expiry, idempotency, leases, rates, streams
from orchestrator.controller.control import Control
from orchestrator.controller.leases import Lease
from orchestrator.controller.scheduler import LEASE, Scheduler
from orchestrator.controller.silence import Heard, Watch
from orchestrator.model.actor import CONTROLLER
from orchestrator.model.errors import BulkheadError, FencedError

_LOG = logging.getLogger("bulkhead.loops")
#: A pass is due so often, whatever was rung: for what another controller committed.
LOOK_AGAIN_S = 1.0
DRAIN_S = 2.0
SWEEP_S = 600.0
#: Deleting a tenant rings for it too.
ERASE_S = 60.0


class Loops:
    """The loops of one controller.

    Args:
        owner: this controller's name in the leases.
    """

    def __init__(self, control: Control, heard: Heard, owner: str) -> None:
        self._control = control
        self._watch = Watch(control.store, heard, control.settings.silent_s)
        self._owner = owner
        self._scheduler = Scheduler(control.store)
        self._lease: Lease | None = None
        #: Every commit rings the scheduler of every controller; most of them only find the lease taken.
        self._ask_again = 0.0
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Start them."""
        for name, turn, pause_s in (
            ("scheduler", self._schedule, LOOK_AGAIN_S),
            ("behind", self._control.rates.write_behind, 1.0),
            ("watch", self._watch.turn, min(5.0, self._control.settings.silent_s / 4)),
            (drain.TOPIC, self._drain, DRAIN_S),
            ("sweep", self._sweep, SWEEP_S),
            ("erase", self._erase, ERASE_S),
        ):
            thread = threading.Thread(target=self._run, args=(name, turn, pause_s), name=name, daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        """End them after their present turn, write what is only in memory, and let the next scheduler in."""
        self._stop.set()
        self._control.bell(frozenset({"scheduler", "behind", "watch", drain.TOPIC, "sweep", "erase"}))
        for thread in self._threads:
            thread.join()
        self._control.rates.write_behind()
        self._control.denials.flush()
        if self._lease is not None:
            leases.give_up(self._control.store, self._lease)

    def _run(self, name: str, turn: Callable[[], None], pause_s: float) -> None:
        with self._control.bell.listen(name) as ear:
            while not self._stop.is_set():
                try:
                    turn()
                except FencedError as exc:
                    self._lease = None
                    _LOG.warning("%s: %s", name, exc)
                except BulkheadError as exc:
                    _LOG.error("%s: %s", name, exc.explain())
                except Exception:
                    # A loop that ends would be silent for ever; the next turn sees the same state again.
                    _LOG.exception("%s: a turn failed", name)
                ear.wait(pause_s)

    def _schedule(self) -> None:
        if self._lease is None or not self._lease.fresh():
            now = time.monotonic()
            if self._lease is None and now < self._ask_again:
                return
            self._ask_again = now + LOOK_AGAIN_S
            self._lease = leases.take(self._control.store, LEASE, self._owner, self._control.settings.lease_s)
        if self._lease is not None:
            done = self._scheduler.run(self._lease)
            if done.stale:
                self._control.bell(frozenset({"scheduler"}))

    def _drain(self) -> None:
        with self._control.store.reading() as tx:
            due = drain.draining(tx)
        for host_id in due:
            with self._control.store.unit_of_work(CONTROLLER) as tx:
                drain.turn(tx, host_id)
        with self._control.store.reading() as tx:
            due = evacuate.under_way(tx)
        for host_id in due:
            with self._control.store.unit_of_work(CONTROLLER) as tx:
                evacuate.turn(tx, host_id)

    def _erase(self) -> None:
        if self._control.keyring is not None:
            self._control.keyring.destroy_deleted(self._control.store)

    def _sweep(self) -> None:
        store = self._control.store
        with store.unit_of_work(CONTROLLER) as tx:
            idempotency.sweep(tx)
            consoles.sweep(tx)
            streams.sweep(tx)
            expiry.turn(tx)
        rates.sweep(store, store.clock())
