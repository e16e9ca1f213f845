"""The wire: what goes out comes back the same, and what a hostile host sends is refused without an end."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.model.errors import BulkheadError, HostError
from orchestrator.model.evidence import Status, Verdict
from orchestrator.model.parsing import AssignmentRefused
from orchestrator.model.protocol import (
    MAX_REPORT_BYTES,
    EnrolAnswer,
    KeyAnswer,
    Report,
    check_version,
    parse_assignment_answer,
    parse_message,
    parse_report,
    problem_of,
)
from orchestrator.model.report import HostReport
from orchestrator.model.wire import MAX_STEPS, MAX_TEXT, MAX_THINGS
from tests.unit.agent.fleet import Fleet


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet(tmp_path)


@pytest.fixture(scope="module")
def applied(tmp_path_factory: pytest.TempPathFactory) -> HostReport:
    """Made once: it is a value."""
    fleet = Fleet(tmp_path_factory.mktemp("applied"))
    return fleet.apply(fleet.two_tenants())


def whole(fleet: Fleet, applied: HostReport) -> Report:
    return Report("boot-1", "0.1.0", fleet.world.facts(), applied, None)


def code_of(raw: bytes) -> tuple[str, str | None]:
    with pytest.raises(BulkheadError) as refused:
        parse_report(raw)
    return refused.value.code, refused.value.field


def test_report_comes_back_the_same(fleet: Fleet, applied: HostReport) -> None:
    said = whole(fleet, applied)

    assert parse_report(said.encode()) == said


def test_refusal_comes_back_the_same() -> None:
    problem = AssignmentRefused(
        [HostError("a.b", "no", field="x[0]", hint="do"), HostError("c.d", "nor this")]
    )
    said = Report("boot-1", "0.1.0", None, None, problem.as_dict())

    assert parse_report(said.encode()) == said


def test_error_of_an_instance_comes_back_the_same(fleet: Fleet) -> None:
    fleet.world.images.clear()
    said = Report("boot-1", "0.1.0", None, fleet.apply(fleet.two_tenants()), None)

    found = parse_report(said.encode())

    assert found == said
    assert found.report is not None
    assert found.report.instances[0].error is not None
    assert found.report.ok is False


def test_what_is_too_long_is_cut_by_the_sender(applied: HostReport) -> None:
    """A report with a long line, half a character or many steps must not be stuck on the host for ever."""
    verdict = Verdict("disk.holders", "x", Status.FAIL, "a" * (MAX_TEXT * 3), "\udc80\n\x1b[2J")
    many = dataclasses.replace(applied, verdicts=(verdict,), steps=applied.steps * 1000)

    found = parse_report(Report("b", "1", None, many, None).encode()).report

    assert found is not None
    assert len(found.verdicts[0].expected) == MAX_TEXT
    assert found.verdicts[0].expected.endswith("...")
    assert found.verdicts[0].read == "???[2J"
    assert len(found.steps) == MAX_STEPS
    assert found.steps[-1] == applied.steps[-1]


Change = Callable[[dict[str, Any]], Any]


def put(path: str, value: Any) -> Change:
    """Set what stands at a dotted path."""

    def change(body: dict[str, Any]) -> None:
        *way, last = [int(part) if part.isdigit() else part for part in path.split(".")]
        here: Any = body
        for part in way:
            here = here[part]
        here[last] = value

    return change


def double(path: str) -> Change:
    def change(body: dict[str, Any]) -> None:
        found: Any = body
        for part in path.split("."):
            found = found[part]
        found.append(found[0])

    return change


HOSTILE: list[tuple[str, Change, str | None]] = [
    ("unknown field", put("extra", 1), "extra"),
    ("unknown field inside", put("report.instances.0.extra", 1), "report.instances[0].extra"),
    ("boot id of an object", put("boot_id", {}), "boot_id"),
    ("boot id without an end", put("boot_id", "x" * 129), "boot_id"),
    ("empty boot id", put("boot_id", ""), "boot_id"),
    ("boot id with a line", put("boot_id", "a\nb"), "boot_id"),
    ("version with markup", put("agent_version", "<b>"), "agent_version"),
    ("number as text", put("report.epoch", "1"), "report.epoch"),
    ("true for a number", put("report.epoch", True), "report.epoch"),
    ("negative revision", put("report.revision", -1), "report.revision"),
    ("revision beyond 64 bits", put("report.revision", 2**63), "report.revision"),
    ("fraction for a number", put("report.epoch", 1.5), "report.epoch"),
    ("unknown phase", put("report.instances.0.phase", "fine"), "report.instances[0].phase"),
    ("pid 0", put("report.instances.0.pid", 0), "report.instances[0].pid"),
    ("status of their own", put("report.verdicts.0.status", "PASS"), "report.verdicts[0].status"),
    ("long sentence", put("report.verdicts.0.read", "x" * (MAX_TEXT + 1)), "report.verdicts[0].read"),
    ("endless duration", put("report.duration_s", 1e300), "report.duration_s"),
    ("same instance twice", double("report.instances"), "report"),
    ("same CPU twice", double("facts.cpus"), "facts"),
    ("same node twice", double("facts.nodes"), "facts"),
    ("same function twice", double("facts.functions"), "facts"),
    ("address of a path", put("facts.functions.0.address", "../../etc"), "facts.functions[0].address"),
    ("serial with a space", put("facts.functions.0.serial", "a b"), "facts.functions[0].serial"),
    ("CPU far away", put("facts.cpus.0.cpu", 10**9), "facts.cpus[0].cpu"),
    ("negative memory", put("facts.nodes.0.memory_mib", -1), "facts.nodes[0].memory_mib"),
    ("negative pages", put("facts.nodes.0.hugepages", {"2048": {"total": -1, "free": 0}}), None),
    ("page size in words", put("facts.nodes.0.hugepages", {"big": {"total": 1, "free": 0}}), None),
    ("too many siblings", put("facts.cpus.0.siblings", list(range(65))), "facts.cpus[0].siblings"),
    ("report of a list", put("report", []), "report"),
    ("both outcomes", put("refusal", {"code": "a.b", "message": "no", "retryable": False}), None),
    ("code of a refusal", put("refusal", {"code": "A B", "message": "", "retryable": False}), "refusal.code"),
]


@pytest.mark.parametrize(
    ("change", "field"), [case[1:] for case in HOSTILE], ids=[case[0] for case in HOSTILE]
)
def test_hostile_reports_are_refused_by_their_field(
    fleet: Fleet, applied: HostReport, change: Change, field: str | None
) -> None:
    body = json.loads(whole(fleet, applied).encode())
    change(body)

    code, found = code_of(json.dumps(body).encode())

    assert code == "protocol.bad_message"
    assert field is None or found == field


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"", "protocol.bad_message"),
        (b"[]", "protocol.bad_message"),
        (b"\xff\xfe", "protocol.bad_message"),
        (b'{"boot_id": NaN}', "protocol.bad_message"),
        (b"[" * 100_000, "protocol.bad_message"),
        (b" " * (MAX_REPORT_BYTES + 1), "protocol.too_large"),
        (b'{"a":' * 50_000, "protocol.bad_message"),
        (b"1" * 1_000_000, "protocol.bad_message"),
    ],
    ids=["empty", "list", "no text", "NaN", "deep", "large", "deep objects", "long number"],
)
def test_what_is_no_message_is_refused(raw: bytes, code: str) -> None:
    assert code_of(raw)[0] == code


STEP = {"subject": "vm_a", "step": "define_domain", "duration_s": 0.5}
STRAY = {"kind": "instance", "id": "vm_a", "sightings": 1}
ABSENT = {"kind": "instance", "id": "vm_a", "phase": "absent", "error": None}


@pytest.mark.parametrize(
    ("name", "entry", "most"),
    [("steps", STEP, MAX_STEPS), ("strays", STRAY, MAX_THINGS), ("absent", ABSENT, MAX_THINGS)],
)
def test_lists_have_an_end(applied: HostReport, name: str, entry: dict[str, Any], most: int) -> None:
    body = json.loads(Report("b", "1", None, applied, None).encode())
    body["report"][name] = [entry] * most
    found = parse_report(json.dumps(body).encode()).report
    body["report"][name].append(entry)

    assert found is not None
    assert len(getattr(found, name)) == most
    assert code_of(json.dumps(body).encode()) == ("protocol.bad_message", f"report.{name}")


def test_errors_and_pictures_of_messages_hold_no_secret() -> None:
    with pytest.raises(BulkheadError) as refused:
        parse_message(KeyAnswer, b'{"passphrase": "hunter2-hunter2"}')

    assert "hunter2" not in refused.value.explain()
    assert refused.value.__cause__ is None
    passphrase = "a" * 43 + "="
    assert passphrase not in repr(parse_message(KeyAnswer, json.dumps({"passphrase": passphrase}).encode()))


def test_assignment_comes_out_of_its_envelope(fleet: Fleet) -> None:
    wanted = fleet.two_tenants()
    text = wanted.model_dump_json()

    assert parse_assignment_answer(f' {{ "assignment" : {text} }} '.encode()) == wanted


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"", "protocol.bad_message"),
        (b"{}", "protocol.bad_message"),
        (b'{"assignment": ', "protocol.bad_message"),
        (b'{"other": {}, "assignment": {}}', "protocol.bad_message"),
        (b'{"assignment": {}}', "assignment.refused"),
        (b'{"assignment": {"version": 1}, "more": 2}', "assignment.refused"),
        (b'{"assignment": {"version": 1, "version": 1}}', "assignment.refused"),
        (b'{"assignment": null}', "assignment.refused"),
        (b'{"assignment": {"version": 2}}', "assignment.refused"),
    ],
)
def test_other_envelopes_are_refused(raw: bytes, code: str) -> None:
    with pytest.raises(BulkheadError) as refused:
        parse_assignment_answer(raw)

    assert refused.value.code == code


def test_agents_url_is_https() -> None:
    good = {"certificate_pem": PEM, "ca_pem": PEM, "host": "hst_a", "deployment": "dep_a"}
    assert (
        parse_message(EnrolAnswer, json.dumps({**good, "agents_url": "https://c:1"}).encode()).host == "hst_a"
    )
    for bad in ("http://c", "https://", "https://c/x y", "file:///etc", "https://c\n"):
        with pytest.raises(BulkheadError) as refused:
            parse_message(EnrolAnswer, json.dumps({**good, "agents_url": bad}).encode())
        assert refused.value.field == "agents_url"


PEM = "-----BEGIN CERTIFICATE-----\nabc=\n-----END CERTIFICATE-----\n"


def test_other_versions_are_refused() -> None:
    assert (check_version("1"), check_version("2")) == (1, 2)
    for other in (None, "", "0", "3", "02", "01", "1.0", " 1"):
        with pytest.raises(BulkheadError) as refused:
            check_version(other)
        assert (refused.value.code, refused.value.http_status) == ("protocol.version", 426)


def test_problems_are_read_as_far_as_they_are_ours() -> None:
    assert problem_of(b'{"code": "a.b", "detail": "x\\u001b", "type": "about:blank"}') == ("a.b", "x?")
    assert problem_of(b"<html>") == ("", "")
    assert problem_of(b'{"code": "no code"}') == ("", "")
