"""Exports: whatever is changed, left out, doubled or moved in one is noticed, with its stream and number."""

from __future__ import annotations

import base64
import dataclasses
import json

import pytest

from orchestrator.audit.canonical import MAX_DEPTH
from orchestrator.audit.export import MAX_PROBLEMS, AuditFilter, export_lines, verify_lines
from orchestrator.audit.record import commitment
from orchestrator.model.actor import Actor
from tests.unit.audit.cases import event, record

RECORDS = [record(seq) for seq in range(5)]
LINES = list(export_lines("ten_a", 5, RECORDS))


def whats(lines) -> list[tuple[int | None, str]]:
    verified = verify_lines(lines)
    assert verified.complete is False
    assert {problem.stream for problem in verified.problems} <= {"ten_a", ""}
    return [(problem.seq, problem.what) for problem in verified.problems]


def test_an_export_as_written_is_complete():
    verified = verify_lines(LINES)
    assert (verified.stream, verified.records, verified.complete, verified.problems) == ("ten_a", 5, True, ())


def test_line_ends_do_not_matter():
    assert verify_lines(f"{line}\n" for line in LINES).complete


def test_a_stream_of_nothing_is_complete():
    assert verify_lines(export_lines("ten_a", 0, [])).complete


def test_a_line_is_one_json_object_that_people_can_read():
    line = json.loads(LINES[2])
    assert line["event"]["subject"] == {"kind": "instance", "id": "vm_1"}
    assert json.loads(base64.b64decode(line["bytes"])) == line["event"]
    assert (line["stream"], line["seq"]) == ("ten_a", 1)
    assert bytes.fromhex(line["commitment"]) == RECORDS[1].commitment


@pytest.mark.parametrize("number", range(3))
def test_any_changed_character_of_any_field_is_noticed(number):
    """Every place of the first line and of two records, with what a flipped bit makes of it."""
    lines = list(export_lines("ten_a", 2, RECORDS[:2]))
    assert verify_lines(lines).complete
    line = lines[number]
    for place, character in enumerate(line):
        for bit in (0, 1, 5):
            other = chr(ord(character) ^ (1 << bit))
            changed = line[:place] + other + line[place + 1 :]
            verified = verify_lines([*lines[:number], changed, *lines[number + 1 :]])
            assert verified.problems, (place, character, other)
            assert not verified.complete


@pytest.mark.parametrize("number", range(1, 6))
@pytest.mark.parametrize("place", ["salt", "commitment", "bytes", "event", "seq", "stream"])
def test_a_changed_field_is_told_with_stream_and_number(number, place):
    found = json.loads(LINES[number])
    changed = {
        "salt": found["salt"][::-1],
        "commitment": found["commitment"][::-1],
        "bytes": base64.b64encode(base64.b64decode(found["bytes"]).replace(b"usr_a", b"usr_b")).decode(),
        "event": {**found["event"], "outcome": "failed"},
        "seq": found["seq"] + 7,
        "stream": "ten_b",
    }[place]
    text = json.dumps({**found, place: changed}, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    problems = verify_lines([*LINES[:number], text, *LINES[number + 1 :]]).problems
    assert problems[0].stream == "ten_a"
    assert problems[0].seq == number - 1
    assert problems[0].line == number + 1


def test_a_whole_record_written_anew_is_noticed_only_by_its_commitment_elsewhere():
    """What an export cannot show by itself, and says so: who can write everything can write it anew."""
    forged = record(2, event(subject_id="vm_forged"))
    lines = list(export_lines("ten_a", 5, [*RECORDS[:2], forged, *RECORDS[3:]]))
    assert verify_lines(lines).complete
    assert forged.commitment != RECORDS[2].commitment


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ([0, 1, 3, 4], [(2, "missing: 2")]),
        ([0, 4], [(1, "missing: 1 to 3")]),
        ([1, 2, 3, 4], [(0, "missing: 0")]),
        ([0, 1, 2, 3], [(4, "missing: 4")]),
        ([], [(0, "missing: 0 to 4")]),
        ([0, 1, 1, 2, 3, 4], [(1, "out of order or double: 2 or later should stand here")]),
        (
            [0, 2, 1, 3, 4],
            [(1, "missing: 1"), (1, "out of order or double: 3 or later should stand here")],
        ),
    ],
)
def test_gaps_doubles_and_wrong_order_are_noticed(order, expected):
    assert whats([LINES[0], *(LINES[seq + 1] for seq in order)]) == expected


def test_records_beyond_the_end_are_noticed():
    assert whats([*LINES, *list(export_lines("ten_a", 6, [record(5)]))[1:]]) == [
        (5, "beyond the stream's end, which was at 5")
    ]


