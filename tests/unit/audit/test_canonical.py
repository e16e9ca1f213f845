"""Canonical bytes: those of another implementation, and a refusal where two spellings would be possible."""

from __future__ import annotations

import json
from enum import StrEnum

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.audit.canonical import MAX_BYTES, MAX_DEPTH, MAX_INTEGER, canonical_bytes
from orchestrator.model.errors import InvalidInputError, TooLargeError

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
# The other implementation stops one short of 2^53.
LEAVES = st.none() | st.booleans() | st.integers(1 - MAX_INTEGER, MAX_INTEGER - 1) | TEXTS
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=20,
)


@given(VALUES)
def test_the_bytes_are_those_of_another_implementation(value):
    spelled = canonical_bytes(value)
    assert spelled == rfc8785.dumps(value)
    assert json.loads(spelled) == value


@given(st.dictionaries(TEXTS, LEAVES, max_size=8), st.randoms())
def test_the_order_of_keys_does_not_matter(value, chance):
    keys = list(value)
    chance.shuffle(keys)
    assert canonical_bytes({key: value[key] for key in keys}) == canonical_bytes(value)


@pytest.mark.parametrize(
    ("value", "spelled"),
    [
        ({"b": 1, "a": True}, b'{"a":true,"b":1}'),
        ({"\U0001f600": 1, "\ufb33": 2}, '{"\U0001f600":1,"\ufb33":2}'.encode()),
        ('\x00\x1f\x7f\b\t\n\f\r"\\/', b'"\\u0000\\u001f\x7f\\b\\t\\n\\f\\r\\"\\\\/"'),
        ("\u2028é", '"\u2028é"'.encode()),
        ([], b"[]"),
        ((1, None), b"[1,null]"),
        (MAX_INTEGER, b"9007199254740992"),
        (-MAX_INTEGER, b"-9007199254740992"),
        (StrEnum("Colour", ["RED"]).RED, b'"red"'),
    ],
)
def test_spellings(value, spelled):
    assert canonical_bytes(value) == spelled


@pytest.mark.parametrize(
    ("value", "field"),
    [
        (1.0, None),
        ({"a": float("nan")}, "a"),
        ({"a": [1, {"b": 0.5}]}, "a[1].b"),
        ({"a": b"x"}, "a"),
        ({"a": {1, 2}}, "a"),
        ({"a": object()}, "a"),
        ({1: "a"}, None),
        ({"a": {None: 1}}, "a"),
        ({"n": MAX_INTEGER + 1}, "n"),
        ({"n": -MAX_INTEGER - 1}, "n"),
        ({"n": 10**5000}, "n"),
        ("\ud800", None),
        ({"a": {"\udfff": 1}}, "a"),
    ],
)
def test_what_has_more_than_one_spelling_is_refused_with_its_place(value, field):
    with pytest.raises(InvalidInputError) as caught:
        canonical_bytes(value)
    assert (caught.value.code, caught.value.field) == ("audit.value", field)


def nested(depth: int) -> object:
    value: object = 1
    for _ in range(depth):
        value = [value]
    return value


def test_depth_has_an_end():
    assert canonical_bytes(nested(MAX_DEPTH)) == b"[" * MAX_DEPTH + b"1" + b"]" * MAX_DEPTH
    for depth in (MAX_DEPTH + 1, 100_000):
        with pytest.raises(InvalidInputError, match="nested"):
            canonical_bytes(nested(depth))


def test_size_has_an_end_in_bytes():
    assert len(canonical_bytes("é" * ((MAX_BYTES - 2) // 2))) == MAX_BYTES
    with pytest.raises(TooLargeError, match=r"audit\.too_large"):
        canonical_bytes("é" * (MAX_BYTES // 2))
