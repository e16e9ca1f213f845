"""The one scheduler: looks, lets the pure planner decide, has its answer checked, and commits claim by claim.

Runs under a lease, and every commit names its fence and the host's generation: whatever was decided on an old
look, or by a controller that lost its lease, is refused by the database.
"""

from __future__ import annotations

import heapq
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import bindparam, insert, update
from sqlalchemy.exc import IntegrityError

from orchestrator.controller import deployment, operations
from orchestrator.controller.gpus import move
from orchestrator.controller.leases import Lease
from orchestrator.controller.snapshot import FleetCache, Waits, waiting
from orchestrator.model.actor import CONTROLLER
from orchestrator.model.capacity import Demand
from orchestrator.model.errors import BulkheadError, ConflictError
from orchestrator.model.placement import Placement
from orchestrator.model.states import GpuState, InstanceState, RequestState
from orchestrator.placement.validate import violations
from orchestrator.scheduling.queue import Unplaced, plan
from orchestrator.store.ids import new_id
from orchestrator.store.store import Store
from orchestrator.store.tables.fleet import HostMemoryRow, HostRow
from orchestrator.store.tables.instances import ClaimRow, InstanceRow, RequestRow
from orchestrator.store.tables.volumes import VolumeRow
from orchestrator.store.unit_of_work import UnitOfWork, table_of

_HOSTS, _MEMORY, _REQUESTS = table_of(HostRow), table_of(HostMemoryRow), table_of(RequestRow)
_INSTANCES, _VOLUMES = table_of(InstanceRow), table_of(VolumeRow)
#: Each placement writes these; written once.
_TAKE_HOST = (
    update(_HOSTS)
    .where(_HOSTS.c.id == bindparam("host"), _HOSTS.c.generation == bindparam("seen"))
    .values(generation=_HOSTS.c.generation + 1, used_disk_gib=_HOSTS.c.used_disk_gib + bindparam("more_gib"))
)
_TAKE_PAGES = (
    update(_MEMORY)
    .where(
        _MEMORY.c.host_id == bindparam("host"),
        _MEMORY.c.node == bindparam("of"),
        _MEMORY.c.page_size_kib == bindparam("size_kib"),
    )
    .values(used=_MEMORY.c.used + bindparam("more"))
)
_TAKE_VOLUMES = update(_VOLUMES).where(_VOLUMES.c.instance_id == bindparam("instance"))
_TAKE_INSTANCE = update(_INSTANCES).where(
    _INSTANCES.c.id == bindparam("instance"), _INSTANCES.c.state == InstanceState.PENDING
)
_DECIDE = update(_REQUESTS).where(
    _REQUESTS.c.id == bindparam("request"), _REQUESTS.c.state == RequestState.WAITING
)
_CLAIM = insert(table_of(ClaimRow))
LEASE = "scheduler"
#: The counts in a reason change with everything that comes and goes: one request's are renewed after so long
#: at the earliest, and so many requests' in one pass, those first whose counts are the oldest.
RENEW_MS = 30_000
MAX_RENEWED = 500
#: Hosts that a pass with nothing to place reads again at most, so that what comes next waits for few.
WARMED = 100
_LOG = logging.getLogger("bulkhead.scheduler")


@dataclass(frozen=True)
class Pass:
    """What one pass came to."""

    placed: int = 0
    waiting: int = 0
    failed: int = 0
    #: Decided on a look that was old by the time of the commit; the next pass decides anew.
    stale: int = 0


