"""One record: every fact changes the bytes, every byte changes the commitment, and readers are told less."""

from __future__ import annotations

import dataclasses
import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.audit.record import (
    PUBLIC_DETAILS,
    commitment,
    event_bytes,
    parse_event,
    public_event,
    verify_record,
)
from orchestrator.model.actor import Actor
from orchestrator.model.errors import InvalidInputError, TooLargeError
from tests.unit.audit.cases import ACTOR, event, record

CHANGES = {
    "kind": "instance.delete",
    "stage": "outcome",
    "at_ms": 1_760_000_000_001,
    "subject_kind": "volume",
    "subject_id": "vm_b",
    "tenant": "ten_b",
    "request_id": "req_2",
    "outcome": "failed",
    "details": {"name": "röd-1", "gpus": 2},
}


def flips(raw: bytes):
    """The same bytes with one bit flipped, for each byte in turn."""
    for place in range(len(raw)):
        for bit in (0, 5, 7):
            yield raw[:place] + bytes([raw[place] ^ (1 << bit)]) + raw[place + 1 :]


def test_the_bytes_of_a_record_never_change():
    """Records written before must verify for ever: this is the form they have."""
    assert event_bytes(event()) == (
        b'{"actor":{"address":"192.0.2.7","id":"usr_a","kind":"user","tenant":"ten_a","token":"tok_a"},'
        b'"at_ms":1760000000000,"details":{"gpus":1,"name":"r\xc3\xb6d-1"},"kind":"instance.create",'
        b'"outcome":"ok","request_id":"req_1","stage":"intent","subject":{"id":"vm_a","kind":"instance"},'
        b'"tenant":"ten_a","v":1}'
    )
    assert commitment(bytes(32), b"x") == hashlib.sha256(b"bulkhead-audit/1" + bytes(32) + b"x").digest()


def test_every_field_of_an_event_is_in_its_bytes():
    assert set(CHANGES) | {"actor"} == {field.name for field in dataclasses.fields(event())}
    seen = {event_bytes(event())}
    for name, value in CHANGES.items():
        seen.add(event_bytes(event(**{name: value})))
    for field in ("kind", "id", "tenant", "token", "address"):
        seen.add(event_bytes(event(actor=dataclasses.replace(ACTOR, **{field: "other"}))))
    assert len(seen) == 1 + len(CHANGES) + 5


@pytest.mark.parametrize("tenant", [None, "ten_a"])
def test_bytes_are_read_as_they_were_written(tenant):
    written = event(tenant=tenant, details={"a": [1, None, {"b": True}], "": "x"})
    assert parse_event(event_bytes(written)) == written


def test_a_record_as_written_verifies():
    assert verify_record(record(3)) == ()
    assert verify_record(record(0, event(tenant=None))) == ()


@pytest.mark.parametrize("name", ["salt", "body", "commitment"])
def test_any_changed_byte_is_noticed(name):
    good = record(3)
    for changed in flips(getattr(good, name)):
        assert (
            "one of the three was changed" in verify_record(dataclasses.replace(good, **{name: changed}))[0]
        )


@pytest.mark.parametrize("name", ["salt", "commitment", "body"])
def test_cut_and_longer_parts_are_noticed(name):
    good = record(3)
    for changed in (b"", getattr(good, name)[:-1], getattr(good, name) + b"\0"):
        assert verify_record(dataclasses.replace(good, **{name: changed}))


def test_a_border_between_salt_and_bytes_cannot_move():
    good = record(3)
    moved = dataclasses.replace(good, salt=good.salt + good.body[:1], body=good.body[1:])
    assert verify_record(moved) == ("the salt has 33 bytes, not 32",)
    with pytest.raises(InvalidInputError, match=r"audit\.salt"):
        commitment(moved.salt, moved.body)


