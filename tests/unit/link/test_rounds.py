"""The doctor's rounds: at the start, again and when asked; what is news is told; nothing stops an agent."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path

import pytest
from fastapi import Request, Response

from orchestrator.agent.sim.fleet import MemoryJournal
from orchestrator.model.doctor import Finding, Severity
from orchestrator.model.doctor_message import (
    MAX_DOCTOR_BYTES,
    MAX_FINDINGS,
    DoctorReport,
    parse_doctor,
)
from orchestrator.model.errors import InvalidInputError
from orchestrator.model.evidence import Status
from orchestrator.model.host import HostFacts
from tests.unit.agent.fleet import Fleet
from tests.unit.link.controller import HOST, Controller, said
from tests.unit.link.listener import eventually
from tests.unit.link.living import BRISK, Life

HOURLY = dataclasses.replace(BRISK, doctor_s=0.05)


def found(status: Status = Status.PASS, check: str = "K7", **more: object) -> Finding:
    return dataclasses.replace(
        Finding(check, "host", Severity.MUST, status, "no page is shared", "1", "echo 2 > run"),
        **more,  # type: ignore[arg-type]
    )


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet(tmp_path)


class Doctor:
    """Finds what it is told to."""

    def __init__(self, *findings: Finding) -> None:
        self.findings = findings
        self.looks = 0

    def __call__(self, _facts: HostFacts) -> tuple[Finding, ...]:
        self.looks += 1
        return self.findings


def test_a_host_that_comes_in_is_examined_before_it_says_anything(
    controller: Controller, fleet: Fleet, tmp_path: Path
) -> None:
    heard: list[str] = []

    def note(request: Request) -> Response | None:
        heard.append(request.url.path.rpartition("/")[2])
        return None

    controller.answer_instead = note
    with Life(controller, fleet.world, tmp_path, examine=Doctor(found(Status.FAIL))):
        eventually(lambda: controller.reports)

    assert [each for each in heard if each in ("doctor", "report")][:2] == ["doctor", "report"]
    (_, report), *_ = controller.doctors
    assert (report.boot_id, report.agent_version) == ("sim-boot-1", "0.1.0")
    assert report.findings == (found(Status.FAIL),)


def test_a_host_that_follows_orders_reports_without_waiting_for_its_doctor(
    controller: Controller, fleet: Fleet, tmp_path: Path
) -> None:
    controller.assign(fleet.two_tenants())
    journal = MemoryJournal()
    with Life(controller, fleet.world, tmp_path, journal=journal):
        eventually(lambda: controller.followed(1))
    controller.reports.clear()
    controller.answer_instead = lambda request: (
        said(b"", 503) if request.url.path.endswith("/doctor") else None
    )
    with Life(controller, fleet.world, tmp_path, journal=journal, examine=Doctor(found())):
        eventually(lambda: controller.reports)


def test_what_is_the_same_is_not_said_again_and_what_changed_is(
    controller: Controller, fleet: Fleet, tmp_path: Path
) -> None:
    doctor = Doctor(found())
    with Life(controller, fleet.world, tmp_path, pace=HOURLY, examine=doctor):
        eventually(lambda: doctor.looks > 4)
        assert len(controller.doctors) == 1
        doctor.findings = (found(Status.FAIL),)
        eventually(lambda: len(controller.doctors) == 2)
    assert controller.doctors[-1][1].findings == (found(Status.FAIL),)


def test_after_a_long_while_it_is_said_again(controller: Controller, fleet: Fleet, tmp_path: Path) -> None:
    pace = dataclasses.replace(HOURLY, doctor_tell_s=0.01)
    with Life(controller, fleet.world, tmp_path, pace=pace, examine=Doctor(found())):
        eventually(lambda: len(controller.doctors) > 2)


def test_who_asks_hears_at_once_also_what_is_the_same(
    controller: Controller, fleet: Fleet, tmp_path: Path
) -> None:
    doctor = Doctor(found())
    with Life(controller, fleet.world, tmp_path, examine=doctor):
        eventually(lambda: controller.doctors)
        assert doctor.looks == 1
        controller.asked = True
        eventually(lambda: len(controller.doctors) == 2)
        eventually(lambda: not controller.asked)
        beats = len(controller.beats)
        eventually(lambda: len(controller.beats) > beats + 3)
    assert doctor.looks == 2


def test_a_controller_of_the_version_before_is_left_in_peace(
    controller: Controller, fleet: Fleet, tmp_path: Path
) -> None:
    asked: list[str] = []

    def older(request: Request) -> Response | None:
        if request.url.path != "/agent/v1/doctor":
            return None
        asked.append(request.url.path)
        return Response(b'{"detail":"Not Found"}', 404, media_type="application/json")

    controller.answer_instead = older
    controller.assign(fleet.two_tenants())
    life = Life(controller, fleet.world, tmp_path, examine=Doctor(found()))
    with life:
        eventually(lambda: controller.followed(1))
        beats = len(controller.beats)
        eventually(lambda: len(controller.beats) > beats + 5)
    assert len(asked) == 1
    assert [line for line in life.said if "doctor" in line] == ["the controller does not know the doctor yet"]


def test_a_controller_that_is_gone_for_a_while_hears_it_later(
    controller: Controller, fleet: Fleet, tmp_path: Path
) -> None:
    tries: list[int] = []

    def away(request: Request) -> Response | None:
        if request.url.path == "/agent/v1/doctor" and len(tries) < 3:
            tries.append(1)
            return said(b"", 503)
        return None

    controller.answer_instead = away
    with Life(controller, fleet.world, tmp_path, examine=Doctor(found())):
        eventually(lambda: controller.reports)
    assert len(tries) == 3
    assert len(controller.doctors) == 1


def test_a_doctor_that_breaks_or_hangs_is_no_pass(
    controller: Controller, fleet: Fleet, tmp_path: Path
) -> None:
    def breaks(_facts: HostFacts) -> tuple[Finding, ...]:
        raise KeyError("kernel")

    def hangs(_facts: HostFacts) -> tuple[Finding, ...]:
        time.sleep(0.5)
        return (found(),)

    for doctor, read in ((breaks, "KeyError: 'kernel'"), (hangs, "no end within 0.1 s")):
        controller.reset()
        pace = dataclasses.replace(BRISK, doctor_limit_s=0.1)
        with Life(controller, fleet.world, tmp_path, pace=pace, examine=doctor):
            eventually(lambda: controller.doctors and controller.reports)
        (finding,) = controller.doctors[0][1].findings
        assert (finding.id, finding.severity, finding.status) == (
            "doctor.ran",
            Severity.MUST,
            Status.UNKNOWN,
        )
        assert finding.read == read


def test_what_the_operator_accepts_is_told_with_it(
    controller: Controller, fleet: Fleet, tmp_path: Path
) -> None:
    doctor = Doctor(found(Status.FAIL), found(check="K1"), found(Status.UNKNOWN, "K2"))
    with Life(controller, fleet.world, tmp_path, examine=doctor, accepted=("K7", "K1")):
        eventually(lambda: controller.doctors)
    host, report = controller.doctors[0]
    assert (host, report.accepted) == (HOST, ("K1", "K7"))
    assert [(each.id, each.status, each.accepted) for each in report.findings] == [
        ("K7", Status.FAIL, True),
        ("K1", Status.PASS, False),
        ("K2", Status.UNKNOWN, False),
    ]


# -- the message


REPORT = DoctorReport("boot", "0.1.0", ("K7",), (found(Status.FAIL, accepted=True), found(check="K1")))


def test_a_report_comes_back_as_it_went() -> None:
    assert parse_doctor(REPORT.encode()) == REPORT


def test_long_texts_are_cut_and_too_many_passes_left_out() -> None:
    many = tuple(
        found(Status.FAIL if number % 500 == 0 else Status.PASS, subject=f"vm_{number}", read="r" * 5000)
        for number in range(6000)
    )
    raw = dataclasses.replace(REPORT, findings=many).encode()
    assert len(raw) <= MAX_DOCTOR_BYTES
    read = parse_doctor(raw)
    assert len(read.findings) + read.passes_left_out == 6000
    assert len(read.findings) <= MAX_FINDINGS
    assert sum(each.status is Status.FAIL for each in read.findings) == 12
    assert all(len(each.read) <= 1024 for each in read.findings)


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"version": 2}, "version"),
        ({"version": None}, "version"),
        ({"boot_id": ""}, "boot_id"),
        ({"agent_version": "1 2"}, "agent_version"),
        ({"accepted": ["K7"] * 257}, "accepted"),
        ({"accepted": ["**"]}, "accepted"),
        ({"accepted": "K7"}, "accepted"),
        ({"findings": []}, "findings"),
        ({"findings": None}, "findings"),
        ({"findings": [{}]}, "findings"),
        ({"passes_left_out": -1}, "passes_left_out"),
        ({"more": 1}, "more"),
    ],
)
def test_a_wrong_message_is_refused_whole(change: dict[str, object], where: str) -> None:
    body = {**json.loads(REPORT.encode()), **change}
    with pytest.raises(InvalidInputError) as refused:
        parse_doctor(json.dumps(body).encode())
    assert refused.value.code == "protocol.bad_message"
    assert (refused.value.field or "").startswith(where)


@pytest.mark.parametrize(
    "change",
    [
        {"id": "K 7"},
        {"id": ""},
        {"id": "K" * 40},
        {"subject": "s" * 129},
        {"severity": "fatal"},
        {"status": "good"},
        {"read": "r" * 5000},
        {"accepted": 1},
        {"status": "pass", "accepted": True},
        {"more": 1},
    ],
)
def test_a_wrong_finding_is_refused_with_all_others(change: dict[str, object]) -> None:
    body = json.loads(REPORT.encode())
    body["findings"][0] |= change
    with pytest.raises(InvalidInputError, match=r"protocol\.bad_message"):
        parse_doctor(json.dumps(body).encode())


def test_a_check_stands_once_for_a_subject() -> None:
    body = json.loads(REPORT.encode())
    body["findings"] *= 2
    with pytest.raises(InvalidInputError, match="twice"):
        parse_doctor(json.dumps(body).encode())


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000])
def test_what_is_no_message_is_refused(raw: bytes) -> None:
    with pytest.raises(InvalidInputError, match=r"protocol\.bad_message"):
        parse_doctor(raw)


def test_a_long_subject_is_cut_and_not_refused() -> None:
    raw = dataclasses.replace(REPORT, findings=(found(subject="s" * 500),)).encode()
    assert len(parse_doctor(raw).findings[0].subject) == 128


def test_there_is_an_end_to_a_message() -> None:
    with pytest.raises(InvalidInputError, match=r"protocol\.too_large"):
        parse_doctor(b" " * (MAX_DOCTOR_BYTES + 1))


def test_nothing_that_a_host_says_steers_a_terminal() -> None:
    finding = found(Status.FAIL, check="K1", read="\x1b[2J\u202ered", subject="a\nb", mend="\x07")
    read = parse_doctor(dataclasses.replace(REPORT, findings=(finding,)).encode()).findings[0]
    assert (read.read, read.subject, read.mend) == ("?[2J?red", "a?b", "?")
