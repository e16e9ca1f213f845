"""Join tokens: written and read back, and everything that only looks like one refused without being shown."""

from __future__ import annotations

import pytest

from orchestrator.model.errors import InvalidInputError
from orchestrator.model.join_token import JoinSecret, make_join_token, parse_join_token

PARTS = JoinSecret("jt_abc2", bytes(range(32)), "sha256:" + "a1" * 32)
TOKEN = make_join_token(PARTS)


@pytest.mark.parametrize("secret", [bytes(32), b"\xff" * 32, bytes(range(32)), b"_-" * 16])
def test_what_was_written_is_read(secret: bytes) -> None:
    parts = JoinSecret("jt_a_b", secret, PARTS.ca_fingerprint)

    assert parse_join_token(make_join_token(parts)) == parts


def test_secret_is_in_no_picture_of_it() -> None:
    assert TOKEN.split("_")[3] not in repr(parse_join_token(TOKEN))
    assert str(PARTS.secret) not in repr(PARTS)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "bhj_",
        TOKEN[:-1],
        TOKEN + "0",
        TOKEN + "\n",
        " " + TOKEN,
        TOKEN.replace("bhj_", "bh_"),
        TOKEN.upper(),
        TOKEN.replace("jt_abc2", "_jt"),
        TOKEN.replace("jt_abc2", ""),
        TOKEN[:-64] + "g" * 64,
        # The last character of the secret with one of its two idle bits set: another text, the same bytes.
        TOKEN[:-66] + chr(ord(TOKEN[-66]) + 1) + TOKEN[-65:],
        "bhj_" + "a" * 100_000,
    ],
)
def test_what_is_no_token_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(InvalidInputError) as refused:
        parse_join_token(text)

    assert refused.value.code == "join_token.malformed"
    assert len(text) < 10 or text not in refused.value.explain()


@pytest.mark.parametrize(
    "parts",
    [
        JoinSecret("", bytes(32), PARTS.ca_fingerprint),
        JoinSecret("jt_A", bytes(32), PARTS.ca_fingerprint),
        JoinSecret("jt_a", bytes(31), PARTS.ca_fingerprint),
        JoinSecret("jt_a", bytes(32), "a1" * 32),
    ],
)
def test_wrong_parts_make_no_token(parts: JoinSecret) -> None:
    with pytest.raises(InvalidInputError) as refused:
        make_join_token(parts)

    assert refused.value.code == "join_token.parts"
