"""Events and the audit log on the command line: lines as they come, and exports that verify."""

from __future__ import annotations

import json
from pathlib import Path

import httpx2
import pytest

from orchestrator.audit.export import AuditFilter, export_lines
from orchestrator.audit.record import AuditEvent, AuditRecord, commitment, event_bytes
from orchestrator.model.actor import Actor
from tests.cli import objects
from tests.cli.conftest import Bulkhead
from tests.cli.fake_api import FakeApi, T


def records(count: int) -> list[AuditRecord]:
    made = []
    for seq in range(count):
        event = AuditEvent(
            kind="instance.create",
            stage="intent",
            at_ms=1_770_000_000_000 + seq,
            actor=Actor("user", objects.USER, objects.ACME),
            subject_kind="instance",
            subject_id=objects.VM1,
            tenant=objects.ACME,
            request_id="req-1",
            outcome="ok",
        )
        body, salt = event_bytes(event), bytes([seq]) * 32
        made.append(AuditRecord(objects.ACME, seq, salt, body, commitment(salt, body)))
    return made


def export(count: int = 3, wanted: AuditFilter | None = None) -> list[str]:
    return list(export_lines(objects.ACME, count, records(count), wanted))


def test_export_writes_what_came(bulkhead: Bulkhead, api: FakeApi) -> None:
    text = "\n".join(export()) + "\n"
    api.reply(f"GET {T}/audit", httpx2.Response(200, content=text.encode()))
    ran = bulkhead(
        "audit", "export", "--from", "2026-01-31T00:00:00Z", "--kind", "instance", "--actor", objects.USER
    )
    assert (ran.exit_code, ran.stdout, ran.stderr) == (0, text, "3 records\n")
    assert dict(api.requests[-1].url.params) == {
        "from": "2026-01-31T00:00:00Z",
        "kind": "instance",
        "actor": objects.USER,
    }
    api.reply("GET /v1/audit", httpx2.Response(200, content=text.encode()))
    assert bulkhead("audit", "export", "--platform").exit_code == 0


def verified(run: Bulkhead, home: Path, lines: list[str]) -> tuple[int, str]:
    file = home / "audit.jsonl"
    file.write_text("\n".join(lines) + "\n")
    ran = run("audit", "verify", file)
    as_json = json.loads(run("audit", "verify", file, "-o", "json").stdout)
    assert bool(as_json["problems"]) == (ran.exit_code == 5)
    return ran.exit_code, ran.stdout


def test_an_export_verifies_without_server_or_settings(anew: Bulkhead, api: FakeApi, home: Path) -> None:
    whole = verified(anew, home, export())
    assert whole == (0, f"stream {objects.ACME}: 3 records, none is missing\n")
    code, told = verified(anew, home, export(3, AuditFilter(kind="instance")))
    assert code == 0
    assert "others may be missing" in told
    assert anew("audit", "verify", "-", stdin="\n".join(export())).exit_code == 0
    assert api.requests == []


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: [*lines[:2], *lines[3:]],
        lambda lines: [lines[0], lines[2], lines[1], lines[3]],
        lambda lines: [*lines[:-1], lines[-1].replace(objects.VM1, objects.VM2)],
        lambda lines: lines[1:],
        lambda lines: [*lines, lines[-1]],
        lambda lines: [*lines[:-1], lines[-1] + "\x1b[2J"],
        lambda lines: [""],
    ],
)
def test_a_changed_export_does_not(anew: Bulkhead, home: Path, change: object) -> None:
    code, told = verified(anew, home, change(export()))  # type: ignore[operator]
    assert code == 5
    assert not [mark for mark in told if not mark.isprintable() and mark != "\n"]


def test_bytes_that_are_no_text_do_not_verify(anew: Bulkhead, home: Path) -> None:
    file = home / "audit.jsonl"
    raw = "\n".join(export()).encode()
    file.write_bytes(raw[:-5] + b"\xff" + raw[-4:])
    assert anew("audit", "verify", file).exit_code == 5


def stream(*numbers: int) -> httpx2.Response:
    texts = []
    for number in numbers:
        data = {
            "kind": "instance.create",
            "at_ms": 1_770_000_000_000,
            "outcome": "ok",
            "subject": {"kind": "instance", "id": objects.VM1},
        }
        texts.append(f"id: {objects.ACME}:{number}\nevent: instance.create\ndata: {json.dumps(data)}\n\n")
    return httpx2.Response(200, text="".join(texts), headers={"content-type": "text/event-stream"})


def test_events_are_lines(bulkhead: Bulkhead, api: FakeApi) -> None:
    api.reply(f"GET {T}/events", stream(5, 6))
    ran = bulkhead("event", "watch", "--count", 2)
    assert ran.stdout.splitlines() == [
        f"{objects.ACME}:{number}  2026-02-02 02:40:00Z  instance.create  ok  {objects.VM1}"
        for number in (5, 6)
    ]


def test_events_as_json_are_an_object_a_line(bulkhead: Bulkhead, api: FakeApi) -> None:
    api.reply("GET /v1/events", stream(5, 6))
    ran = bulkhead("event", "watch", "--platform", "--count", 2, "-o", "json", "--after", f"{objects.ACME}:4")
    assert [json.loads(line)["id"] for line in ran.stdout.splitlines()] == [
        f"{objects.ACME}:5",
        f"{objects.ACME}:6",
    ]
    assert api.requests[-1].headers["last-event-id"] == f"{objects.ACME}:4"


def test_interrupting_events_says_where_to_go_on(bulkhead: Bulkhead, api: FakeApi) -> None:
    def interrupt(_request: httpx2.Request) -> httpx2.Response:
        raise KeyboardInterrupt

    api.reply(f"GET {T}/events", stream(5), interrupt)
    ran = bulkhead("event", "watch")
    assert ran.exit_code == 130
    assert ran.stderr == f"go on with: bulkhead event watch --after {objects.ACME}:5\n"
