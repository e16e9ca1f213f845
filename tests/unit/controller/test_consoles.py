"""Tickets and orders of streams as rows: once, in time, for their own host, then gone; on both databases."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import select, update

from orchestrator.access.tokens import ParsedToken, token_hash
from orchestrator.controller import checks, consoles, host_removal, hosts, streams, tenants
from orchestrator.controller.consoles import NewTicket
from orchestrator.controller.switchboard import Wanted
from orchestrator.model.actor import CONTROLLER, Actor
from orchestrator.model.errors import ConflictError, HostError, NotFoundError, UnauthenticatedError
from orchestrator.store.tables.consoles import ConsoleTicketRow, StreamOrderRow
from orchestrator.store.tables.fleet import HostRow
from orchestrator.store.tables.people import PrincipalRow
from orchestrator.store.unit_of_work import table_of
from tests.unit.controller.platform import Platform

PEPPER, SECRET = b"p" * 32, b"s" * 32
SHOWN = ParsedToken("ctk_one", SECRET)
WHO = Actor(kind="anonymous", id="", address="192.0.2.7", request_id="call-4711")
_PEOPLE, _HOSTS = table_of(PrincipalRow), table_of(HostRow)


@pytest.fixture
def running(platform: Platform) -> Platform:
    """With one instance of acme that runs."""
    platform.create(platform.acme, "train")
    platform.settle()
    return platform


def issue(platform: Platform, caller: Any = None, name: str = "train") -> consoles.Ticket:
    who = caller or platform.acme
    with platform.store.unit_of_work(who.actor) as tx:
        return consoles.issue(tx, who, name, NewTicket(SHOWN.key_id, token_hash(PEPPER, SECRET)))


def redeem(platform: Platform, shown: ParsedToken = SHOWN, beside: str | None = None) -> consoles.Looker:
    with platform.store.unit_of_work(WHO) as tx:
        return consoles.redeem(tx, PEPPER, shown, WHO, beside)


def change(platform: Platform, statement: Any) -> None:
    with platform.store.unit_of_work(CONTROLLER) as tx:
        tx.note(statement)


def later(platform: Platform, seconds: float) -> None:
    now = platform.store.clock()
    platform.store.clock = lambda: now + int(seconds * 1000)


def rows(platform: Platform, row: Any) -> list[Any]:
    with platform.store.reading() as tx:
        return list(tx.all(select(table_of(row))))


def test_a_ticket_stands_for_its_maker_once(running: Platform) -> None:
    issue(running)
    looker = redeem(running)
    assert (looker.instance_id, looker.host_id) == (
        running.instance(running.acme, "train").id,
        running.host_id,
    )
    assert looker.actor == Actor(
        "user", running.acme.principal.id, running.acme.tenant_id, "", "192.0.2.7", "call-4711"
    )
    for _ in range(2):
        with pytest.raises(UnauthenticatedError):
            redeem(running)


@pytest.mark.parametrize("shown", [ParsedToken("ctk_two", SECRET), ParsedToken("ctk_one", b"?" * 32)])
def test_a_wrong_ticket_is_refused_and_the_right_one_stays_good(
    running: Platform, shown: ParsedToken
) -> None:
    issue(running)
    with pytest.raises(UnauthenticatedError):
        redeem(running, shown)
    redeem(running)


def test_a_ticket_lasts_for_seconds(running: Platform) -> None:
    ticket = issue(running)
    assert ticket.expires_ms == rows(running, ConsoleTicketRow)[0].expires_ms
    later(running, consoles.TICKET_S)
    with pytest.raises(UnauthenticatedError):
        redeem(running)


def test_whoever_else_shows_it_with_their_own_token_is_refused(running: Platform) -> None:
    issue(running)
    with pytest.raises(UnauthenticatedError):
        redeem(running, beside=running.globex.principal.id)
    redeem(running, beside=running.acme.principal.id)


def test_a_maker_who_may_not_any_more_has_no_ticket(running: Platform) -> None:
    issue(running)
    mine = _PEOPLE.c.id == running.acme.principal.id
    for before, after in (
        ({"roles": ["auditor"]}, {"roles": ["member"]}),
        ({"disabled": True}, {"disabled": False}),
    ):
        change(running, update(_PEOPLE).where(mine).values(**before))
        with pytest.raises(UnauthenticatedError):
            redeem(running)
        change(running, update(_PEOPLE).where(mine).values(**after))
    looker = redeem(running)
    with running.store.reading() as tx:
        consoles.demand_still(tx, looker, running.store.clock())
    change(running, update(_PEOPLE).where(mine).values(disabled=True))
    with running.store.reading() as tx, pytest.raises(UnauthenticatedError):
        consoles.demand_still(tx, looker, running.store.clock())


def test_a_fenced_hosts_consoles_are_ended(running: Platform) -> None:
    issue(running)
    looker = redeem(running)
    change(running, update(_HOSTS).values(state="unreachable"))
    with running.store.reading() as tx:
        consoles.demand_still(tx, looker, running.store.clock())
    change(running, update(_HOSTS).values(state="fenced"))
    with running.store.reading() as tx, pytest.raises(HostError):
        consoles.demand_still(tx, looker, running.store.clock())


def test_another_tenants_instance_and_one_that_waits_have_no_ticket(running: Platform) -> None:
    with pytest.raises(NotFoundError):
        issue(running, running.globex)
    running.create(running.acme, "waits")
    with pytest.raises(ConflictError) as told:
        issue(running, name="waits")
    assert told.value.code == "console.not_running"
    with running.store.unit_of_work(running.acme.actor) as tx, pytest.raises(NotFoundError) as none:
        consoles.read_log(tx, running.acme, "waits", 100)
    assert none.value.code == "console_log.none"
    assert rows(running, ConsoleTicketRow) == []


def wanted(platform: Platform, identity: str = "str_one", **more: Any) -> Wanted:
    instance = platform.instance(platform.acme, "train")
    return Wanted(
        **{
            "id": identity,
            "kind": "console",
            "tenant_id": instance.tenant_id,
            "instance_id": instance.id,
            "host_id": platform.host_id,
            "request_id": "call-4711",
            **more,
        }
    )


def due(platform: Platform, host_id: str) -> tuple[Any, ...]:
    with platform.store.reading() as tx:
        return streams.due(tx, host_id, platform.store.clock())


def test_an_order_is_its_hosts_alone_until_it_is_dialled(running: Platform) -> None:
    rung: list[frozenset[str]] = []
    running.store.bell = rung.append
    with running.store.unit_of_work(CONTROLLER) as tx:
        other = hosts.create(tx, "node2", 10).id
        streams.order(tx, wanted(running, last_bytes=7), "https://here:1", 10)
    assert frozenset({streams.topic(running.host_id)}) <= rung[-1]
    (order,) = due(running, running.host_id)
    assert (order.id, order.instance, order.last_bytes) == ("str_one", wanted(running).instance_id, 7)
    assert (order.request_id, order.url) == ("call-4711", "https://here:1")
    assert due(running, other) == ()
    with running.store.unit_of_work(CONTROLLER) as tx:
        assert not streams.take(tx, "str_one", other)
        assert streams.take(tx, "str_one", running.host_id)
        assert not streams.take(tx, "str_one", running.host_id)
    assert due(running, running.host_id) == ()


def test_what_nobody_waits_for_any_more_is_not_dialled_and_is_swept(running: Platform) -> None:
    issue(running)
    with running.store.unit_of_work(CONTROLLER) as tx:
        streams.order(tx, wanted(running), "", 10)
        streams.order(tx, wanted(running, "str_two"), "", 60)
    later(running, consoles.TICKET_S + 1)
    assert [each.id for each in due(running, running.host_id)] == ["str_two"]
    with running.store.unit_of_work(CONTROLLER) as tx:
        consoles.sweep(tx)
        streams.sweep(tx)
    assert rows(running, ConsoleTicketRow) == []
    assert [row.id for row in rows(running, StreamOrderRow)] == ["str_two"]


def test_a_deleted_tenant_and_a_forgotten_host_leave_no_row(running: Platform) -> None:
    issue(running)
    with running.store.unit_of_work(CONTROLLER) as tx:
        streams.order(tx, wanted(running), "", 60)
    running.ask(running.acme, "remove", "train")
    running.settle()
    with running.store.unit_of_work(CONTROLLER) as tx:
        streams.order(tx, _of(running, running.globex), "", 60)
        host_removal.forget(tx, running.host())
        tx.record("test.change", ("test", "x"), tenant=None)
    assert rows(running, StreamOrderRow) == []


def _of(platform: Platform, caller: Any) -> Wanted:
    with platform.store.reading() as tx:
        instance = tx.first(select(table_of(ConsoleTicketRow)))
    assert instance is not None
    return Wanted("str_late", "console", caller.tenant_id, instance.instance_id, platform.host_id, "")


def test_the_checker_would_notice_tickets_of_a_deleted_tenant(running: Platform) -> None:
    issue(running)
    running.ask(running.acme, "remove", "train")
    running.settle()
    with running.store.reading() as tx:
        assert not [each for each in checks.violations(tx) if "console_ticket" in each]
    change(running, update(tenants._TENANTS).where(tenants._TENANTS.c.name == "acme").values(state="deleted"))
    with running.store.reading() as tx:
        assert [each for each in checks.violations(tx) if "console_ticket" in each]