@pytest.mark.parametrize("stream", ["platform", "ten_b", ""])
def test_a_record_belongs_to_its_stream(stream):
    assert verify_record(record(3, stream=stream)) == ("the event belongs to stream ten_a",)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"\xff",
        b"[" * 20_000,
        event_bytes(event()) + b" ",
        event_bytes(event()).replace(b'"v":1', b'"v":2'),
        event_bytes(event()).replace(b'"v":1', b'"v":1,"x":1'),
        event_bytes(event()).replace(b'"gpus":1', b'"gpus":1.0'),
        event_bytes(event()).replace(b"r\xc3\xb6d", b"r\\u00f6d"),
        event_bytes(event()).replace(b'"stage":"intent"', b'"stage":"guess"'),
        event_bytes(event()).replace(b'"at_ms":1760000000000', b'"at_ms":true'),
        event_bytes(event()).replace(b'"id":"vm_a"', b'"id":7'),
        event_bytes(event()).replace(b'"token":"tok_a"', b'"token":null'),
        event_bytes(event()).replace(b'"token"', b'"tokens"'),
        event_bytes(event()).replace(b'"tenant":"ten_a","v"', b'"tenant":[],"v"'),
        event_bytes(event()).replace(b'{"gpus":1,', b'{"gpus":1,"gpus":1,'),
    ],
)
def test_other_bytes_are_no_event(body):
    with pytest.raises(InvalidInputError, match=r"audit\.body"):
        parse_event(body)
    with pytest.raises(InvalidInputError, match=r"audit\.body"):
        public_event(body)
    salt = bytes(32)
    wrong = verify_record(record(3, salt=salt, body=body, commitment=commitment(salt, body)))
    assert len(wrong) == 1
    assert "event" in wrong[0]


@given(st.binary(max_size=60))
def test_chance_is_no_event(body):
    with pytest.raises(InvalidInputError):
        parse_event(body)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("kind", ""),
        ("kind", "instance"),
        ("kind", "Instance.create"),
        ("kind", "instance.create\n"),
        ("kind", "a." + "b" * 62),
        ("stage", "done"),
        ("stage", ""),
        ("outcome", "okay"),
    ],
)
def test_words_that_are_none_of_ours_are_refused(name, value):
    with pytest.raises(InvalidInputError) as caught:
        event(**{name: value})
    assert (caught.value.code, caught.value.field) == (f"audit.{name}", name)


def test_an_event_has_an_end():
    with pytest.raises(TooLargeError):
        event_bytes(event(details={"log": "x" * 32_768}))


def public(**changes):
    return public_event(event_bytes(event(**changes)))


def test_readers_see_what_happened():
    assert public() == {
        "kind": "instance.create",
        "stage": "intent",
        "at_ms": 1_760_000_000_000,
        "actor": {"kind": "user", "id": "usr_a"},
        "subject": {"kind": "instance", "id": "vm_a"},
        "tenant": "ten_a",
        "request_id": "req_1",
        "outcome": "ok",
        "details": {"name": "röd-1"},
    }


@pytest.mark.parametrize("noun", [*PUBLIC_DETAILS, "access", "console_ticket"])
def test_readers_see_no_address_no_token_and_no_unlisted_detail(noun):
    canary = "canary-4711"
    listed = PUBLIC_DETAILS.get(noun, frozenset())
    shown = public(
        kind=f"{noun}.create",
        actor=Actor("user", "usr_a", "ten_a", canary, canary, canary),
        request_id="req_1",
        details={
            **dict.fromkeys(listed, 1),
            "evidence": canary,
            "passphrase": canary,
            "tenant_asked": canary,
        },
    )
    assert canary not in json.dumps(shown)
    assert set(shown["details"]) == listed


def test_a_listed_detail_cannot_carry_an_object():
    assert public(details={"name": {"a": "canary"}, "state": [{"b": "canary"}], "code": ["x", 1]})[
        "details"
    ] == {"code": ["x", 1]}


@pytest.mark.parametrize(("kind", "named"), [("user", 1), ("service", 1), ("host", 0), ("controller", 0)])
def test_a_tenant_does_not_learn_on_which_host(kind, named):
    actor = Actor(kind, "hst_a")
    assert public(actor=actor)["actor"] == {"kind": kind, "id": "hst_a" if named else ""}
    assert public(actor=actor, tenant=None)["actor"] == {"kind": kind, "id": "hst_a"}
