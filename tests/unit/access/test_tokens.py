"""Tokens: one spelling each, any mistyping noticed, and nothing of them in any error."""

from __future__ import annotations

import hashlib
import hmac
import random
import string
import zlib

import pytest

from orchestrator.access.tokens import MAX_CHARACTERS, make_token, parse_token, secret_matches, token_hash
from orchestrator.model.errors import InvalidInputError, UnauthenticatedError

KEY_ID = "tok_7k2mabcdefgh3456789z"
SECRET = hashlib.sha256(b"a secret of these tests").digest()
TOKEN = make_token(KEY_ID, SECRET)
LONGEST = make_token("a" * 44, SECRET)


def refused(text: str) -> UnauthenticatedError:
    with pytest.raises(UnauthenticatedError) as caught:
        parse_token(text)
    assert (caught.value.code, caught.value.http_status) == ("token.malformed", 401)
    return caught.value


@pytest.mark.parametrize("key_id", [KEY_ID, "a", "0_1_2", "a" * 44])
@pytest.mark.parametrize("secret", [SECRET, bytes(32), b"\xff" * 32, b"\xfb\xef\xbe" * 10 + b"__"])
def test_what_is_made_is_read(key_id, secret):
    parsed = parse_token(make_token(key_id, secret))
    assert (parsed.key_id, parsed.secret) == (key_id, secret)


def test_the_form_is_the_documented_one():
    head, key_id, check = TOKEN[:3], TOKEN[3 : 3 + len(KEY_ID)], TOKEN[-8:]
    assert (head, key_id) == ("bh_", KEY_ID)
    assert len(TOKEN) == 3 + len(KEY_ID) + 1 + 43 + 1 + 8
    assert check == f"{zlib.crc32(TOKEN[:-9].encode()):08x}"
    assert len(LONGEST) == MAX_CHARACTERS


@pytest.mark.parametrize("place", range(len(TOKEN)))
def test_no_character_can_be_mistyped(place):
    for other in string.ascii_letters + string.digits + "_-":
        if other != TOKEN[place]:
            refused(TOKEN[:place] + other + TOKEN[place + 1 :])


@pytest.mark.parametrize("place", range(len(TOKEN) - 1))
def test_nothing_can_be_left_out_doubled_or_swapped(place):
    refused(TOKEN[:place])
    refused(TOKEN[place + 1 :])
    refused(TOKEN[:place] + TOKEN[place + 1 :])
    refused(TOKEN[:place] + TOKEN[place] + TOKEN[place:])
    if TOKEN[place] != TOKEN[place + 1]:
        refused(TOKEN[:place] + TOKEN[place + 1] + TOKEN[place] + TOKEN[place + 2 :])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "bh_",
        "bh___",
        f"{TOKEN}\n",
        f" {TOKEN}",
        f"{TOKEN}\0",
        TOKEN.upper(),
        "bh_" * 100_000,
        "é" * 80,
        "\ud800",
    ],
)
def test_other_texts_are_no_token(text):
    refused(text)


def test_a_secret_has_one_spelling():
    """The last character of 43 carries two bits that belong to nobody; a right CRC does not save it."""
    body = TOKEN[:-9]
    alphabet = string.ascii_uppercase + string.ascii_lowercase + string.digits + "-_"
    other = body[:-1] + alphabet[alphabet.index(body[-1]) | 1]
    assert other != body
    refused(f"{other}_{zlib.crc32(other.encode()):08x}")


@pytest.mark.parametrize("key_id", ["_a", "a_", "a__b", "_"])
def test_a_key_id_of_another_form_is_refused_with_a_right_check(key_id):
    with pytest.raises(InvalidInputError):
        make_token(key_id, SECRET)
    head = f"bh_{key_id}_{TOKEN[-52:-9]}"
    refused(f"{head}_{zlib.crc32(head.encode()):08x}")


def test_no_error_and_no_repr_repeats_a_token():
    chance = random.Random(7)
    for _ in range(200):
        place = chance.randrange(len(TOKEN))
        text = TOKEN[:place] + chance.choice("#AZ09az") + TOKEN[place + 1 :]
        if text == TOKEN:
            continue
        error = refused(text)
        told = f"{error!r} {error.explain()} {error.as_dict()} {error.__cause__} {error.__context__}"
        assert text[10:30] not in told
    assert repr(SECRET)[2:12] not in repr(parse_token(TOKEN))


@pytest.mark.parametrize("secret", [b"", SECRET[:31], SECRET + b"x"])
def test_secrets_of_another_length_are_refused(secret):
    with pytest.raises(InvalidInputError, match=r"token\.secret"):
        make_token(KEY_ID, secret)


@pytest.mark.parametrize("key_id", ["", "a" * 45, "A", "a-b", "ä", "a\n"])
def test_key_ids_of_another_form_are_refused(key_id):
    with pytest.raises(InvalidInputError, match=r"token\.key_id"):
        make_token(key_id, SECRET)


def test_the_kept_form_is_hmac_sha256():
    assert token_hash(b"pepper", SECRET) == hmac.digest(b"pepper", SECRET, "sha256")


def test_only_the_same_secret_under_the_same_pepper_matches():
    kept = token_hash(b"pepper", SECRET)
    assert secret_matches(b"pepper", SECRET, kept)
    assert not secret_matches(b"Pepper", SECRET, kept)
    assert not secret_matches(b"pepper", SECRET[:-1] + b"x", kept)
    assert not secret_matches(b"pepper", SECRET, kept[:-1])
    assert not secret_matches(b"pepper", SECRET, hashlib.sha256(SECRET).digest())


def test_no_pepper_is_refused():
    with pytest.raises(InvalidInputError, match=r"token\.pepper"):
        token_hash(b"", SECRET)
