"""What the scheduler keeps of its looks at the fleet: what changed is read again, a little in idle passes."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from sqlalchemy import event

from orchestrator.controller import host_removal, hosts, inventory, reports, scheduler
from orchestrator.controller.snapshot import FleetCache
from orchestrator.model.actor import CONTROLLER
from orchestrator.model.host import HostFacts
from orchestrator.model.states import HostState
from tests.unit.controller.platform import Platform


def add(platform: Platform, name: str, facts: HostFacts | None = None) -> str:
    """Let one more host in, which says what it is made of."""
    with platform.store.unit_of_work(CONTROLLER) as tx:
        made = hosts.create(tx, name, 100)
    say(platform, made.id, facts or platform.world.facts())
    return made.id


def say(platform: Platform, host_id: str, facts: HostFacts) -> None:
    said = reports.Said(facts.boot_id, "test", facts, None, None)
    with platform.store.unit_of_work(CONTROLLER) as tx:
        reports.received(tx, host_id, said)


def fewer_cores(platform: Platform) -> HostFacts:
    facts = platform.world.facts()
    return dataclasses.replace(facts, cpus=facts.cpus[:-1])


@pytest.fixture
def read(platform: Platform):
    """Each statement by which a cache reads what a host is made of."""
    told: list[str] = []

    def hear(_c: Any, _cursor: Any, words: str, *_more: Any) -> None:
        if "host_facts.topology, host_facts.facts" in words:
            told.append(words)

    engine = platform.store.database._reading
    event.listen(engine, "before_cursor_execute", hear)
    yield told
    event.remove(engine, "before_cursor_execute", hear)


def test_hosts_of_one_kind_share_their_cores(platform, read):
    ids = [platform.host_id, add(platform, "node2"), add(platform, "node3", fewer_cores(platform))]
    with platform.store.reading() as tx:
        fleet = FleetCache().look(tx)
    first, second, third = (fleet.host(each) for each in ids)
    assert first.cores is second.cores
    assert len(third.cores) == len(first.cores) - 1
    assert len(read) == 2


def test_a_host_that_never_reported_has_no_cores(platform):
    with platform.store.unit_of_work(CONTROLLER) as tx:
        made = hosts.create(tx, "node2", 100)
    with platform.store.reading() as tx:
        assert FleetCache().look(tx).host(made.id).cores == ()


def test_a_host_that_is_made_of_something_else_now_is_seen_as_it_is(platform):
    cache = FleetCache()
    with platform.store.reading() as tx:
        before = cache.look(tx).host(platform.host_id)
    say(platform, platform.host_id, fewer_cores(platform))
    with platform.store.reading() as tx:
        after = cache.look(tx).host(platform.host_id)
        known = inventory.facts_of(tx, platform.host_id)
    assert len(after.cores) == len(before.cores) - 1
    assert after.generation > before.generation
    assert len(known["cpus"]) == len(after.cores)


def test_warming_reads_so_many_at_most_and_a_look_the_rest(platform):
    ids = {platform.host_id, *(add(platform, f"more{number}") for number in range(4))}
    cache = FleetCache()
    for known in (2, 4, 5, 5):
        with platform.store.reading() as tx:
            cache.warm(tx, 2)
        assert len(cache._hosts) == known
    half = FleetCache()
    with platform.store.reading() as tx:
        half.warm(tx, 2)
        fleet = half.look(tx)
    assert {free.host.id for free in fleet.frees()} == ids


def test_what_changed_and_what_is_gone_is_seen_after_warming(platform):
    gone, kept = add(platform, "node2"), add(platform, "node3")
    cache = FleetCache()
    with platform.store.reading() as tx:
        cache.warm(tx, 10)
    with platform.store.unit_of_work(CONTROLLER) as tx:
        for verb in ("cordon", "fence"):
            hosts.change_state(tx, "node2", verb, "test")
        host_removal.remove(tx, "node2", "test")
        hosts.change_state(tx, "node3", "cordon", "test")
    with platform.store.reading() as tx:
        cache.warm(tx, 10)
        fleet = cache.look(tx)
    assert fleet.position(gone) is None
    assert fleet.host(kept).state is HostState.CORDONED


def test_a_pass_with_nothing_to_place_leaves_little_to_read_for_the_next(platform, read, monkeypatch):
    monkeypatch.setattr(scheduler, "WARMED", 1)
    add(platform, "node2", fewer_cores(platform))
    for _ in range(2):
        platform.schedule()
    assert len(read) == 2
    read.clear()
    platform.create(platform.acme, "train")
    assert platform.schedule().placed == 1
    assert read == []
