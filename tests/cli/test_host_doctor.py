"""`bulkhead host doctor`: what failed comes first, what is accepted is no pass, a failing must check is 8."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import httpx2
import pytest

from orchestrator.cli.doctor import line, word
from orchestrator.client import clock
from tests.cli import objects
from tests.cli.conftest import Bulkhead
from tests.cli.fake_api import FakeApi
from tests.cli.test_lists import golden

PATH = "/v1/hosts/gpu-02/doctor"


def rows(bulkhead: Bulkhead, *words: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(bulkhead("host", "doctor", "gpu-02", "-o", "csv", *words).stdout)))


def test_what_takes_the_host_out_comes_first_and_passes_only_when_asked_for(bulkhead: Bulkhead) -> None:
    found = rows(bulkhead)
    assert [each["check"] for each in found] == ["K7", "N2", "K10", "gpu.power"]
    assert [each["verdict"] for each in found] == ["fail", "unknown", "fail, accepted", "fail"]
    assert found[0]["mend"].startswith("swapoff -a")
    assert [each["check"] for each in rows(bulkhead, "--all")] == ["K7", "N2", "K10", "gpu.power", "K1"]


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("everything", [False, True])
def test_its_table(bulkhead: Bulkhead, monkeypatch: pytest.MonkeyPatch, width: int, everything: bool) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    ran = bulkhead("host", "doctor", "gpu-02", *["--all"] * everything)
    table, _, below = ran.stdout.partition("\nK7 swap: ")
    assert max(map(len, table.splitlines())) <= width
    # Whole, so that it can be copied.
    assert below.startswith("swapoff -a, and take swap out of /etc/fstab\n")
    golden(f"table-{width}-host-doctor-gpu-02{'-all' * everything}", ran.stdout + ran.stderr)


@pytest.mark.parametrize("form", ["table", "wide", "json", "yaml", "csv", "name"])
def test_a_failing_must_check_is_exit_status_8_in_every_form(
    bulkhead: Bulkhead, api: FakeApi, form: str
) -> None:
    assert bulkhead("host", "doctor", "gpu-02", "-o", form).exit_code == 8
    # What nobody knows, what is accepted and what is only worth mending is no failure.
    api.singles[PATH]["summary"]["failed"] = []
    assert bulkhead("host", "doctor", "gpu-02", "-o", form).exit_code == 0


def test_programs_get_the_apis_object(bulkhead: Bulkhead) -> None:
    assert json.loads(bulkhead("host", "doctor", "gpu-02", "-o", "json").stdout) == objects.host_doctor()


def test_a_host_whose_doctor_has_not_spoken_says_so(bulkhead: Bulkhead, api: FakeApi) -> None:
    api.singles[PATH] |= {"summary": None, "findings": None, "boot_id": None}
    ran = bulkhead("host", "doctor", "gpu-02")
    assert ran.exit_code == 0
    assert ran.stderr == "no doctor of host gpu-02 has spoken yet\n"


def test_who_asks_now_waits_until_it_has_looked(bulkhead: Bulkhead, api: FakeApi) -> None:
    waiting = {**objects.host_doctor(), "asked_at": objects.AT}
    api.reply("POST /v1/hosts/gpu-02/actions/examine", httpx2.Response(200, json=waiting))
    api.reply(
        f"GET {PATH}",
        *[httpx2.Response(200, json=waiting)] * 2,
        httpx2.Response(200, json=objects.host_doctor()),
    )
    ran = bulkhead("host", "doctor", "gpu-02", "--now", "-o", "csv")
    assert ran.exit_code == 8
    assert api.calls == ["POST /v1/hosts/gpu-02/actions/examine", *[f"GET {PATH}"] * 3]


def test_a_doctor_that_does_not_come_is_not_waited_for_for_ever(
    bulkhead: Bulkhead, api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter(range(0, 1000, 20))
    monkeypatch.setattr(clock, "now", lambda: float(next(times)))
    api.singles[PATH]["asked_at"] = objects.AT
    api.reply("POST /v1/hosts/gpu-02/actions/examine", httpx2.Response(200, json=api.singles[PATH]))
    ran = bulkhead("host", "doctor", "gpu-02", "--now", "--timeout", "1m")
    assert ran.exit_code == 7
    assert "doctor.not_heard" in ran.stderr


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, "ok"),
        ({"warned": ["K2"]}, "ok"),
        ({"failed": ["K7", "L8"], "unknown": ["N2"]}, "2 fail, 1 unknown"),
        ({"lived_with": ["K7"], "accepted": ["K7"]}, "1 accepted"),
        ({"accepted": ["*"]}, "ok, accepts *"),
        ({"lived_with": ["K7", "L8"], "accepted": ["*"]}, "2 accepted, accepts *"),
    ],
)
def test_a_list_has_one_word_for_it(changes: dict[str, Any], told: str) -> None:
    assert word({"doctor": objects.host_doctor_short(**changes)}) == told


def test_one_host_has_a_line_for_it_that_warns_of_what_is_accepted() -> None:
    said = objects.host_doctor_short(failed=[f"K{number}" for number in range(1, 9)], accepted=["*"])
    assert line(said) == (
        "48 of 48 pass; K1 K2 K3 K4 K5 K6 and 2 more fail; "
        "WARNING: its agent's settings accept every check (*)"
    )
    assert line(None) == ""
    assert word({}) is None
