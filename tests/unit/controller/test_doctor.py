"""What a host's doctor found is kept and audited; it takes the host out, and lifts no person's cordon."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from sqlalchemy import select, update

from orchestrator.agent.sim.doctor import SOUND
from orchestrator.controller import doctor, drain, enrolment, host_removal, hosts, reports
from orchestrator.model.actor import CONTROLLER, Actor
from orchestrator.model.doctor import Finding, Severity, accepting
from orchestrator.model.doctor_message import DoctorReport
from orchestrator.model.errors import ConflictError, NotFoundError
from orchestrator.model.evidence import Status
from orchestrator.model.fleet import FleetHost
from orchestrator.model.states import HostState, InstanceState
from orchestrator.store.ids import new_id
from orchestrator.store.tables.audit import AuditRecordRow
from orchestrator.store.tables.fleet import HostDoctorRow, HostRow
from orchestrator.store.unit_of_work import table_of
from tests.unit.controller.platform import Platform

RECORDS, HOSTS = table_of(AuditRecordRow), table_of(HostRow)
PASS, FAIL, UNKNOWN = Status.PASS, Status.FAIL, Status.UNKNOWN
READY, CORDONED = HostState.READY, HostState.CORDONED
MUST, POLICY = Severity.MUST, Severity.POLICY


def found(check: str, status: Status, severity: Severity = MUST, **more: Any) -> Finding:
    return dataclasses.replace(Finding(check, "host", severity, status, "as it should be", "1", ""), **more)


def says(
    platform: Platform, *findings: Finding, accepted: tuple[str, ...] = (), version: str = "test"
) -> FleetHost:
    """The host's doctor found these, and nothing else worth a word."""
    told = accepting(findings or (found("K1", PASS),), frozenset(accepted))
    with platform.store.unit_of_work(Actor(kind="host", id=platform.host_id)) as tx:
        doctor.taken_in(tx, platform.host_id, DoctorReport("boot", version, accepted, told))
    return platform.host()


def orders(platform: Platform, verb: str, reason: str = "mine") -> FleetHost:
    with platform.store.unit_of_work(CONTROLLER) as tx:
        return hosts.change_state(tx, platform.host_id, verb, reason)


def records(platform: Platform, kind: str) -> list[dict[str, Any]]:
    with platform.store.reading() as tx:
        rows = tx.all(select(RECORDS).order_by(RECORDS.c.stream, RECORDS.c.seq))
    return [json.loads(row.body) for row in rows if row.kind == kind]


def test_before_its_doctor_spoke_a_host_is_as_its_agent_says(platform: Platform):
    host = platform.host()
    assert (host.state, host.doctor, doctor.standing_of(host)) == (READY, None, None)
    with platform.store.reading() as tx:
        assert doctor.last(tx, host) is None


def test_what_was_found_is_kept_with_who_found_it_and_shown(platform: Platform):
    host = says(
        platform,
        found("K1", PASS),
        found("K2", FAIL, POLICY),
        found("K7", FAIL),
        found("L8", UNKNOWN),
        accepted=("K7", "L8"),
    )
    assert host.doctor is not None
    said = dict(host.doctor)
    assert said.pop("checked_ms") == said.pop("changed_ms") > 0
    assert len(said.pop("verdicts_sha256")) == 64
    assert said == {
        "agent_version": "test",
        "accepted": ["K7", "L8"],
        "failed": [],
        "unknown": [],
        "warned": ["K2"],
        "lived_with": ["K7", "L8"],
        "counts": {"pass": 1, "fail": 2, "unknown": 1},
    }
    with platform.store.reading() as tx:
        kept = doctor.last(tx, host)
    assert kept is not None
    assert [(each["id"], each["status"], each["accepted"]) for each in kept.findings] == [
        ("K1", "pass", False),
        ("K2", "fail", False),
        ("K7", "fail", True),
        ("L8", "unknown", True),
    ]


def test_only_a_change_of_verdicts_is_an_audit_record(platform: Platform):
    first = says(platform, found("K1", PASS), found("K2", FAIL, POLICY))
    again = says(platform, found("K1", PASS, read="looked again"), found("K2", FAIL, POLICY, read="2"))
    assert len(records(platform, "host.doctor")) == 1
    assert first.doctor is not None
    assert again.doctor is not None
    assert again.doctor["changed_ms"] == first.doctor["changed_ms"]
    assert again.doctor["checked_ms"] >= first.doctor["checked_ms"]
    # The newest texts are kept all the same, and a placement under way is not disturbed.
    with platform.store.reading() as tx:
        kept = doctor.last(tx, again)
    assert kept is not None
    assert [each["read"] for each in kept.findings] == ["looked again", "2"]
    assert again.generation == first.generation

    says(platform, found("K1", PASS), found("K2", PASS, POLICY))
    says(platform, found("K1", PASS), accepted=("K9",))
    says(platform, found("K1", PASS), accepted=("K9",), version="next")
    says(platform, found("K1", FAIL))
    told = records(platform, "host.doctor")
    assert len(told) == 5
    assert [each["outcome"] for each in told] == ["ok"] * 4 + ["failed"]
    assert told[-1]["details"]["failed"] == ["K1"]
    assert told[-1]["actor"]["kind"] == "host"