def test_another_streams_record_is_noticed():
    other = record(2, event(tenant="ten_b"))
    lines = list(export_lines("ten_a", 5, [*RECORDS[:2], other, *RECORDS[3:]]))
    assert whats(lines) == [(2, "a record of stream ten_b in an export of ten_a")]
    renamed = dataclasses.replace(other, stream="ten_a")
    lines = list(export_lines("ten_a", 5, [*RECORDS[:2], renamed, *RECORDS[3:]]))
    assert whats(lines) == [(2, "the event belongs to stream ten_b")]


@pytest.mark.parametrize("first", [[], [""], ["{}"], ["null"], ["[" * 50_000], LINES[1:2], [LINES[0] + " "]])
def test_what_does_not_begin_like_an_export_is_none(first):
    assert whats([*first, *LINES[1:]] if first else []) == [
        (None, "this is not the first line of an audit export")
    ]


@pytest.mark.parametrize("line", ["", "{}", "null", "[" * 50_000, "x" * 300_000, LINES[1][:-1], LINES[0]])
def test_lines_that_are_no_record_are_told_where_they_stand(line):
    assert whats([*LINES[:3], line, *LINES[4:]]) == [(2, "the line was changed or cut")]


def test_broken_bytes_in_the_database_are_exported_and_told():
    """Nobody gets rid of a record, or of its export, by breaking it; whatever the filter is."""
    salt = bytes(32)
    broken = record(2, salt=salt, body=b"\xff{", commitment=commitment(salt, b"\xff{"))
    for wanted in (AuditFilter(), AuditFilter(subject="vm_9")):
        lines = list(export_lines("ten_a", 5, [*RECORDS[:2], broken, *RECORDS[3:]], wanted))
        assert whats(lines) == [(2, "these bytes are no event")]


def test_the_deepest_event_can_be_exported():
    value: object = 1
    for _ in range(MAX_DEPTH - 2):
        value = [value]
    deep = record(0, event(details={"deep": value}))
    assert verify_lines(export_lines("ten_a", 1, [deep])).complete


def test_a_flood_of_problems_has_an_end():
    verified = verify_lines([LINES[0], *(["x"] * 10_000)])
    assert len(verified.problems) == MAX_PROBLEMS
    assert verified.records == MAX_PROBLEMS


MIXED = [
    record(0, event(at_ms=10)),
    record(1, event(at_ms=20, kind="volume.create", subject_id="vol_a")),
    record(2, event(at_ms=30, actor=Actor("user", "usr_b"), outcome="failed")),
    record(3, event(at_ms=40, kind="instance.delete")),
]


@pytest.mark.parametrize(
    ("wanted", "seqs"),
    [
        (AuditFilter(from_ms=20), [1, 2, 3]),
        (AuditFilter(until_ms=30), [0, 1]),
        (AuditFilter(from_ms=20, until_ms=21), [1]),
        (AuditFilter(actor="usr_b"), [2]),
        (AuditFilter(kind="instance"), [0, 2, 3]),
        (AuditFilter(kind="instance.delete"), [3]),
        (AuditFilter(kind="inst"), []),
        (AuditFilter(subject="vol_a"), [1]),
        (AuditFilter(outcome="failed"), [2]),
        (AuditFilter(kind="instance", outcome="ok"), [0, 3]),
    ],
)
def test_filters_keep_what_is_wanted_and_say_that_they_ran(wanted, seqs):
    lines = list(export_lines("ten_a", 4, MIXED, wanted))
    assert [json.loads(line)["seq"] for line in lines[1:]] == seqs
    assert json.loads(lines[0])["filtered"] is True
    verified = verify_lines(lines)
    assert verified.problems == ()
    assert verified.complete is False, "a filtered export proves nothing about what it leaves out"
    assert json.loads(LINES[0])["filtered"] is False


def test_a_filtered_export_holds_only_what_its_filter_lets_through():
    failed = list(export_lines("ten_a", 4, MIXED, AuditFilter(outcome="failed")))
    everything = list(export_lines("ten_a", 4, MIXED))
    assert whats([failed[0], everything[1], failed[1]]) == [
        (0, "it does not match the filter of the first line")
    ]
    assert whats([failed[0], failed[1], failed[1]]) == [
        (2, "out of order or double: 3 or later should stand here")
    ]
    assert whats([failed[0], everything[3][:-2]]) == [(None, "the line was changed or cut")]


def test_a_filtered_export_cannot_pass_as_a_complete_one():
    filtered = list(export_lines("ten_a", 4, MIXED, AuditFilter(outcome="ok")))
    whole = list(export_lines("ten_a", 4, MIXED))
    assert whats([whole[0], *filtered[1:]]) == [(2, "missing: 2")]
