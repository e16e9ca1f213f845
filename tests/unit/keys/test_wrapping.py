"""Wrapped keys: bound to their use in every part, never twice under one nonce, closed to everything else."""

from __future__ import annotations

import base64
import dataclasses

import pytest

from orchestrator.keys.wrapping import (
    KEY_BYTES,
    KeyUse,
    WrappedKey,
    new_key,
    passphrase,
    seal,
    unseal,
    unwrap_key,
    wrap_key,
)
from orchestrator.model.errors import InvalidInputError, KeysError

TENANT_KEY, DATA_KEY = bytes(range(32)), bytes(range(32, 64))
USE = KeyUse("ten_a", "vol_a", 1)


def refused(use: KeyUse, wrapped: WrappedKey, tenant_key: bytes = TENANT_KEY) -> None:
    with pytest.raises(KeysError) as caught:
        unwrap_key(tenant_key, use, wrapped)
    assert caught.value.code == "keys.not_opened"
    assert not caught.value.retryable


def test_what_is_wrapped_opens_for_its_use():
    wrapped = wrap_key(TENANT_KEY, 3, USE, DATA_KEY)
    assert wrapped.key_version == 3
    assert unwrap_key(TENANT_KEY, USE, wrapped) == DATA_KEY


@pytest.mark.parametrize(
    "other",
    [
        KeyUse("ten_b", "vol_a", 1),
        KeyUse("ten_a", "vol_b", 1),
        KeyUse("ten_a", "vol_a", 2),
        KeyUse("ten_a", "vol_a", 1, "seed"),
        KeyUse("ten_av", "ol_a", 1),
        KeyUse("ten_a", "vol_a1", 1, "volume"),
        KeyUse("ten_a", "vol_", 11),
        KeyUse("", "ten_avol_a", 1),
    ],
)
def test_it_opens_for_no_other_tenant_volume_generation_or_purpose(other):
    refused(other, wrap_key(TENANT_KEY, 1, USE, DATA_KEY))


def test_it_does_not_open_under_another_version_or_key():
    wrapped = wrap_key(TENANT_KEY, 1, USE, DATA_KEY)
    refused(USE, dataclasses.replace(wrapped, key_version=2))
    refused(USE, wrapped, new_key())


def test_any_changed_byte_closes_it():
    wrapped = wrap_key(TENANT_KEY, 1, USE, DATA_KEY)
    for name in ("nonce", "ciphertext"):
        good = getattr(wrapped, name)
        for place in range(len(good)):
            changed = good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :]
            refused(USE, dataclasses.replace(wrapped, **{name: changed}))
        for changed in (b"", good[:-1], good + b"\0", good[1:]):
            refused(USE, dataclasses.replace(wrapped, **{name: changed}))


def test_a_nonce_never_comes_twice():
    nonces = {wrap_key(TENANT_KEY, 1, USE, DATA_KEY).nonce for _ in range(100_000)}
    assert len(nonces) == 100_000
    assert {len(nonce) for nonce in nonces} == {12}


def test_the_same_key_wrapped_twice_looks_different():
    first, second = (wrap_key(TENANT_KEY, 1, USE, DATA_KEY) for _ in range(2))
    assert first.ciphertext != second.ciphertext
    assert DATA_KEY not in first.ciphertext


@pytest.mark.parametrize("length", [0, 16, 31, 33])
def test_data_keys_of_another_length_are_refused(length):
    with pytest.raises(InvalidInputError, match=r"keys\.length"):
        wrap_key(TENANT_KEY, 1, USE, bytes(length))


def test_new_keys_are_new():
    assert len({new_key() for _ in range(100)}) == 100
    assert len(new_key()) == KEY_BYTES


def test_a_passphrase_is_base64_text_of_the_key():
    assert base64.b64decode(passphrase(DATA_KEY), validate=True) == DATA_KEY
    assert len(passphrase(DATA_KEY)) == 44


SEED = KeyUse("ten_a", "vm_a", 1, "user-data")
TEXT = b"password: hunter2"


def test_what_is_sealed_opens_for_its_use_and_no_other():
    sealed = seal(DATA_KEY, SEED, TEXT)
    assert unseal(DATA_KEY, SEED, sealed) == TEXT
    assert unseal(DATA_KEY, SEED, seal(DATA_KEY, SEED, b"")) == b""
    for name, other in (("tenant", "ten_b"), ("subject", "vm_b"), ("generation", 2), ("purpose", "volume")):
        with pytest.raises(KeysError, match=r"keys\.not_opened"):
            unseal(DATA_KEY, dataclasses.replace(SEED, **{name: other}), sealed)
    with pytest.raises(KeysError, match=r"keys\.not_opened"):
        unseal(TENANT_KEY, SEED, sealed)


def test_any_changed_byte_unseals_nothing():
    sealed = seal(DATA_KEY, SEED, TEXT)
    for name in ("nonce", "ciphertext"):
        good = getattr(sealed, name)
        changes = [good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :] for at in range(len(good))]
        for changed in (*changes, b"", good[:-1], good + b"\0"):
            with pytest.raises(KeysError, match=r"keys\.not_opened"):
                unseal(DATA_KEY, SEED, dataclasses.replace(sealed, **{name: changed}))


def test_sealing_hides_the_text_and_never_repeats():
    first, second = seal(DATA_KEY, SEED, TEXT), seal(DATA_KEY, SEED, TEXT)
    assert first.nonce != second.nonce
    assert first.ciphertext != second.ciphertext
    assert TEXT not in first.ciphertext
    # A sealed text is no wrapped key: their domains differ, under one key too.
    key = seal(DATA_KEY, USE, TENANT_KEY)
    refused(USE, WrappedKey(1, key.nonce, key.ciphertext), DATA_KEY)


def test_nothing_wrapped_is_shown():
    wrapped = wrap_key(TENANT_KEY, 1, USE, DATA_KEY)
    assert repr(wrapped.ciphertext)[2:-1] not in repr(wrapped)