def test_a_failing_must_check_takes_a_ready_host_out_and_its_passing_brings_it_back(platform: Platform):
    platform.create(platform.acme, "train")
    platform.settle()
    host = says(platform, found("K7", FAIL), found("L2", FAIL), found("L2", FAIL, subject="vm_a"))
    assert (host.state, host.cordoned_by, host.reason) == (CORDONED, "doctor", "doctor: K7 L2 fail")
    platform.create(platform.acme, "second")
    platform.schedule()
    assert platform.instance(platform.acme, "second").state is InstanceState.PENDING
    # What runs goes on.
    assert platform.instance(platform.acme, "train").state is InstanceState.RUNNING
    (record,) = records(platform, "host.cordon")
    assert (record["stage"], record["details"]["by"]) == ("outcome", "doctor")
    assert record["details"]["reason"] == "doctor: K7 L2 fail"

    host = says(platform, found("K7", PASS), found("L2", FAIL))
    assert (host.state, host.reason) == (CORDONED, "doctor: L2 fails")
    host = says(platform, found("K7", PASS), found("L2", PASS))
    assert (host.state, host.cordoned_by, host.reason) == (READY, "", "")
    assert records(platform, "host.uncordon")[0]["details"]["by"] == "doctor"
    platform.schedule()
    assert platform.instance(platform.acme, "second").state is InstanceState.SCHEDULED


@pytest.mark.parametrize("severity", [MUST, POLICY])
def test_what_is_policy_or_accepted_takes_nothing_out(platform: Platform, severity: Severity):
    accepted = ("K7",) if severity is MUST else ()
    assert says(platform, found("K7", FAIL, severity), accepted=accepted).state is READY
    assert says(platform, found("K7", UNKNOWN, severity), accepted=("*",)).state is READY


def test_to_accept_what_fails_brings_a_host_back_and_to_stop_accepting_takes_it_out(platform: Platform):
    assert says(platform, found("K7", FAIL)).state is CORDONED
    host = says(platform, found("K7", FAIL), accepted=("K7",))
    assert host.state is READY
    assert host.doctor is not None
    assert host.doctor["lived_with"] == ["K7"]
    assert says(platform, found("K7", FAIL)).state is CORDONED


def test_without_an_answer_a_passing_host_stays_and_a_cordoned_one_too(platform: Platform):
    assert says(platform, found("K7", UNKNOWN)).state is READY
    assert says(platform, found("K7", FAIL)).state is CORDONED
    host = says(platform, found("K7", UNKNOWN))
    assert (host.state, host.reason) == (CORDONED, "doctor: K7 unknown")
    assert says(platform, found("K7", PASS)).state is READY


@pytest.mark.parametrize(
    ("status", "state", "reason"),
    [(PASS, READY, ""), (FAIL, CORDONED, "doctor: K7 fails"), (UNKNOWN, CORDONED, "doctor: K7 unknown")],
)
def test_a_host_that_comes_in_is_ready_only_when_every_must_check_passes(
    platform: Platform, status: Status, state: HostState, reason: str
):
    with platform.store.unit_of_work(CONTROLLER) as tx:
        platform.host_id = hosts.create(tx, "node2", 100).id
    assert says(platform, found("K7", status)).state is HostState.ENROLLING
    with platform.store.unit_of_work(Actor(kind="host", id=platform.host_id)) as tx:
        reports.received(tx, platform.host_id, reports.Said("boot", "test", None, None, None))
    host = platform.host()
    assert (host.state, host.reason, host.cordoned_by) == (state, reason, "doctor" if reason else "")


@pytest.mark.parametrize(("status", "state"), [(PASS, READY), (UNKNOWN, READY), (FAIL, CORDONED)])
def test_a_host_that_comes_back_is_what_its_doctor_says(platform: Platform, status: Status, state: HostState):
    says(platform, found("K7", PASS))
    with platform.store.unit_of_work(CONTROLLER) as tx:
        tx.note(HOSTS.update().values(state=HostState.UNREACHABLE, reason="silent"))
    assert says(platform, found("K7", status)).state is HostState.UNREACHABLE
    platform.report()
    assert platform.host().state is state


