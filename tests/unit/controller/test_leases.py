"""Leases: one holder, a fence that grows, and writes under an old fence refused. On both databases."""

from __future__ import annotations

import pytest
from sqlalchemy import update

from orchestrator.controller import leases
from orchestrator.controller.scheduler import LEASE, Scheduler
from orchestrator.model.actor import CONTROLLER
from orchestrator.model.errors import FencedError
from orchestrator.model.states import InstanceState
from orchestrator.store.tables.leases import LeaseRow
from orchestrator.store.unit_of_work import table_of

LEASES = table_of(LeaseRow)


def expire(store) -> None:
    """Let time pass on the database's clock, as far as leases can tell."""
    with store.unit_of_work(CONTROLLER) as tx:
        tx.execute(update(LEASES).values(until_ms=1))


def test_one_holds_it_and_keeps_it(store):
    mine = leases.take(store, "loop", "one")

    assert leases.take(store, "loop", "two") is None
    assert leases.take(store, "loop", "one").fence == mine.fence
    assert leases.take(store, "other", "two") is not None


def test_when_it_ran_out_another_takes_it_under_a_higher_fence(store):
    mine = leases.take(store, "loop", "one")
    expire(store)

    theirs = leases.take(store, "loop", "two")

    assert theirs.fence == mine.fence + 1
    assert leases.take(store, "loop", "one") is None


def test_ones_own_lease_that_ran_out_is_a_new_holding(store):
    mine = leases.take(store, "loop", "one")
    expire(store)
    assert leases.take(store, "loop", "one").fence == mine.fence + 1


def test_given_up_it_is_free_at_once(store):
    leases.give_up(store, leases.take(store, "loop", "one"))
    assert leases.take(store, "loop", "two") is not None


def test_a_write_under_an_old_fence_is_refused(store):
    mine = leases.take(store, "loop", "one")
    with store.unit_of_work(CONTROLLER) as tx:
        tx.demand_fence("loop", mine.fence)
    expire(store)
    leases.take(store, "loop", "two")

    with pytest.raises(FencedError) as refused, store.unit_of_work(CONTROLLER) as tx:
        tx.demand_fence("loop", mine.fence)
    assert refused.value.code == "lease.lost"


def test_a_write_after_the_end_is_refused_even_when_nobody_took_over(store):
    mine = leases.take(store, "loop", "one")
    expire(store)
    with pytest.raises(FencedError), store.unit_of_work(CONTROLLER) as tx:
        tx.demand_fence("loop", mine.fence)


def test_a_scheduler_that_lost_its_lease_places_nothing(platform):
    platform.create(platform.acme, "train")
    slept = leases.take(platform.store, LEASE, "controller-1")
    expire(platform.store)
    awake = leases.take(platform.store, LEASE, "controller-2")

    with pytest.raises(FencedError):
        Scheduler(platform.store).run(slept)
    assert platform.instance(platform.acme, "train").state is InstanceState.PENDING

    assert Scheduler(platform.store).run(awake).placed == 1


def test_two_schedulers_on_one_old_look_place_it_once(platform):
    platform.create(platform.acme, "train")
    lease = leases.take(platform.store, LEASE, "controller-1")
    second = Scheduler(platform.store)
    # The first places it after the second has looked and before it commits.
    first = Scheduler(platform.store, faultpoint=lambda _name: None)
    second._faultpoint = lambda name: first.run(lease) if name == "scheduler.before_commit" else None

    done = second.run(lease)

    assert (done.placed, done.stale) == (0, 1)
    assert platform.instance(platform.acme, "train").state is InstanceState.SCHEDULED