class Scheduler:
    """Places what waits.

    Args:
        faultpoint: called with a name between effects; tests let it raise.
    """

    def __init__(self, store: Store, *, faultpoint: Callable[[str], None] = lambda _name: None) -> None:
        self._store = store
        self._cache = FleetCache()
        self._faultpoint = faultpoint

    def run(self, lease: Lease) -> Pass:
        """Do one pass over everything that waits."""
        with self._store.reading() as tx:
            if deployment.get(tx).observe_only:
                return Pass()
            queue = waiting(tx)
            if not queue:
                self._cache.warm(tx, WARMED)
                return Pass()
            fleet = self._cache.look(tx)
        waits = {each.demand.request: each for each in queue}
        decided = plan((each.demand for each in queue), fleet)
        placed = stale = failed = 0
        for demand, placement in decided.placements:
            instance, host = waits[demand.request].instance, fleet.host(placement.host)
            if host.generation != placement.host_generation:
                # It counts on one before it on this host that was not placed.
                stale += 1
            elif broken := violations(placement, demand, host):
                failed += self._invalid(lease, waits[demand.request], broken)
            else:
                fleet = fleet.with_placed(placement, demand)
                if self._commit(lease, demand, instance, placement):
                    placed += 1
                else:
                    stale += 1
        for demand, refusal in decided.failed:
            reason = refusal.as_dict()
            failed += self._fail(lease, waits[demand.request], reason, "instance.no_capacity")
        self._explain(lease, decided.waiting, waits)
        return Pass(placed, len(decided.waiting), failed, stale)

    def _invalid(self, lease: Lease, waits: Waits, broken: tuple[str, ...]) -> int:
        """Take one out of the queue that the independent checker refused the planner's place for.

        The planner would say the same again: it must not hold back all others for ever.
        """
        error = BulkheadError(
            "placement.invalid",
            f"the planner's place breaks a rule: {'; '.join(broken)}",
            hint="this is a defect of Bulkhead, and nothing was placed: report it with the controller's log, "
            "delete the instance and create it again",
        )
        _LOG.error(
            "placement of %s (%s) is refused: %s", waits.instance, waits.demand.request, "; ".join(broken)
        )
        return self._fail(lease, waits, error.as_dict(), "instance.placement_invalid")

    def _commit(self, lease: Lease, demand: Demand, instance: str, placement: Placement) -> bool:
        self._faultpoint("scheduler.before_commit")
        try:
            with self._store.unit_of_work(CONTROLLER) as tx:
                tx.demand_fence(LEASE, lease.fence)
                _claim(tx, demand, instance, placement)
        except (ConflictError, IntegrityError) as exc:
            _LOG.info("placement of %s was decided on an old look: %s", instance, exc)
            return False
        self._faultpoint("scheduler.after_commit")
        return True

    def _fail(self, lease: Lease, waits: Waits, reason: dict[str, Any], kind: str) -> int:
        with self._store.unit_of_work(CONTROLLER) as tx:
            tx.demand_fence(LEASE, lease.fence)
            if not _decide(tx, waits.demand, RequestState.FAILED, reason):
                return 0
            tx.execute(
                update(_INSTANCES)
                .where(_INSTANCES.c.id == waits.instance, _INSTANCES.c.state == InstanceState.PENDING)
                .values(state=InstanceState.ERROR, error=reason, updated_ms=tx.now_ms)
            )
            operations.fail(tx, waits.operation, reason)
            tx.record(
                kind,
                ("instance", waits.instance),
                tenant=waits.demand.tenant,
                stage="outcome",
                outcome="failed",
                details={"message": str(reason.get("message", ""))},
            )
        return 1

    def _explain(self, lease: Lease, refused: tuple[Unplaced, ...], waits: Mapping[str, Waits]) -> None:
        """Say on instances why they wait: another reason at once, other counts now and then.

        Cost: a transaction for each with another reason, and one for at most `MAX_RENEWED` with other counts.
        """
        # Requests of one shape share a refusal: its JSON form is made once, however many wait.
        reasons: dict[int, dict[str, Any]] = {}
        old: list[tuple[int, str, dict[str, Any]]] = []
        now_ms = self._store.clock()
        for demand, refusal in refused:
            reason = reasons.get(id(refusal))
            if reason is None:
                reason = reasons[id(refusal)] = refusal.as_dict()
            each = waits[demand.request]
            told_ms = each.reason_ms
            if each.error is None or told_ms is None or each.error.get("code") != reason["code"]:
                self._tell(lease, each, reason)
            elif each.error != reason and now_ms - told_ms >= RENEW_MS:
                old.append((told_ms, demand.request, reason))
        if old:
            chosen = heapq.nsmallest(MAX_RENEWED, old, key=lambda each: each[:2])
            self._renew(lease, [(waits[request], reason) for _, request, reason in chosen])

    def _tell(self, lease: Lease, waits: Waits, reason: dict[str, Any]) -> None:
        """Say why one waits, for the first time or for another reason than before."""
        with self._store.unit_of_work(CONTROLLER) as tx:
            tx.demand_fence(LEASE, lease.fence)
            changed = tx.execute(
                update(_REQUESTS)
                .where(_REQUESTS.c.id == waits.demand.request, _REQUESTS.c.state == RequestState.WAITING)
                .values(reason=reason, reason_ms=tx.now_ms)
            )
            if changed.rowcount == 0:
                return
            tx.execute(
                update(_INSTANCES)
                .where(_INSTANCES.c.id == waits.instance, _INSTANCES.c.state == InstanceState.PENDING)
                .values(error=reason, updated_ms=tx.now_ms)
            )
            tx.record(
                "instance.waits",
                ("instance", waits.instance),
                tenant=waits.demand.tenant,
                stage="outcome",
                details={"message": str(reason.get("message", ""))},
            )

    def _renew(self, lease: Lease, told: list[tuple[Waits, dict[str, Any]]]) -> None:
        """Renew the counts of reasons that stay what they are; that is no news, so nobody is woken by it."""
        with self._store.unit_of_work(CONTROLLER) as tx:
            tx.demand_fence(LEASE, lease.fence)
            for each, reason in told:
                tx.note(
                    update(_REQUESTS)
                    .where(_REQUESTS.c.id == each.demand.request, _REQUESTS.c.state == RequestState.WAITING)
                    .values(reason=reason, reason_ms=tx.now_ms)
                )
                tx.note(
                    update(_INSTANCES)
                    .where(_INSTANCES.c.id == each.instance, _INSTANCES.c.state == InstanceState.PENDING)
                    .values(error=reason)
                )


