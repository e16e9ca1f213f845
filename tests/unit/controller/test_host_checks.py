"""What a host found of itself as a whole is kept when it changes, shown, and keeps new instances away."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from sqlalchemy import select

from orchestrator.agent.sim.drivers import SimSwitch
from orchestrator.controller import host_errors
from orchestrator.model.evidence import Status, Verdict
from orchestrator.model.states import InstanceState
from orchestrator.store.tables.audit import AuditRecordRow
from orchestrator.store.unit_of_work import table_of
from tests.unit.controller.platform import Platform

RECORDS = table_of(AuditRecordRow)


def checked(platform: Platform) -> list[dict[str, Any]]:
    with platform.store.reading() as tx:
        rows = tx.all(select(RECORDS).order_by(RECORDS.c.stream, RECORDS.c.seq))
    return [json.loads(row.body) for row in rows if row.kind == "host.checked"]


def report_with(platform: Platform, *verdicts: Verdict) -> None:
    """The host says what it said before, with these verdicts on itself."""
    assert platform.said is not None
    platform.said = dataclasses.replace(platform.said, verdicts=verdicts)
    platform.report()


def flows(status: Status, read: str = "equal") -> Verdict:
    return Verdict("switch.flows", "br-tenants", status, "the 14 flows of the policy", read)


def test_before_a_report_there_is_none(platform: Platform):
    host = platform.host()
    assert (host.evidence, host.failed_checks, host.error) == (None, (), None)


def test_what_passes_is_kept_with_its_digest_in_the_log(platform: Platform):
    platform.apply()
    platform.report()
    host = platform.host()
    assert host.evidence is not None
    assert [(each["id"], each["status"]) for each in host.evidence["verdicts"]] == [("switch.flows", "pass")]
    assert (host.failed_checks, host.error) == ((), None)
    (record,) = checked(platform)
    assert record["outcome"] == "ok"
    assert (record["details"]["checks"], record["details"]["failed"]) == (1, 0)
    assert len(record["details"]["evidence_sha256"]) == 64


def test_only_what_changed_is_written(platform: Platform):
    platform.apply()
    for _ in range(3):
        platform.report()
    before = platform.host()
    assert len(checked(platform)) == 1
    report_with(platform, flows(Status.PASS, "equal, looked again"))
    assert len(checked(platform)) == 2
    digests = {each["details"]["evidence_sha256"] for each in checked(platform)}
    assert len(digests) == 2
    # It still takes what comes: a snapshot of it made before is not stale.
    assert platform.host().generation == before.generation


def test_flows_that_the_switch_lost_and_does_not_take_again_are_told(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
):
    platform.create(platform.acme, "train")
    platform.settle()
    assert (platform.host().error, platform.host().failed_checks) == (None, ())
    platform.world.restart_switch()
    with monkeypatch.context() as deaf:
        deaf.setattr(SimSwitch, "replace_flows", lambda _self, _program: None)
        platform.apply()
    platform.report()
    host = platform.host()
    assert host.error is not None
    assert host.error["code"] == "host.checks_failed"
    assert "switch.flows" in host.error["message"]
    assert [each["status"] for each in host.failed_checks] == ["fail"]
    assert platform.instance(platform.acme, "train").state is InstanceState.RUNNING

    platform.settle()
    assert (platform.host().error, platform.host().failed_checks) == (None, ())


@pytest.mark.parametrize("status", [Status.FAIL, Status.UNKNOWN])
def test_a_host_with_a_check_that_did_not_pass_takes_nothing_new(platform: Platform, status: Status):
    platform.apply()
    report_with(platform, flows(status, "1 differences, first table=0"))
    host = platform.host()
    assert host.error is not None
    assert host.error["code"] == "host.checks_failed"
    assert checked(platform)[-1]["outcome"] == "failed"
    platform.create(platform.acme, "train")
    platform.schedule()
    assert platform.instance(platform.acme, "train").state is InstanceState.PENDING

    report_with(platform, flows(Status.PASS))
    assert platform.host().error is None
    platform.schedule()
    assert platform.instance(platform.acme, "train").state is InstanceState.SCHEDULED


def test_every_check_that_did_not_pass_is_counted():
    verdicts = [flows(Status.PASS), flows(Status.FAIL, "a"), flows(Status.UNKNOWN, "b")]
    told = host_errors.fails_checks(verdicts)
    assert told is not None
    assert str(told["message"]).startswith("2 of 3 checks of the host did not pass, first switch.flows")
    assert host_errors.fails_checks(verdicts[:1]) is None
    assert host_errors.fails_checks([]) is None
