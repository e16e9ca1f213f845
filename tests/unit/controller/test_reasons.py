"""Why a request waits is told at once, and its counts are renewed later, within what one pass may cost."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import select, update

from orchestrator.controller import hosts, scheduler
from orchestrator.model.actor import CONTROLLER
from orchestrator.model.request import CapacityRequest
from orchestrator.store.nouns import REQUESTS
from orchestrator.store.rows import PLATFORM
from orchestrator.store.tables.audit import AuditRecordRow
from orchestrator.store.tables.fleet import HostRow
from orchestrator.store.unit_of_work import table_of
from tests.unit.controller.platform import Platform

RECORDS, HOSTS = table_of(AuditRecordRow), table_of(HostRow)


@pytest.fixture
def crowded(platform: Platform) -> Platform:
    """No host takes anything, and three wait and were told so just now."""
    platform.store.clock = lambda: platform.now_ms  # type: ignore[attr-defined]
    platform.now_ms = 1_900_000_000_000  # type: ignore[attr-defined]
    cordon(platform, "node1")
    for name in ("one", "two", "three"):
        platform.create(platform.acme, name)
        platform.now_ms += 1  # type: ignore[attr-defined]
    platform.schedule()
    return platform


def cordon(platform: Platform, name: str) -> None:
    with platform.store.unit_of_work(CONTROLLER) as tx:
        tx.note(
            update(HOSTS)
            .where(HOSTS.c.name == name)
            .values(state="cordoned", generation=HOSTS.c.generation + 1)
        )


def another_host(platform: Platform, name: str) -> None:
    """One more that takes nothing: every count of hosts changes, and no reason does."""
    with platform.store.unit_of_work(CONTROLLER) as tx:
        hosts.create(tx, name, 10)
    cordon(platform, name)


def later(platform: Platform, more_ms: int) -> None:
    platform.now_ms += more_ms  # type: ignore[attr-defined]


def told(platform: Platform) -> list[CapacityRequest]:
    with platform.store.reading() as tx:
        found = REQUESTS.where(tx, PLATFORM)
    return sorted(found, key=lambda each: each.submitted_ms)


def counts(platform: Platform) -> list[Any]:
    return [(each.reason or {}).get("hosts") for each in told(platform)]


def records(platform: Platform) -> int:
    with platform.store.reading() as tx:
        return len(tx.all(select(RECORDS.c.seq)))


def test_counts_that_changed_are_renewed_after_a_while_and_not_before(crowded: Platform):
    assert counts(crowded) == [1, 1, 1]
    another_host(crowded, "node2")
    before = records(crowded)
    later(crowded, scheduler.RENEW_MS - 1)
    crowded.schedule()
    assert counts(crowded) == [1, 1, 1]
    later(crowded, 1)
    crowded.schedule()
    assert counts(crowded) == [2, 2, 2]
    assert {each.reason_ms for each in told(crowded)} == {crowded.now_ms}  # type: ignore[attr-defined]
    # The instance says the same; that is no news, so nothing of it stands in the log or changes its date.
    one = crowded.instance(crowded.acme, "one")
    assert one.error is not None
    assert "2 of 2 hosts" in one.error["message"]
    assert one.updated_ms < crowded.now_ms  # type: ignore[attr-defined]
    assert records(crowded) == before


def test_counts_that_did_not_change_are_not_written(crowded: Platform):
    before = [each.reason_ms for each in told(crowded)]
    later(crowded, 10 * scheduler.RENEW_MS)
    crowded.schedule()
    assert [each.reason_ms for each in told(crowded)] == before


def test_one_pass_renews_so_many_and_the_next_the_others(crowded: Platform, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scheduler, "MAX_RENEWED", 2)
    another_host(crowded, "node2")
    later(crowded, scheduler.RENEW_MS)
    crowded.schedule()
    assert sorted(counts(crowded)) == [1, 2, 2]
    crowded.schedule()
    assert counts(crowded) == [2, 2, 2]


def test_another_reason_is_told_at_once_and_recorded(crowded: Platform):
    before = records(crowded)
    with crowded.store.unit_of_work(CONTROLLER) as tx:
        tx.note(update(HOSTS).values(state="ready", disk_gib=0, generation=HOSTS.c.generation + 1))
    crowded.schedule()
    assert {(each.reason or {})["code"] for each in told(crowded)} == {"disk.short"}
    assert records(crowded) == before + 3


def test_a_place_that_breaks_a_rule_is_refused_told_and_holds_nobody_back(
    platform: Platform, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The planner makes no such place, so the checker is made to see one."""
    names = ("first", "wrong", "last")
    begun = {name: platform.create(platform.acme, name) for name in names}
    wrong = platform.instance(platform.acme, "wrong").id
    (request,) = [each.id for each in told(platform) if each.instance_id == wrong]
    judge = scheduler.violations

    def seen(placement: Any, demand: Any, host: Any) -> tuple[str, ...]:
        found = judge(placement, demand, host)
        return (*found, "it glows") if demand.request == request else found

    monkeypatch.setattr(scheduler, "violations", seen)
    done = platform.schedule()
    # The one behind it counted on it, on the same host: decided anew.
    assert (done.placed, done.failed, done.stale) == (1, 1, 1)
    assert platform.schedule().placed == 1
    platform.settle()

    states = {name: platform.instance(platform.acme, name).state.value for name in names}
    assert states == {"first": "running", "wrong": "error", "last": "running"}
    error = platform.instance(platform.acme, "wrong").error
    assert (error["code"], "it glows" in error["message"]) == ("placement.invalid", True)
    assert platform.operation(begun["wrong"]).state.value == "failed"
    assert "it glows" in caplog.text
    with platform.store.reading() as tx:
        kinds = [row.kind for row in tx.all(select(RECORDS.c.kind))]
    assert kinds.count("instance.placement_invalid") == 1
    platform.ask(platform.acme, "remove", "wrong")
    assert {each.name for each in platform.all_instances()} == {"first", "last"}
