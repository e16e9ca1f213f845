"""The order of waiting requests, and one pass over them: who is placed, who waits and why, who fails.

First in, first out, by the time of asking and then the id. A request without a place waits and holds back
only those of its own shape: within a pass hosts only fill, so where one did not fit no later one of its shape
does, and one verdict stands for all of them. A stream of small requests can therefore pass a large one for
ever; strict reservation, which ends that, comes with jobs. Decides order only, `placement` decides where. The
scheduler calls `plan` with one look at the database, has each placement checked by `placement.validate`, and
commits it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from orchestrator.model.capacity import Demand, Shape
from orchestrator.model.errors import InvalidInputError
from orchestrator.model.placement import Placement
from orchestrator.placement.first_fit import place_from, refuse
from orchestrator.placement.refusal import Refusal
from orchestrator.placement.snapshot import Fleet


class Placed(NamedTuple):
    """A request and its place."""

    demand: Demand
    placement: Placement


class Unplaced(NamedTuple):
    """A request and why it has none; requests of one shape share the refusal."""

    demand: Demand
    refusal: Refusal


@dataclass(frozen=True)
class Plan:
    """What one pass decided.

    Args:
        placements: in the order to commit them in: each expects the generation that the ones before it leave.
        waiting: stay in the queue; in its order.
        failed: `on_no_capacity` was `fail`; in the queue's order.
        fleet: after all placements.
    """

    placements: tuple[Placed, ...]
    waiting: tuple[Unplaced, ...]
    failed: tuple[Unplaced, ...]
    fleet: Fleet


def order(requests: Iterable[Demand]) -> list[Demand]:
    """Put requests into the queue's order: by `submitted_ms`, then id; how they come in does not matter.

    Raises:
        InvalidInputError: `request.named_twice`.
    """
    ordered = sorted(requests, key=lambda each: (each.submitted_ms, each.request))
    seen: set[str] = set()
    for demand in ordered:
        if demand.request in seen:
            raise InvalidInputError("request.named_twice", f"{demand.request} stands in the queue twice")
        seen.add(demand.request)
    return ordered


def plan(requests: Iterable[Demand], fleet: Fleet) -> Plan:
    """Decide one pass over the queue.

    Cost: sorting; for each placement one host and the hosts between it and the last one of its shape; for
    each shape without a place one look at the counts of every host. Waiting ones of a known shape cost next
    to nothing.

    Raises:
        InvalidInputError: `request.named_twice`.
    """
    placements: list[Placed] = []
    waiting: list[Unplaced] = []
    failed: list[Unplaced] = []
    verdicts: dict[Shape, Refusal] = {}
    starts: dict[Shape, int] = {}
    for demand in order(requests):
        shape = demand.shape
        verdict = verdicts.get(shape)
        if verdict is None:
            found = place_from(demand, fleet, starts.get(shape, 0))
            if found is not None:
                starts[shape], placement = found
                fleet = fleet.with_placed(placement, demand)
                placements.append(Placed(demand, placement))
                continue
            verdict = verdicts[shape] = refuse(demand, fleet)
        (failed if demand.on_no_capacity == "fail" else waiting).append(Unplaced(demand, verdict))
    return Plan(tuple(placements), tuple(waiting), tuple(failed), fleet)
