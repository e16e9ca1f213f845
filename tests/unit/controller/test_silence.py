"""Hosts that nobody hears become unreachable and come back; each controller judges what all of them heard."""

from __future__ import annotations

import itertools
import re

import pytest
from sqlalchemy import select, update

from orchestrator.controller.silence import Watch
from orchestrator.model.actor import CONTROLLER
from orchestrator.model.states import HostState, InstanceState
from orchestrator.store.clock import database_now_ms
from orchestrator.store.tables.audit import AuditRecordRow
from orchestrator.store.tables.fleet import HostRow
from orchestrator.store.unit_of_work import table_of
from tests.unit.controller.platform import Platform

HOSTS, RECORDS = table_of(HostRow), table_of(AuditRecordRow)
SILENT_S = 90.0


class Controller:
    """One controller's ears and clock; `pass_s` lets time pass for it and for the database."""

    def __init__(self, platform: Platform, now_s: float = 1000.0) -> None:
        self.platform = platform
        self.now_s = now_s
        self.heard_at: dict[str, float] = {}
        self.watch = Watch(platform.store, self, SILENT_S, clock=lambda: self.now_s)

    def ages_s(self) -> dict[str, float]:
        return {host: self.now_s - at for host, at in self.heard_at.items()}

    def hear(self) -> None:
        self.heard_at[self.platform.host_id] = self.now_s

    def pass_s(self, seconds: float) -> None:
        self.now_s += seconds


def age(platform: Platform, seconds: float) -> None:
    """What was written down lies so much longer back."""
    with platform.store.unit_of_work(CONTROLLER) as tx:
        tx.note(update(HOSTS).values(heard_ms=HOSTS.c.heard_ms - int(seconds * 1000)))


def last_heard(platform: Platform, seconds: float) -> None:
    """It was written down so long ago, whatever this test has taken so far."""
    with platform.store.unit_of_work(CONTROLLER) as tx:
        tx.note(update(HOSTS).values(heard_ms=database_now_ms() - int(seconds * 1000)))


def kinds(platform: Platform) -> list[str]:
    with platform.store.reading() as tx:
        rows = tx.all(
            select(RECORDS.c.kind).where(RECORDS.c.kind.like("host.%reachable")).order_by(RECORDS.c.seq)
        )
        return [row.kind for row in rows]


@pytest.fixture
def controller(platform) -> Controller:
    return Controller(platform)


def test_one_that_goes_silent_is_unreachable_and_comes_back(platform, controller):
    platform.create(platform.acme, "train")
    platform.settle()
    controller.hear()
    controller.watch.turn()
    controller.pass_s(120)
    last_heard(platform, 100)
    controller.watch.turn()
    assert platform.host().state is HostState.READY
    controller.pass_s(20)
    last_heard(platform, 140)
    controller.watch.turn()

    host = platform.host()
    assert host.state is HostState.UNREACHABLE
    told = re.fullmatch(
        "no controller has heard it for ([0-9]+) s; its instances are left alone", host.reason
    )
    assert told is not None
    # The database's clock goes on while we look.
    assert 140 <= int(told[1]) < 400
    assert platform.instance(platform.acme, "train").state is InstanceState.RUNNING
    assert len(platform.world.domains) == 1
    assert platform.schedule().placed == 0

    controller.watch.turn()
    assert platform.host().state is HostState.UNREACHABLE
    controller.hear()
    controller.watch.turn()
    assert (platform.host().state, platform.host().reason) == (HostState.READY, "")
    assert kinds(platform) == ["host.unreachable", "host.reachable"]


def test_one_that_was_silent_before_the_controller_began_gets_its_time_and_no_more(platform):
    """Never heard by anybody, or long ago: this process has only its own start to count from."""
    began = Controller(platform)
    began.watch.turn()
    began.pass_s(134)
    began.watch.turn()
    assert platform.host().state is HostState.READY
    began.pass_s(2)
    began.watch.turn()
    assert platform.host().state is HostState.UNREACHABLE
    assert "no controller has heard it ever" in platform.host().reason


def test_one_that_another_controller_hears_is_not_unreachable(platform):
    one, two = Controller(platform), Controller(platform)
    for _ in range(20):
        for each in (one, two):
            each.pass_s(30)
        age(platform, 30)
        one.hear()
        one.watch.turn()
        two.watch.turn()
        assert platform.host().state is HostState.READY
    # Now the first is gone.
    for _ in range(6):
        two.pass_s(30)
        age(platform, 30)
        two.watch.turn()
    assert platform.host().state is HostState.UNREACHABLE


def test_a_host_that_went_over_to_another_controller_is_not_unreachable(platform):
    one, two = Controller(platform), Controller(platform)
    one.hear()
    one.watch.turn()
    for _ in range(10):
        for each in (one, two):
            each.pass_s(30)
        age(platform, 30)
        two.hear()
        two.watch.turn()
        one.watch.turn()
        assert platform.host().state is HostState.READY


def test_being_heard_is_written_once_a_minute_at_most_and_without_a_record(platform, controller):
    with platform.store.reading() as tx:
        records = tx.all(select(RECORDS.c.seq))
    writes: list[int | None] = []
    for _ in range(24):
        controller.hear()
        controller.watch.turn()
        writes.append(platform.host().heard_ms)
        controller.pass_s(5)
        age(platform, 5)
    fresh = [now for before, now in itertools.pairwise(writes) if before and now and now > before - 4000]
    assert writes[0] is not None
    assert len(fresh) == 2
    with platform.store.reading() as tx:
        assert tx.all(select(RECORDS.c.seq)) == records


@pytest.mark.parametrize(
    "state", sorted(set(HostState) - {HostState.READY, HostState.UNREACHABLE, HostState.REMOVED})
)
def test_what_an_operator_set_stays(platform, controller, state):
    with platform.store.unit_of_work(CONTROLLER) as tx:
        tx.note(update(HOSTS).values(state=state))
    controller.pass_s(10_000)
    controller.watch.turn()
    controller.hear()
    controller.watch.turn()
    assert platform.host().state is state