def test_a_persons_cordon_is_never_lifted(platform: Platform):
    orders(platform, "cordon")
    for status in (FAIL, UNKNOWN, PASS):
        host = says(platform, found("K7", status))
        assert (host.state, host.cordoned_by, host.reason) == (CORDONED, "operator", "mine")
    assert orders(platform, "uncordon").state is READY


def test_a_person_takes_a_doctors_cordon_over(platform: Platform):
    says(platform, found("K7", FAIL))
    host = orders(platform, "cordon", "dimm")
    assert (host.state, host.cordoned_by, host.reason) == (CORDONED, "operator", "dimm")
    assert says(platform, found("K7", PASS)).state is CORDONED
    with pytest.raises(ConflictError, match=r"host\.state"):
        orders(platform, "cordon")


@pytest.mark.parametrize("status", [FAIL, UNKNOWN])
def test_a_person_cannot_overrule_the_doctor_but_accept(platform: Platform, status: Status):
    says(platform, found("K7", FAIL))
    says(platform, found("K7", status))
    with pytest.raises(ConflictError) as refused:
        orders(platform, "uncordon")
    assert refused.value.code == "host.doctor_failed"
    assert "K7" in refused.value.message
    assert "doctor_accepted" in (refused.value.hint or "")
    assert platform.host().state is CORDONED


def test_a_person_brings_back_what_a_person_took_out_where_the_doctor_only_does_not_know(platform: Platform):
    orders(platform, "cordon")
    says(platform, found("K7", UNKNOWN))
    assert orders(platform, "uncordon").state is READY


def test_what_a_doctor_of_another_version_said_binds_nobody(platform: Platform):
    says(platform, found("K7", FAIL), version="before")
    assert orders(platform, "uncordon").state is READY


def test_a_drain_goes_on_and_its_host_comes_back_only_sound(platform: Platform):
    with platform.store.unit_of_work(platform.acme.actor) as tx:
        drain.begin(
            tx,
            platform.acme,
            platform.host_id,
            policy="stop",
            deadline_s=60,
            reason="dimm",
            operation_id=new_id("op"),
        )
    assert says(platform, found("K7", FAIL)).state is HostState.DRAINING
    with pytest.raises(ConflictError, match=r"host\.doctor_failed"):
        orders(platform, "uncordon")
    assert says(platform, found("K7", PASS)).state is HostState.DRAINING
    assert orders(platform, "uncordon").state is READY


def test_who_asks_is_remembered_until_the_doctor_spoke(platform: Platform):
    def asked() -> bool:
        return platform.host().doctor_asked_ms is not None

    assert not asked()
    with platform.store.unit_of_work(CONTROLLER) as tx:
        doctor.ask(tx, platform.host())
    assert asked()
    assert len(records(platform, "host.ask_doctor")) == 1
    says(platform, found("K7", PASS))
    assert not asked()


def test_nobody_asks_a_host_that_does_not_hear(platform: Platform):
    with platform.store.unit_of_work(CONTROLLER) as tx:
        tx.note(HOSTS.update().values(state=HostState.UNREACHABLE))
    with pytest.raises(ConflictError, match=r"host\.state"), platform.store.unit_of_work(CONTROLLER) as tx:
        doctor.ask(tx, platform.host())


def test_a_fenced_host_that_comes_in_anew_brings_nothing_of_what_was_said_before(platform: Platform):
    says(platform, found("K7", PASS))
    orders(platform, "cordon")
    orders(platform, "fence")
    with platform.store.unit_of_work(CONTROLLER) as tx:
        enrolment.begin_anew(tx, platform.host_id)
        tx.record("host.enrol", ("host", platform.host_id), tenant=None)
    host = platform.host()
    assert (host.state, host.doctor) == (HostState.ENROLLING, None)
    with platform.store.reading() as tx:
        assert doctor.last(tx, host) is None


def test_a_host_that_is_forgotten_takes_its_findings_with_it(platform: Platform):
    says(platform, found("K7", PASS))
    with platform.store.unit_of_work(CONTROLLER) as tx:
        tx.note(update(table_of(HostRow)).values(state=HostState.DRAINED))
        host_removal.remove(tx, platform.host_id, "sold")
    with platform.store.reading() as tx:
        assert tx.all(select(table_of(HostDoctorRow))) == []
    with pytest.raises(NotFoundError):
        says(platform, found("K7", PASS))


def test_a_simulated_host_is_sound(platform: Platform):
    assert says(platform, *SOUND).state is READY
    assert doctor.standing_of(platform.host()) == "sound"