def _claim(tx: UnitOfWork, demand: Demand, instance: str, placement: Placement) -> None:
    """Write one placement: the database refuses it whole if any unit is not free or the look was old.

    Raises:
        ConflictError: `placement.stale`, `gpu.step`.
        IntegrityError: a unit is held, or a sum would be exceeded.
    """
    changed = tx.execute(
        _TAKE_HOST,
        {"host": placement.host, "seen": placement.host_generation, "more_gib": demand.disk_gib},
    )
    if changed.rowcount == 0 or not _decide(tx, demand, RequestState.PLACED, None):
        raise ConflictError("placement.stale", "the host or the request changed meanwhile")
    tx.execute(
        _CLAIM,
        [
            {
                "id": new_id("clm"),
                "host_id": placement.host,
                "kind": kind,
                "unit": unit,
                "tenant_id": demand.tenant,
                "instance_id": instance,
            }
            for kind, unit in placement.claims
        ],
    )
    for node, pages in sorted(placement.pages.items()):
        tx.execute(
            _TAKE_PAGES,
            {"host": placement.host, "of": node, "size_kib": placement.page_size_kib, "more": pages},
        )
    for gpu in placement.devices:
        move(tx, gpu.id, GpuState.CLAIMED, tenant_id=demand.tenant, instance_id=instance)
    tx.execute(_TAKE_VOLUMES, {"instance": instance, "host_id": placement.host})
    moved = tx.execute(
        _TAKE_INSTANCE,
        {
            "instance": instance,
            "state": InstanceState.SCHEDULED,
            "host_id": placement.host,
            "placement": placement.as_dict(),
            "error": None,
            "updated_ms": tx.now_ms,
        },
    )
    if moved.rowcount == 0:
        raise ConflictError("placement.stale", "the instance changed meanwhile")
    tx.record(
        "instance.place",
        ("instance", instance),
        tenant=demand.tenant,
        details={"host": placement.host, "gpus": [gpu.id for gpu in placement.devices]},
    )
    tx.wake(f"host:{placement.host}")


def _decide(tx: UnitOfWork, demand: Demand, state: RequestState, reason: dict[str, Any] | None) -> bool:
    changed = tx.execute(
        _DECIDE,
        {
            "request": demand.request,
            "state": state,
            "reason": reason,
            "reason_ms": None if reason is None else tx.now_ms,
            "decided_ms": tx.now_ms,
        },
    )
    return changed.rowcount == 1
