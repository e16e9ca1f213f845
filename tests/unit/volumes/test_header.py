from __future__ import annotations

import struct

import pytest

from orchestrator.isolation.luks import HEADER_BYTES, header_problems, parse_header
from tests.unit.volumes.conftest import make_luks


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> bytes:
    """A header by qemu-img itself."""
    path = tmp_path_factory.mktemp("luks") / "v.luks"
    make_luks(path, "cipher-alg=aes-256,cipher-mode=xts,ivgen-alg=plain64,hash-alg=sha256", b"QSBrZXk=")
    return path.read_bytes()[:HEADER_BYTES]


def test_header_of_qemu_img_has_no_problem(good):
    header = parse_header(good)

    assert header is not None
    assert header_problems(header) == ()
    assert header.payload_bytes == 2_068_480


def number(value: int) -> bytes:
    return struct.pack(">I", value)


def text(value: str) -> bytes:
    return value.encode().ljust(32, b"\0")


#: Offsets of the LUKS1 specification: where, what, and what is then said.
WRONGS = [
    (0, b"LUKX", "no LUKS header"),
    (6, b"\0\2", "LUKS version 2"),
    (8, text("serpent"), "cipher is 'serpent'"),
    (40, text("cbc-essiv:sha256"), "cipher mode is 'cbc-essiv:sha256'"),
    (40, text("xts-plain"), "cipher mode is 'xts-plain'"),
    (72, text("sha1"), "hash is 'sha1'"),
    (72, b"\xff" * 32, "hash is"),
    (104, number(0), "key slot 0 lies outside"),
    (104, number(4035), "key slot 7 lies outside"),
    (104, number(2**32 - 1), "payload starts"),
    (108, number(32), "key bytes is 32"),
    (208, number(0x0000DEAD), "0 active key slots"),
    (208, number(7), "unknown marker"),
    (256, number(0x00AC71F3), "2 active key slots"),
    (248, number(0), "key slot 0 lies outside"),
    (252, number(1), "key slot 0 has 1 stripes"),
]


@pytest.mark.parametrize(("offset", "value", "said"), WRONGS)
def test_each_wrong_field_is_named(good, offset, value, said):
    raw = bytearray(good)
    raw[offset : offset + len(value)] = value

    assert said in "; ".join(header_problems(parse_header(bytes(raw))))


@pytest.mark.parametrize("size", [0, 6, HEADER_BYTES - 1])
def test_short_header_is_a_problem(good, size):
    assert header_problems(parse_header(good[:size])) == ("too short for a LUKS header",)
