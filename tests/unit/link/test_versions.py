"""One version apart, both ways, by recorded messages: of the first agents, of our own version, of the next.

`recorded/report-first.json` lacks every field that came later, `report-next.json` has one more everywhere.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.agent.journal import Journal
from orchestrator.agent.link.client import Link
from orchestrator.agent.reconcile import Agent
from orchestrator.agent.sim import sim_host
from orchestrator.model.assignment import Assignment
from orchestrator.model.errors import BulkheadError
from orchestrator.model.protocol import (
    PROTOCOL_VERSION,
    EnrolRequest,
    Heartbeat,
    KeyAnswer,
    KeyRequest,
    RenewRequest,
    check_version,
    parse_assignment_answer,
    parse_message,
    parse_report,
)
from orchestrator.model.wire import Message
from tests.unit.agent.fleet import Fleet
from tests.unit.agent.world_view import broken_invariants
from tests.unit.link.controller import HOST, Controller, passphrase, said
from tests.unit.link.listener import link_of

RECORDED = Path(__file__).parent / "recorded"
NEXT = PROTOCOL_VERSION + 1


def recorded(name: str) -> bytes:
    return (RECORDED / f"{name}.json").read_bytes()


@pytest.mark.parametrize("ours", [1, 2, 7])
def test_a_side_speaks_with_what_is_one_version_apart(ours: int) -> None:
    for said_version in range(12):
        if said_version >= 1 and abs(said_version - ours) <= 1:
            assert check_version(str(said_version), ours) == said_version
            continue
        with pytest.raises(BulkheadError) as refused:
            check_version(str(said_version), ours)
        assert refused.value.code == "protocol.version"


def test_a_newer_agents_report_is_read_without_what_it_adds() -> None:
    found = parse_report(recorded("report-next"), NEXT)
    assert found.agent_version == "0.2.0"
    assert found.report is not None
    assert found.facts is not None
    assert [each.phase.value for each in found.report.instances] == ["running", "running"]
    # Said again in our own version, nothing of it is left over or missing.
    assert parse_report(found.encode()) == found
    assert b"of_next_version" not in found.encode()


def test_our_own_version_stays_closed() -> None:
    for peer in (PROTOCOL_VERSION, PROTOCOL_VERSION - 1):
        with pytest.raises(BulkheadError) as refused:
            parse_report(recorded("report-next"), peer)
        assert refused.value.code == "protocol.bad_message"


def test_a_newer_agent_is_no_less_bounded() -> None:
    body = json.loads(recorded("report-next"))
    for path, value in (
        (("boot_id",), "x" * 129),
        (("report", "revision"), -1),
        (("report", "instances", 0, "phase"), "of_next_version"),
        (("report", "verdicts", 0, "status"), "PASS"),
    ):
        changed: Any = json.loads(json.dumps(body))
        here = changed
        for part in path[:-1]:
            here = here[part]
        here[path[-1]] = value
        with pytest.raises(BulkheadError) as refused:
            parse_report(json.dumps(changed).encode(), NEXT)
        assert refused.value.code == "protocol.bad_message"


def test_the_first_agents_are_still_understood() -> None:
    found = parse_report(recorded("report-first"))
    assert found.report is not None
    assert found.facts is not None
    assert (found.report.devices, found.facts.caches) == ((), ())
    assert all(each.held_generation is None for each in found.report.instances)


PEM = "-----BEGIN CERTIFICATE REQUEST-----\nabc=\n-----END CERTIFICATE REQUEST-----\n"
SMALL: list[tuple[type[Message], dict[str, Any]]] = [
    (Heartbeat, {"boot_id": "b"}),
    (KeyRequest, {"volume": "vol_a", "generation": 1}),
    (RenewRequest, {"csr_pem": PEM}),
    (EnrolRequest, {"token": "t", "csr_pem": PEM}),
    (KeyAnswer, {"passphrase": "a" * 43 + "="}),
]


@pytest.mark.parametrize(("kind", "body"), SMALL, ids=[each[0].__name__ for each in SMALL])
def test_small_messages_of_the_next_version(kind: type[Message], body: dict[str, Any]) -> None:
    raw = json.dumps({**body, "of_next_version": {"a": [1]}}).encode()
    assert parse_message(kind, raw, peer=NEXT).model_dump(mode="json") == body
    with pytest.raises(BulkheadError):
        parse_message(kind, raw)


def test_an_order_is_read_whole_or_refused(tmp_path: Path) -> None:
    """What an agent does not understand of an order could be what isolates: nothing of it is left aside."""
    wanted = json.loads(Fleet(tmp_path).two_tenants().model_dump_json())
    wanted["instances"][0]["of_next_version"] = "only encrypted"
    with pytest.raises(BulkheadError) as refused:
        parse_assignment_answer(json.dumps({"assignment": wanted}).encode())
    assert refused.value.code == "assignment.refused"


def test_an_agent_works_with_a_newer_controller(controller: Controller, tmp_path: Path) -> None:
    """Over real TLS: every answer says the next version, and has more in it than is known here."""
    more = {"of_next_version": 1}
    answers = {
        "/agent/v1/keys": {"passphrase": passphrase("vol_a", 1), **more},
        "/agent/v1/streams": {
            "streams": [{"id": "s1", "kind": "console", "instance": "vm_a", **more}],
            **more,
        },
        "/agent/v1/heartbeat": None,
        "/agent/v1/assignment": None,
    }
    asked: list[str | None] = []

    def instead(request: Any) -> Any:
        asked.append(request.headers.get("Bulkhead-Protocol"))
        body = answers[request.url.path]
        if body is None:
            return said(b"", 204, version=str(NEXT))
        return said(json.dumps(body).encode(), version=str(NEXT))

    controller.answer_instead = instead

    async def talk() -> None:
        link: Link = link_of(controller.authority, HOST, controller.agents.url, tmp_path)
        try:
            await link.heartbeat("boot-1")
            assert await link.passphrase("vol_a", 1) == passphrase("vol_a", 1).encode()
            (order,) = await link.streams(0)
            assert (order.id, order.instance) == ("s1", "vm_a")
            assert await link.next_assignment(0, 0, 0) is None
        finally:
            await link.close()

    asyncio.run(talk())
    # It goes on saying its own version, by which the controller knows how to speak to it.
    assert set(asked) == {str(PROTOCOL_VERSION)}


def test_an_upgraded_agent_takes_over_what_runs_and_touches_nothing(tmp_path: Path) -> None:
    """The process is another, the journal and the VMs are the same: no effect, same pids, same uids."""
    fleet = Fleet(tmp_path)
    wanted = fleet.two_tenants()
    before = fleet.apply(wanted)
    ran = [(each.instance, each.pid, each.uid) for each in before.instances]
    assert all(pid and uid for _, pid, uid in ran)
    seen, changes = fleet.snapshot(), fleet.world.changes

    for _ in range(2):  # up, and back down
        journal = Journal(fleet.settings.journal_path)
        agent = Agent(sim_host(fleet.world), journal, fleet.settings)
        after = agent.apply(wanted)
        assert [(each.instance, each.pid, each.uid) for each in after.instances] == ran
        assert (after.changed, fleet.world.changes, fleet.snapshot()) == (False, changes, seen)

    # The next revision, as a new controller gives one to everybody, changes no VM either.
    again = Agent(sim_host(fleet.world), Journal(fleet.settings.journal_path), fleet.settings).apply(
        Assignment.model_validate({**json.loads(wanted.model_dump_json()), "revision": wanted.revision + 1})
    )
    assert [(each.instance, each.pid, each.uid) for each in again.instances] == ran
    assert fleet.world.changes == changes
    assert broken_invariants(fleet, settled=True) == ()


def test_a_journal_with_more_in_it_is_read_by_the_older_agent(tmp_path: Path) -> None:
    """Going back by one version must not leave a host without its memory."""
    fleet = Fleet(tmp_path)
    fleet.apply(fleet.two_tenants())
    path = fleet.settings.journal_path
    raw = json.loads(path.read_text())
    known = Journal(path).state
    raw["of_next_version"] = {"x": 1}
    for group in ("pool", "ports"):
        for each in raw[group].values():
            each["of_next_version"] = 1
    path.write_text(json.dumps(raw))
    assert Journal(path).state == known
    assert dataclasses.is_dataclass(known)
    raw["version"] = 2
    path.write_text(json.dumps(raw))
    with pytest.raises(BulkheadError) as refused:
        Journal(path)
    assert refused.value.code == "journal.version"
